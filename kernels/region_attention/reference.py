"""The meaning of region_attention, written out: the whole attention matrix in memory, at least float32."""

import torch
from torch import Tensor

from lotts.kernels.validate import map_dtype


def region_attention(
    query: Tensor, key: Tensor, value: Tensor, stored_key: Tensor, stored_value: Tensor, scale: float | None
) -> Tensor:
    """Output [B, H, N, Dv]."""
    work, batch = map_dtype(query), query.shape[0]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    keys = torch.cat([key, stored_key.expand(batch, -1, -1, -1)], dim=2).to(work)
    values = torch.cat([value, stored_value.expand(batch, -1, -1, -1)], dim=2).to(work)
    weights = torch.softmax(query.to(work) @ keys.transpose(-2, -1) * scale, dim=-1)
    return (weights @ values).to(value.dtype)
