"""region_attention as one Triton kernel: an online softmax over two pieces of keys and values, read where they lie.

The stored piece is several times the fresh one where the region is small; copying the two together first, as a stock
attention call needs it, would read and write all of it once more in every layer.
"""

import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels import launch as table
from lotts.kernels.tiles import LOG2_E, batch_stride, head_dims, load_tile, query_block, raise_maximum, scores


@triton.jit
def region_attention_kernel(
    q, k, v, stored_k, stored_v, o,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_km, stride_vb, stride_vh, stride_vm,
    stride_skb, stride_skh, stride_skm, stride_svb, stride_svh, stride_svm, stride_ob, stride_oh, stride_on,
    H, N, FRESH, STORED, score_scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_D: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    i_n, i_bh = tl.program_id(0), tl.program_id(1)
    # int64: batch and head offsets of long sequences pass 2**31
    i_b, i_h = (i_bh // H).to(tl.int64), (i_bh % H).to(tl.int64)
    o_n = i_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_dv = tl.arange(0, BLOCK_DV)
    m_n = o_n < N
    p_q = q + i_b * stride_qb + i_h * stride_qh + o_n[:, None] * stride_qn
    # [BLOCK_N, BLOCK_D]
    b_q = query_block(p_q, m_n, D, BLOCK_D, CHUNK_D)

    # [BLOCK_N]
    b_max = tl.full([BLOCK_N], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    # [BLOCK_N, BLOCK_DV]
    b_o = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    b_max, b_sum, b_o = attend_piece(
        b_q, m_n, b_max, b_sum, b_o, k + i_b * stride_kb + i_h * stride_kh, v + i_b * stride_vb + i_h * stride_vh,
        FRESH, stride_km, stride_vm, score_scale, D, DV, BLOCK_D, BLOCK_DV, CHUNK_D, PRECISION, BLOCK_M,
    )  # fmt: skip
    stored_k += i_b * stride_skb + i_h * stride_skh
    stored_v += i_b * stride_svb + i_h * stride_svh
    b_max, b_sum, b_o = attend_piece(
        b_q, m_n, b_max, b_sum, b_o, stored_k, stored_v,
        STORED, stride_skm, stride_svm, score_scale, D, DV, BLOCK_D, BLOCK_DV, CHUNK_D, PRECISION, BLOCK_M,
    )  # fmt: skip
    p_o = o + i_b * stride_ob + i_h * stride_oh + o_n[:, None] * stride_on + o_dv[None, :]
    tl.store(p_o, (b_o / b_sum[:, None]).to(o.dtype.element_ty), mask=m_n[:, None] & (o_dv < DV)[None, :])


@triton.jit
def attend_piece(
    b_q, m_n, b_max, b_sum, b_o, k, v, KEYS, stride_km, stride_vm, score_scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_D: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """``KEYS`` keys and values join the running softmax, full tiles first."""
    whole = KEYS // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        b_max, b_sum, b_o = attend(
            b_q, m_n, b_max, b_sum, b_o, k, v, start, KEYS, stride_km, stride_vm, score_scale,
            D, DV, BLOCK_D, BLOCK_DV, CHUNK_D, PRECISION, BLOCK_M, False,
        )  # fmt: skip
    if whole < KEYS:
        b_max, b_sum, b_o = attend(
            b_q, m_n, b_max, b_sum, b_o, k, v, whole, KEYS, stride_km, stride_vm, score_scale,
            D, DV, BLOCK_D, BLOCK_DV, CHUNK_D, PRECISION, BLOCK_M, True,
        )  # fmt: skip
    return b_max, b_sum, b_o


@triton.jit
def attend(
    b_q, m_n, b_max, b_sum, b_o, k, v, start, KEYS, stride_km, stride_vm, score_scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_D: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """One tile of keys from ``start`` on (the last is RAGGED) joins the running softmax."""
    # [BLOCK_M]
    o_m = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
    m_m = o_m < KEYS
    # [BLOCK_N, BLOCK_M]
    b_s = scores(b_q, m_n, k + o_m[:, None] * stride_km, m_m, score_scale, D, BLOCK_D, CHUNK_D, PRECISION, RAGGED)
    if RAGGED:
        b_s = tl.where(m_m[None, :], b_s, float("-inf"))
    b_max, b_shift, b_fade = raise_maximum(b_max, b_s, False)
    b_p = tl.math.exp2(b_s - b_shift[:, None])
    b_sum = b_sum * b_fade + tl.sum(b_p, axis=1)
    # [BLOCK_M, BLOCK_DV]
    b_v = load_tile(v + o_m[:, None] * stride_vm, m_m, tl.arange(0, BLOCK_DV), DV, BLOCK_DV, RAGGED)
    b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o * b_fade[:, None], input_precision=PRECISION)
    return b_max, b_sum, b_o


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stored_key: Tensor,
    stored_value: Tensor,
    out: Tensor,
    scale: float,
    config: table.Config | None = None,
) -> None:
    """Write the output [B, H, N, Dv]; every last stride is 1."""
    batch, heads, rows, dim = query.shape
    fresh, value_dim = value.shape[2:]
    stored = stored_value.shape[2]
    if config is None:
        arch = table.architecture(query.device)
        config = table.config(
            "region_attention", arch, query.element_size() * 8, max(dim, value_dim), fresh + stored
        )  # fmt: skip
    region_attention_kernel[(table.cdiv(rows, config["BLOCK_N"]), batch * heads)](
        query, key, value, stored_key, stored_value, out,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        batch_stride(stored_key), *stored_key.stride()[1:3], batch_stride(stored_value), *stored_value.stride()[1:3],
        *out.stride()[:3], heads, rows, fresh, stored, scale * LOG2_E,
        **head_dims(dim, value_dim, query.element_size()),
        **({"PRECISION": table.dot_precision(query.device)} | config),
    )  # fmt: skip


def variants() -> list[table.Variant]:
    """Specialisations to compile ahead of time: head dims in half precision (80 runs as 128 does), and float32."""
    return [
        table.Variant(
            f"region_attention {dtype} D={dim}",
            "region_attention",
            region_attention_kernel,
            dict.fromkeys(("q", "k", "v", "stored_k", "stored_v", "o"), dtype),
            head_dims(dim, dim, 4 if dtype == "fp32" else 2),
            bits=32 if dtype == "fp32" else 16,
            head_dim=dim,
            keys=4096,
            floats=("score_scale",),
            dots=dtype != "fp32",
        )
        for dtype, dim in [
            *(("fp16", d) for d in (40, 64, 128, 160)),
            *(("bf16", d) for d in (64, 128)),
            *(("fp32", d) for d in (64, 128, 160)),
        ]
    ]
