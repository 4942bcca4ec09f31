"""region_attention in plain torch: the stock attention call on keys and values that are copied together first."""

import torch
from torch import Tensor

from lotts.kernels.stock import stock_attention


def region_attention(
    query: Tensor, key: Tensor, value: Tensor, stored_key: Tensor, stored_value: Tensor, scale: float | None
) -> Tensor:
    """Output [B, H, N, Dv]."""
    return stock_attention(query, _joined(key, stored_key), _joined(value, stored_value), scale=scale)


def _joined(fresh: Tensor, stored: Tensor) -> Tensor:
    """[B, H, F + M, D], laid out as [B, F + M, H, D] as attention layers have it."""
    stored = stored.expand(fresh.shape[0], -1, -1, -1)
    return torch.cat([fresh.transpose(1, 2), stored.transpose(1, 2)], dim=1).transpose(1, 2)
