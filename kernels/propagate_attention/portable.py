"""propagate_attention in plain torch: the columns ride through the stock attention call as extra channels of V.

torch's fused attention wants Q, K and V equally wide, so Q and K are widened with zeros, which add nothing to a score.
The attention matrix then never exists in memory, on any device where the stock call is fused.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Fused attention on GPUs takes head dims that are multiples of 8 in half precision, and falls back otherwise.
_ALIGNMENT = 8


def propagate_attention(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, Dv] and maps [B, H, N, C] from columns [B, 1 or H, M, C]."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if value.dtype == columns.dtype:
        return _widened_attention(query, key, value, columns, scale)

    # Half precision. A softmax keeps constants, so each column travels as its deviation from its mean: the rounding of
    # probabilities and of results is then relative to that deviation, and a constant column comes back exact. Dividing
    # by the largest deviation keeps float16 from overflowing; the low half carries what the high half rounds away.
    centre = columns.mean(dim=-2, keepdim=True)
    deviation = columns - centre
    spread = deviation.abs().amax(dim=-2, keepdim=True).clamp_min(torch.finfo(columns.dtype).tiny)
    unit = deviation / spread
    high = unit.to(value.dtype)
    low = (unit - high).to(value.dtype)
    out, halves = _widened_attention(query, key, value, torch.cat([high, low], dim=-1), scale)
    high, low = halves.to(columns.dtype).chunk(2, dim=-1)
    return out, (high + low) * spread + centre


def _widened_attention(
    query: Tensor, key: Tensor, value: Tensor, channels: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(QK^T) of V [B, H, M, Dv] and of channels [B, 1 or H, M, W], in one attention call."""
    dim, value_dim, extra = query.shape[-1], value.shape[-1], channels.shape[-1]
    width = -(-max(dim, value_dim + extra) // _ALIGNMENT) * _ALIGNMENT
    beside = F.pad(channels, (0, width - value_dim - extra)).expand(*value.shape[:-1], -1)
    result = F.scaled_dot_product_attention(
        F.pad(query, (0, width - dim)),
        F.pad(key, (0, width - dim)),
        torch.cat([value, beside], dim=-1),
        scale=scale,
    )
    return result[..., :value_dim], result[..., value_dim : value_dim + extra]
