"""Argument checks shared by the ops. Each says what was expected and what came, and reads shapes and dtypes only.

Tensor values are never inspected: that would wait for the device and break ``torch.compile(fullgraph=True)``.
"""

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def has_shape(name: str, value: Tensor, spec: str, sizes: dict[str, int]) -> None:
    """Check ``value`` against a shape such as ``"B H N D"``, where equal names mean equal sizes.

    A name met for the first time is bound in ``sizes`` for the checks that follow. ``"B|1"`` also admits 1.

    Raises:
        TypeError: ``value`` is not a tensor.
        ValueError: the shape differs.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    dims, shape = spec.split(), value.shape
    fits, bound = len(shape) == len(dims), {}
    for dim, size in zip(dims, shape, strict=False):
        dim, or_one = dim.removesuffix("|1"), dim.endswith("|1")
        if dim not in sizes:
            bound[dim] = size
        elif size != sizes[dim] and not (or_one and size == 1):
            fits = False
    if not fits:
        known = [f"{dim}={sizes[dim]}" for dim in (dim.removesuffix("|1") for dim in dims) if dim in sizes]
        where = f" with {', '.join(known)}" if known else ""
        raise ValueError(f"{name}: expected shape [{', '.join(dims)}]{where}, got {list(shape)}")
    sizes.update(bound)


def has_dtype(name: str, value: Tensor, *allowed: torch.dtype) -> None:
    """Raise TypeError unless ``value`` has one of the ``allowed`` dtypes."""
    if value.dtype not in allowed:
        raise TypeError(f"{name}: expected dtype {' or '.join(str(dtype) for dtype in allowed)}, got {value.dtype}")


def on_device(device: torch.device, **values: Tensor | None) -> None:
    """Raise ValueError unless every tensor among ``values`` is on ``device``."""
    for name, value in values.items():
        if value is not None and value.device != device:
            raise ValueError(f"{name}: expected device {device}, got {value.device}")


def at_least(name: str, value: int, least: int) -> None:
    """Raise ValueError if ``value`` is below ``least``."""
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def map_dtype(query: Tensor) -> torch.dtype:
    """The dtype of maps and of the weights that make them: float32, or float64 when the query is float64."""
    return torch.promote_types(query.dtype, torch.float32)


def in_stream_range(stream: int) -> None:
    """Raise ValueError unless ``stream`` fits the 32-bit counter word it becomes."""
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream: expected 0 to 2**32 - 1, got {stream}")


def checked_rows(rows: tuple[int, int] | None, batch: int) -> tuple[int, int]:
    """The rows of a batch that make maps, all of them where None is given.

    Raises:
        ValueError: they do not lie in the batch.
    """
    start, stop = (0, batch) if rows is None else rows
    if not (0 <= start < stop <= batch or start == stop == batch == 0):
        raise ValueError(
            f"rows: expected [from, to) within the {batch} of the batch, at least one, got {[start, stop]}"
        )
    return start, stop


def is_accumulator(name: str, value: Tensor, query: Tensor, columns: int) -> None:
    """Check that maps [B, H, N, columns] of ``query`` can be added to ``value`` in place."""
    has_shape(name, value, "B H N C", dict(zip("BHNC", (*query.shape[:3], columns), strict=True)))
    has_dtype(name, value, map_dtype(query))
    on_device(query.device, **{name: value})
    if columns and value.stride(-1) != 1:
        raise ValueError(f"{name}: expected the last stride to be 1, got strides {value.stride()}")
    if any(size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride(), strict=True)):
        raise ValueError(
            f"{name}: expected memory of its own for every map, got an expanded tensor of strides {value.stride()}"
        )
