"""The public op: checks its arguments, then hands them to the implementation that ``impl`` names."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lotts.kernels import dispatch, validate
from lotts.kernels.philox_normal.op import philox_normal as fused
from lotts.kernels.philox_normal.portable import philox_normal as portable
from lotts.kernels.philox_normal.reference import philox_normal as reference

dispatch.register("philox_normal", triton=fused, portable=portable, reference=reference)


def philox_normal(
    seeds: Tensor,
    shape: Sequence[int],
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    impl: str | None = None,
) -> Tensor:
    """Standard normal noise by Philox4x32-10 and the Box-Muller transform (Salmon et al., SC 2011).

    Element ``4 * j + w`` of a sample, in row-major order, is output ``w`` of ``triton.language.randn4x(seed, j)`` for
    stream 0. A call of Philox costs about eighty integer instructions and makes four words; using all of them keeps
    kernels that draw noise bound by memory. Samples do not depend on what other seeds are asked for beside them, in
    which order, or on which device.

    Args:
        seeds: [...], int64, 0 to 2**63 - 1: one seed a sample. Any shape, also [].
        shape: shape of one sample, fewer than 2**32 elements.
        stream: 0 to 2**32 - 1; streams of one seed are independent. It is word ``c1`` of the Philox counter.
        dtype: dtype of the result; the numbers are made in float32 and then cast.
        device: where the result is wanted; None means where ``seeds`` is.
        impl: ``"triton"``, ``"portable"`` or ``"reference"``; None means Triton on a GPU, otherwise ``"portable"``.

    Returns:
        [*seeds.shape, *shape]. Random bits are equal everywhere; the float32 logarithm, sine and cosine differ
        between libraries by units in the last place, so that values agree within 2e-6.

    Raises:
        TypeError: ``seeds`` is not an int64 tensor, or ``dtype`` is not floating point.
        ValueError: ``stream`` or ``shape`` is out of range.
        RuntimeError: ``impl`` is not available.
    """
    shape = tuple(shape)
    if not isinstance(seeds, Tensor):
        raise TypeError(f"seeds: expected a torch.Tensor, got {type(seeds).__name__}")
    validate.has_dtype("seeds", seeds, torch.int64)
    validate.in_stream_range(stream)
    if any(size < 0 for size in shape) or math.prod(shape) >= 2**32:
        raise ValueError(f"shape: expected sizes of at least 0 and fewer than 2**32 elements, got {list(shape)}")
    if dtype not in validate.FLOATING:
        raise TypeError(f"dtype: expected one of {', '.join(map(str, validate.FLOATING))}, got {dtype}")
    if device is not None:
        seeds = seeds.to(device)
    return dispatch.select("philox_normal", impl, seeds.device)(seeds, shape, stream).to(dtype)
