"""Memory layouts that kernels read and write."""

from torch import Tensor


def output_like(query: Tensor, value: Tensor) -> Tensor:
    """[B, H, N, Dv] over memory laid out as [B, N, H, Dv], which the output projection reads without a copy."""
    batch, heads, rows, _ = query.shape
    return value.new_empty((batch, rows, heads, value.shape[-1])).transpose(1, 2)


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself where its last stride is 1, as kernels need it, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
