"""norm_rope in plain torch: torch's own RMS norm, then the rotation in float32, rounded in between as layers round."""

import torch
import torch.nn.functional as F
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
    rows, heads, count, dim = tokens.shape
    # [R, N, H, D], which lies in memory as it is
    x = tokens.transpose(1, 2)
    if norm is not None:
        parts = x.split([norm.prefix, count - norm.prefix], dim=1)
        weights = (None if w is None else w.to(x.dtype) for w in (norm.prefix_weight, norm.weight))
        x = torch.cat([F.rms_norm(part, (dim,), w, norm.eps) for part, w in zip(parts, weights, strict=True)], dim=1)
    work = map_dtype(tokens)
    # [P, N, 1, D]: the groups of rows that share their places are a dim of their own.
    c, s = ((t[:count][None] if places is None else t[places]).to(work).unsqueeze(2) for t in (cos, sin))
    x = x.reshape(rows // len(c), len(c), count, heads, dim)
    even, odd = x.to(work).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x.to(work) * c + turned * s).to(tokens.dtype).view(rows, count, heads, dim).transpose(1, 2)
