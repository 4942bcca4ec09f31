"""The attention that torch has, where an op is a call of it."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lotts.kernels.layout import output_like


def stock_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """``scaled_dot_product_attention``, also of nothing: in half precision on a GPU torch 2.11 answers None to an empty batch."""
    if query.numel() == 0:
        return output_like(query, value)
    return F.scaled_dot_product_attention(query, key, value, **options)
