"""The public op: checks its arguments, then hands them to the implementation that ``impl`` names."""

import torch
from torch import Tensor

from lotts.kernels import dispatch, validate
from lotts.kernels.norm_rope.op import norm_rope as fused
from lotts.kernels.norm_rope.parts import Norm
from lotts.kernels.norm_rope.portable import norm_rope as portable
from lotts.kernels.norm_rope.reference import norm_rope as reference

dispatch.register("norm_rope", triton=fused, portable=portable, reference=reference)


def norm_rope(
    tokens: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    places: Tensor | None = None,
    eps: float | None = None,
    weight: Tensor | None = None,
    prefix_weight: Tensor | None = None,
    prefix: int = 0,
    impl: str | None = None,
) -> Tensor:
    """RMS norm over the head dim, then the rotary embedding of each token's place: queries or keys, ready for attention.

    ``y = x / sqrt(mean(x^2) + eps) * weight``, then ``y cos + turned(y) sin`` with ``turned(a, b) = (-b, a)`` on neighbours
    (2i, 2i + 1), the layout of FLUX. Rounded once, at the end.

    Args:
        tokens: [R, H, N, D], float16, bfloat16, float32 or float64; D even.
        cos: [T, D], float32 or float64, of T places; both of a pair have the same entry.
        sin: [T, D], of the dtype of ``cos``.
        places: [P, N], int64: the row of the tables of each token; row r of the batch has ``places[r % P]``, and R is a
            multiple of P. None means token n has place n, and T is at least N.
        eps: of the norm; None means no norm.
        weight: [D], any floating dtype, or None for ones.
        prefix_weight: [D], that of the first ``prefix`` tokens (the text's in a joint sequence); None for ones.
        prefix: 0 to N.
        impl: ``"triton"`` (on a GPU), ``"portable"`` or ``"reference"``; None means the first that can run.

    Returns:
        [R, H, N, D] in the dtype of ``tokens``; by the kernel laid out as [R, N, H, D].

    Raises:
        TypeError: an argument is not a tensor, or has another dtype.
        ValueError: a shape or device does not match, D is odd, or weights come without ``eps``.
        RuntimeError: ``impl`` is not available.
    """
    sizes: dict[str, int] = {}
    validate.has_shape("tokens", tokens, "R H N D", sizes)
    validate.has_dtype("tokens", tokens, *validate.FLOATING)
    validate.has_shape("cos", cos, "T D", sizes)
    validate.has_dtype("cos", cos, torch.float32, torch.float64)
    validate.has_shape("sin", sin, "T D", sizes)
    validate.has_dtype("sin", sin, cos.dtype)
    if sizes["D"] % 2:
        raise ValueError(f"tokens: expected an even head dim, got {sizes['D']}")
    if places is None:
        validate.at_least("T", sizes["T"], sizes["N"])
    else:
        validate.has_shape("places", places, "P N", sizes)
        validate.has_dtype("places", places, torch.int64)
        if not sizes["P"] or sizes["R"] % sizes["P"]:
            raise ValueError(f"places: expected rows that divide the {sizes['R']} of tokens, got {sizes['P']}")
    if eps is None and not (weight is None and prefix_weight is None and prefix == 0):
        raise ValueError("eps: expected a number, since weights or a prefix of the norm are given, got None")
    if not 0 <= prefix <= sizes["N"]:
        raise ValueError(f"prefix: expected 0 to {sizes['N']}, got {prefix}")
    weights = {"weight": weight, "prefix_weight": prefix_weight}
    for name, given in weights.items():
        if given is not None:
            validate.has_shape(name, given, "D", sizes)
            validate.has_dtype(name, given, *validate.FLOATING)
    validate.on_device(tokens.device, cos=cos, sin=sin, places=places, **weights)
    run = dispatch.select("norm_rope", impl, tokens.device, tokens.dtype)
    norm = None if eps is None else Norm(eps, weight, prefix_weight, prefix)
    return run(tokens, cos, sin, places, norm)
