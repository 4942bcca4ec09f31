"""The meaning of propagate_attention, written out: the whole attention matrix in memory, at least float32."""

import torch
from torch import Tensor

from lotts.kernels.validate import map_dtype


def propagate_attention(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, Dv] and maps [B, H, N, C] from columns [B, 1 or H, M, C]."""
    work = map_dtype(query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attention = torch.softmax(query.to(work) @ key.to(work).transpose(-2, -1) * scale, dim=-1)
    return (attention @ value.to(work)).to(value.dtype), attention @ columns
