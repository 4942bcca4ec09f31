"""The Triton form as torch.library knows it: schema, and shapes without data."""

from torch import Tensor

from lotts.kernels.dispatch import custom_op
from lotts.kernels.launch import on_device
from lotts.kernels.layout import output_like, unit_stride
from lotts.kernels.norm_rope.parts import Norm


@custom_op("lotts::norm_rope", mutates_args=())
def _norm_rope(
    tokens: Tensor,
    cos: Tensor,
    sin: Tensor,
    places: Tensor | None,
    eps: float | None,
    weight: Tensor | None,
    prefix_weight: Tensor | None,
    prefix: int,
) -> Tensor:
    from lotts.kernels.norm_rope.triton import launch

    out = output_like(tokens, tokens)
    if out.numel():
        with on_device(tokens.device):
            norm = None if eps is None else Norm(eps, weight, prefix_weight, prefix)
            launch(tokens, cos, sin, places, norm, out)
    return out


@_norm_rope.register_fake
def _(tokens, cos, sin, places, eps, weight, prefix_weight, prefix):
    return output_like(tokens, tokens)


def norm_rope(
    tokens: Tensor,
    cos: Tensor,
    sin: Tensor,
    places: Tensor | None,
    norm: Norm | None,
) -> Tensor:
    """The implementation behind ``impl="triton"``."""
    cos, sin = cos.float(), sin.float()
    return _norm_rope(*map(unit_stride, (tokens, cos, sin)), places, *(norm or (None, None, None, 0)))
