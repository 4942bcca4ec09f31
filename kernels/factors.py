"""Factors that are one number for all samples, or a float32 tensor [B] with one each.

A tensor is read on the device by the op itself, so that a captured CUDA graph may be replayed with other values.
"""

import torch
from torch import Tensor

from lotts.kernels import validate

Factor = float | Tensor


def checked(name: str, value: Factor, device: torch.device, sizes: dict[str, int]) -> Factor:
    """The factor, valid for ``sizes["B"]`` samples on ``device``.

    Raises:
        TypeError: a tensor is not float32.
        ValueError: its shape or device differs.
    """
    if not isinstance(value, Tensor):
        return float(value)
    validate.has_shape(name, value, "B", sizes)
    validate.has_dtype(name, value, torch.float32)
    validate.on_device(device, **{name: value})
    return value


def broadcast(factor: Factor, ndim: int) -> Factor:
    """As [B, 1, 1, ...] of ``ndim`` dims, if it is a tensor."""
    return factor.reshape(-1, *[1] * (ndim - 1)) if isinstance(factor, Tensor) else factor


def of_sample(factor: Factor, sample: int) -> Factor:
    """The factor of one sample."""
    return factor[sample] if isinstance(factor, Tensor) else factor


def split(factor: Factor | None) -> tuple[float, Tensor | None]:
    """(number, tensor), as operator schemas need it; the number does not count where there is a tensor."""
    return (0.0, factor) if factor is None or isinstance(factor, Tensor) else (factor, None)
