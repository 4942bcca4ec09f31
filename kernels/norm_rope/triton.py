"""norm_rope as one Triton kernel: each row of a head is read once, normalised and turned in registers, and written once.

Eager PyTorch takes the norm, the way to float32, the turned copy, two products, a sum and the way back, each through memory,
and before them the tables gathered by place for every row of the batch. Here a program takes a few heads of a few tokens, so
that what turns a token, with the norm's weights in it, stays in registers for all of those heads.
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
    NORM: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    # Programs that share their tokens follow each other, and find the tables in the cache.
    chunks = tl.cdiv(H, HEADS)
    # int64: batch offsets of long sequences pass 2**31
    i_n, i_b = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(1).to(tl.int64)
    i_h = (tl.program_id(0) % chunks * HEADS).to(tl.int64)
    stride_xh, stride_oh = tl.cast(stride_xh, tl.int64), tl.cast(stride_oh, tl.int64)
    # [BLOCK_N], [BLOCK_D]
    o_n, o_d = i_n * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    m_n = o_n < N
    m = m_n[:, None] & (o_d < D)[None, :]

    # All rows are asked for before the first is used: HEADS times [BLOCK_N, BLOCK_D].
    p_x += i_b * stride_xb + i_h * stride_xh + (o_n * stride_xn)[:, None] + o_d[None, :]
    b_rows = ()
    for i in tl.static_range(HEADS):
        m_x = m & (o_n < tl.where(i_h + i < H, N, 0))[:, None]
        b_rows = b_rows + (tl.load(p_x + i * stride_xh, mask=m_x, other=0.0),)  # noqa: RUF005
    o_t = o_n
    if p_places is not None:
        o_t = tl.load(p_places + (i_b % P) * stride_pb + o_n * stride_pn, mask=m_n, other=0)
    # What the even and the odd column of a pair give to either: [BLOCK_N, BLOCK_D // 2].
    b_even_even, b_odd_odd = pairs(tl.load(p_cos + (o_t * stride_ct)[:, None] + o_d[None, :], mask=m, other=0.0))
    b_odd_even, b_even_odd = pairs(tl.load(p_sin + (o_t * stride_st)[:, None] + o_d[None, :], mask=m, other=0.0))
    if NORM:
        b_even, b_odd = pairs(weights(p_weight, p_prefix_weight, (o_n < PREFIX)[:, None], o_d, m))
        b_even_even, b_even_odd = b_even_even * b_even, b_even_odd * b_even
        b_odd_even, b_odd_odd = b_odd_even * b_odd, b_odd_odd * b_odd

    p_out += i_b * stride_ob + i_h * stride_oh + (o_n * stride_on)[:, None] + o_d[None, :]
    for i in tl.static_range(HEADS):
        b_even, b_odd = pairs(b_rows[i].to(tl.float32))
        if NORM:
            b_scale = tl.math.rsqrt(tl.sum(b_even * b_even + b_odd * b_odd, axis=1) / D + eps)[:, None]
            b_even, b_odd = b_even * b_scale, b_odd * b_scale
        b_turned = tl.interleave(
            tl.fma(b_even, b_even_even, -(b_odd * b_odd_even)),
            tl.fma(b_odd, b_odd_odd, b_even * b_even_odd),
        )  # fmt: skip
        m_out = m & (o_n < tl.where(i_h + i < H, N, 0))[:, None]
        tl.store(p_out + i * stride_oh, b_turned.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def pairs(b_x):
    """The even and the odd columns of a tile, each half as wide. A pair lies in one thread."""
    return tl.split(tl.reshape(b_x, [b_x.shape[0], b_x.shape[1] // 2, 2]))


@triton.jit
def weights(p_weight, p_prefix_weight, b_first, o_d, m):
    """[BLOCK_N, BLOCK_D]: of the tokens of the prefix and of the others; ones where there are none."""
    b_own, b_other = tl.where(m, 1.0, 0.0), tl.where(m, 1.0, 0.0)
    if p_weight is not None:
        b_own = tl.load(p_weight + o_d[None, :], mask=m & ~b_first, other=0.0).to(tl.float32)
    if p_prefix_weight is not None:
        b_other = tl.load(p_prefix_weight + o_d[None, :], mask=m & b_first, other=0.0).to(tl.float32)
    return tl.where(b_first, b_other, b_own)


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
    blocks = table.cdiv(count, config["BLOCK_N"]) * table.cdiv(heads, config["HEADS"])
    norm_rope_kernel[(blocks, rows)](
        tokens, cos, sin, places, *(None if w is None else w.contiguous() for w in given), out,
        *tokens.stride()[:3], cos.stride(0), sin.stride(0), *place_strides, *out.stride()[:3],
        1 if places is None else len(places), heads, count, prefix, eps,
        NORM=norm is not None, D=dim, BLOCK_D=table.next_power_of_2(dim), **config,
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
            {"NORM": True, "D": dim, "BLOCK_D": table.next_power_of_2(dim), "stride_pn": 1}
            | ({} if prefix else {"p_prefix_weight": None}),
            bits=32 if dtype == "fp32" else 16,
            head_dim=dim,
            floats=("eps",),
        )
        for dtype, dim, prefix in (("bf16", 128, True), ("fp16", 128, False), ("fp16", 80, False), ("fp32", 128, True))
    ]
