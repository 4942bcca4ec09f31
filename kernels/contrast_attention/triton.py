"""contrast_attention as one Triton kernel: a block of queries is read once and shown to up to three prompts.

Prompts are short, so the kernel is bound by reading Q and writing O. What it adds to plain attention are two products with
the quality prompts' keys and, a weighted column, one multiplication and addition a probability, in float32 registers.
"""

import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels import launch as table
from lotts.kernels.tiles import LOG2_E, batch_stride, head_dims, load_tile, query_block, raise_maximum, scores


@triton.jit
def contrast_attention_kernel(
    q, k, v, o, maps, weight, k_pos, weight_pos, k_neg, weight_neg, key_mask,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    stride_ob, stride_oh, stride_on, stride_mb, stride_mh, stride_mn, stride_wb, stride_wl,
    stride_pb, stride_ph, stride_pl, stride_pwb, stride_nb, stride_nh, stride_nl, stride_nwb, stride_kmb,
    H, N, L, L_POS, L_NEG, score_scale,
    C: tl.constexpr, HAS_POS: tl.constexpr, HAS_NEG: tl.constexpr, HAS_MASK: tl.constexpr, ACCUMULATE: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_C: tl.constexpr,
    CHUNK_D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    i_n, i_bh = tl.program_id(0), tl.program_id(1)
    # int64: batch and head offsets of long sequences pass 2**31
    i_b, i_h = (i_bh // H).to(tl.int64), (i_bh % H).to(tl.int64)
    first = i_n.to(tl.int64) * BLOCK_N
    o_n, o_l = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_L)
    o_dv, o_c = tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_C)
    m_n = first + o_n < N

    p_q = q + i_b * stride_qb + i_h * stride_qh + first * stride_qn + o_n[:, None] * stride_qn
    # [BLOCK_N, BLOCK_D]
    b_q = query_block(p_q, m_n, D, BLOCK_D, CHUNK_D)

    # The prompt: its output, and the mass on its weighted tokens.
    k += i_b * stride_kb + i_h * stride_kh
    v += i_b * stride_vb + i_h * stride_vh
    weight += i_b * stride_wb
    key_mask += i_b * stride_kmb
    # [BLOCK_N]
    b_max = tl.full([BLOCK_N], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    # [BLOCK_N, BLOCK_DV]
    b_o = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    # [BLOCK_N, BLOCK_C]
    b_maps = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, L, BLOCK_L):
        o_t = start + o_l
        m_t = o_t < L
        # [BLOCK_L, BLOCK_DV]
        b_v = load_tile(v + o_t[:, None] * stride_vl, m_t, o_dv, DV, BLOCK_DV, True)
        if HAS_MASK:
            m_seen = m_t & (tl.load(key_mask + o_t, mask=m_t, other=0) != 0)
        else:
            m_seen = m_t
        # [BLOCK_N, BLOCK_L]
        b_s = scores(b_q, m_n, k + o_t[:, None] * stride_kl, m_t, score_scale, D, BLOCK_D, CHUNK_D, PRECISION, True)
        b_s = tl.where(m_seen[None, :], b_s, float("-inf"))
        b_max, b_shift, b_fade = raise_maximum(b_max, b_s, HAS_MASK)
        b_p = tl.math.exp2(b_s - b_shift[:, None])
        b_sum = b_sum * b_fade + tl.sum(b_p, axis=1)
        b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o * b_fade[:, None], input_precision=PRECISION)
        b_maps *= b_fade[:, None]
        for c in tl.static_range(C):
            # [BLOCK_L]
            b_w = tl.load(weight + o_t * stride_wl + c, mask=m_t, other=0.0)
            b_maps = tl.where((o_c == c)[None, :], b_maps + tl.sum(b_p * b_w[None, :], axis=1)[:, None], b_maps)
    # A row that saw nothing has sum 0 and stays 0.
    b_scale = 1.0 / tl.where(b_sum > 0.0, b_sum, 1.0)
    b_o *= b_scale[:, None]
    b_maps *= b_scale[:, None]

    # The quality prompts are only looked at.
    if HAS_POS:
        p_k = k_pos + i_b * stride_pb + i_h * stride_ph
        b_mass = token_mass(
            b_q, m_n, p_k, stride_pl, weight_pos + i_b * stride_pwb, L_POS, score_scale,
            D, BLOCK_D, CHUNK_D, PRECISION, BLOCK_N, BLOCK_L,
        )  # fmt: skip
        b_maps = tl.where((o_c == C)[None, :], b_mass[:, None], b_maps)
    if HAS_NEG:
        p_k = k_neg + i_b * stride_nb + i_h * stride_nh
        b_mass = token_mass(
            b_q, m_n, p_k, stride_nl, weight_neg + i_b * stride_nwb, L_NEG, score_scale,
            D, BLOCK_D, CHUNK_D, PRECISION, BLOCK_N, BLOCK_L,
        )  # fmt: skip
        b_maps = tl.where((o_c == C + HAS_POS)[None, :], b_mass[:, None], b_maps)

    p_o = o + i_b * stride_ob + i_h * stride_oh + first * stride_on + o_n[:, None] * stride_on + o_dv[None, :]
    tl.store(p_o, b_o.to(o.dtype.element_ty), mask=m_n[:, None] & (o_dv < DV)[None, :])
    if C + HAS_POS + HAS_NEG > 0:
        p_maps = maps + i_b * stride_mb + i_h * stride_mh + first * stride_mn + o_n[:, None] * stride_mn + o_c[None, :]
        m_maps = m_n[:, None] & (o_c < C + HAS_POS + HAS_NEG)[None, :]
        if ACCUMULATE:
            b_maps += tl.load(p_maps, mask=m_maps, other=0.0)
        tl.store(p_maps, b_maps, mask=m_maps)


