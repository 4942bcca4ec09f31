"""norm_rope as one Triton kernel: each row of a head is read once, normalised and turned in registers, and written once.

Eager PyTorch takes the norm, the way to float32, the turned copy, two products, a sum and the way back, each through memory,
and before them the tables gathered by place for every row of the batch.
"""

import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels import launch as table
from lotts.kernels.norm_rope.parts import Norm
from lotts.kernels.tiles import batch_stride


@triton.jit
def norm_rope_kernel(
    p_x, p_cos, p_sin, p_places, p_weight, p_prefix_weight, p_out,
    stride_xb, stride_xh, stride_xn, stride_ct, stride_st, stride_pb, stride_pn, stride_ob, stride_oh, stride_on,
    P, H, N, PREFIX, eps,
    NORM: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # int64: batch offsets of long sequences pass 2**31
    i_b = tl.program_id(1).to(tl.int64)
    # Rows of heads, those of one token beside each other: [BLOCK_N]
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_n, o_h = o_r // H, o_r % H
    m_n = o_n < N
    o_d = tl.arange(0, BLOCK_D)
    m = m_n[:, None] & (o_d < D)[None, :]
    # The other one of a pair, and the sign with which it comes in.
    o_pair = o_d ^ 1
    b_sign = tl.where(o_d % 2 == 0, -1.0, 1.0)

    # [BLOCK_N, BLOCK_D]
    p_x += i_b * stride_xb + (o_h * stride_xh + o_n * stride_xn)[:, None]
    b_x = tl.load(p_x + o_d[None, :], mask=m, other=0.0).to(tl.float32)
    b_pair = tl.load(p_x + o_pair[None, :], mask=m, other=0.0).to(tl.float32) * b_sign[None, :]
    if NORM:
        b_scale = tl.math.rsqrt(tl.sum(b_x * b_x, axis=1) / D + eps)
        b_x = b_x * b_scale[:, None] * weights(p_weight, p_prefix_weight, o_n < PREFIX, o_d, m)
        b_pair = b_pair * b_scale[:, None] * weights(p_weight, p_prefix_weight, o_n < PREFIX, o_pair, m)
    o_t = o_n
    if p_places is not None:
        o_t = tl.load(p_places + (i_b % P) * stride_pb + o_n * stride_pn, mask=m_n, other=0)
    b_cos = tl.load(p_cos + (o_t * stride_ct)[:, None] + o_d[None, :], mask=m, other=0.0)
    b_sin = tl.load(p_sin + (o_t * stride_st)[:, None] + o_d[None, :], mask=m, other=0.0)
    b_out = tl.fma(b_x, b_cos, b_pair * b_sin)
    p_out += i_b * stride_ob + (o_h * stride_oh + o_n * stride_on)[:, None]
    tl.store(p_out + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m)


@triton.jit
def weights(p_weight, p_prefix_weight, b_first, o_d, m):
    """[BLOCK_N, BLOCK_D]: of the tokens of the prefix and of the others; ones where there are none."""
    b_own, b_other = tl.where(m, 1.0, 0.0), tl.where(m, 1.0, 0.0)
    if p_weight is not None:
        b_own = tl.load(p_weight + o_d[None, :], mask=m & ~b_first[:, None], other=0.0).to(tl.float32)
    if p_prefix_weight is not None:
        b_other = tl.load(p_prefix_weight + o_d[None, :], mask=m & b_first[:, None], other=0.0).to(tl.float32)
    return tl.where(b_first[:, None], b_other, b_own)


def launch(
    tokens: Tensor,
    cos: Tensor,
    sin: Tensor,
    places: Tensor | None,
    norm: Norm | None,
    out: Tensor,
    config: table.Config | None = None,
) -> None:
    """Write [R, H, N, D]; every last stride is 1, and the tables are float32."""
    rows, heads, count, dim = tokens.shape
    if config is None:
        config = table.config("norm_rope", table.architecture(tokens.device), 8 * tokens.element_size(), dim)
    eps, *given, prefix = norm or (0.0, None, None, 0)
    place_strides = (0, 0) if places is None else (batch_stride(places), places.stride(1))
    norm_rope_kernel[(triton.cdiv(count * heads, config["BLOCK_N"]), rows)](
        tokens, cos, sin, places, *(None if w is None else w.contiguous() for w in given), out,
        *tokens.stride()[:3], cos.stride(0), sin.stride(0), *place_strides, *out.stride()[:3],
        1 if places is None else len(places), heads, count, prefix, eps,
        NORM=norm is not None, D=dim, BLOCK_D=triton.next_power_of_2(dim), **config,
    )  # fmt: skip


def variants() -> list[table.Variant]:
    """Specialisations to compile ahead of time: FLUX's heads with and without a prefix, and a head that is no power of two."""
    return [
        table.Variant(
            f"norm_rope {dtype} D={dim}{', text first' if prefix else ''}",
            "norm_rope",
            norm_rope_kernel,
            {**dict.fromkeys(("p_x", "p_out", "p_weight"), dtype), "p_cos": "fp32", "p_sin": "fp32", "p_places": "i64"}
            | ({"p_prefix_weight": dtype} if prefix else {}),
            {"NORM": True, "D": dim, "BLOCK_D": triton.next_power_of_2(dim), "stride_pn": 1}
            | ({} if prefix else {"p_prefix_weight": None}),
            bits=32 if dtype == "fp32" else 16,
            head_dim=dim,
            floats=("eps",),
        )
        for dtype, dim, prefix in (("bf16", 128, True), ("fp16", 128, False), ("fp16", 80, False), ("fp32", 128, True))
    ]
