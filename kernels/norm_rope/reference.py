"""The meaning of norm_rope, written out in at least float32."""

import torch
from torch import Tensor

from lotts.kernels.norm_rope.parts import Norm
from lotts.kernels.validate import map_dtype


def norm_rope(
    tokens: Tensor,
    cos: Tensor,
    sin: Tensor,
    places: Tensor | None,
    norm: Norm | None,
) -> Tensor:
    """Tokens [R, H, N, D], normalised and turned."""
    rows, _, count, dim = tokens.shape
    x = tokens.to(map_dtype(tokens))
    if norm is not None:
        x = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        first = (torch.arange(count, device=x.device) < norm.prefix)[:, None]
        ones = torch.ones(dim, dtype=x.dtype, device=x.device)
        own, other = (ones if w is None else w.to(x.dtype) for w in (norm.weight, norm.prefix_weight))
        x = x * torch.where(first, other, own)
    if places is None:
        places = torch.arange(count, device=x.device)[None]
    angles = places.repeat(rows // len(places) if rows else 0, 1)
    # [R, 1, N, D]
    c, s = (table.to(x.dtype)[angles].unsqueeze(1) for table in (cos, sin))
    pairs = x.unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (x * c + turned * s).to(tokens.dtype)