@triton.jit
def token_mass(
    b_q, m_n, k, stride_kl, weight, L, score_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """softmax(b_q k^T) @ weight, [BLOCK_N], for keys [L, D] with a softmax of their own."""
    o_l = tl.arange(0, BLOCK_L)
    b_max = tl.full([BLOCK_N], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    b_mass = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, L, BLOCK_L):
        o_t = start + o_l
        m_t = o_t < L
        # [BLOCK_N, BLOCK_L]
        b_s = scores(b_q, m_n, k + o_t[:, None] * stride_kl, m_t, score_scale, D, BLOCK_D, CHUNK_D, PRECISION, True)
        b_s = tl.where(m_t[None, :], b_s, float("-inf"))
        b_max, b_shift, b_fade = raise_maximum(b_max, b_s, False)
        b_p = tl.math.exp2(b_s - b_shift[:, None])
        # [BLOCK_L]
        b_w = tl.load(weight + o_t, mask=m_t, other=0.0)
        b_sum = b_sum * b_fade + tl.sum(b_p, axis=1)
        b_mass = b_mass * b_fade + tl.sum(b_p * b_w[None, :], axis=1)
    return b_mass / b_sum


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    maps: Tensor,
    weight: Tensor | None,
    positive: tuple[Tensor, Tensor] | None,
    negative: tuple[Tensor, Tensor] | None,
    key_mask: Tensor | None,
    scale: float,
    accumulate: bool,
    config: table.Config | None = None,
) -> None:
    """Write the output [B, H, N, Dv] and write, or add, the maps [B, H, N, C (+1) (+1)]; every last stride is 1."""
    batch, heads, rows, dim = query.shape
    length, value_dim = value.shape[2:]
    if config is None:
        arch = table.architecture(query.device)
        config = table.config("contrast_attention", arch, query.element_size() * 8, max(dim, value_dim), length)
    columns = 0 if weight is None else weight.shape[-1]
    k_pos, w_pos = positive or (key, maps)
    k_neg, w_neg = negative or (key, maps)
    grid = (triton.cdiv(rows, config["BLOCK_N"]), batch * heads)
    contrast_attention_kernel[grid](
        query, key, value, out, maps, maps if weight is None else weight, k_pos, w_pos, k_neg, w_neg,
        query if key_mask is None else key_mask,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *out.stride()[:3], *maps.stride()[:3],
        *((0, 0) if weight is None else (batch_stride(weight), weight.stride(1))),
        batch_stride(k_pos), k_pos.stride(1), k_pos.stride(2), batch_stride(w_pos),
        batch_stride(k_neg), k_neg.stride(1), k_neg.stride(2), batch_stride(w_neg),
        0 if key_mask is None else batch_stride(key_mask),
        heads, rows, length, k_pos.shape[2], k_neg.shape[2], scale * LOG2_E,
        C=columns, HAS_POS=positive is not None, HAS_NEG=negative is not None, HAS_MASK=key_mask is not None,
        ACCUMULATE=accumulate, **head_dims(dim, value_dim, query.element_size()),
        BLOCK_C=triton.next_power_of_2(max(1, columns + (positive is not None) + (negative is not None))),
        **({"PRECISION": table.dot_precision(query.device)} | config),
    )  # fmt: skip


def variants() -> list[table.Variant]:
    """Specialisations to compile ahead of time: head dims in half precision (80 runs as 128 does), and float32."""
    fixed = {"C": 2, "HAS_POS": True, "HAS_NEG": True, "HAS_MASK": False, "ACCUMULATE": True, "BLOCK_C": 4}
    maps = dict.fromkeys(("maps", "weight", "weight_pos", "weight_neg"), "fp32")
    return [
        table.Variant(
            f"contrast_attention {dtype} D={dim}",
            "contrast_attention",
            contrast_attention_kernel,
            dict.fromkeys(("q", "k", "v", "o", "k_pos", "k_neg"), dtype) | maps | {"key_mask": "i1"},
            fixed | head_dims(dim, dim, 4 if dtype == "fp32" else 2),
            bits=32 if dtype == "fp32" else 16,
            head_dim=dim,
            keys=77,
            floats=("score_scale",),
            dots=dtype != "fp32",
        )
        for dtype, dim in [
            *(("fp16", d) for d in (40, 64, 128, 160)),
            ("bf16", 64),
            ("fp32", 64),
            ("fp32", 128),
            ("fp32", 160),
        ]
    ]
