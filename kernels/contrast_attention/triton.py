"""contrast_attention as one Triton kernel: a block of queries is read once and shown to up to three prompts.

What bounds it is reading Q and writing O. So, where prompts are short, a program reads the keys and values of all of them
once, holds them in shared memory and lets block after block of queries pass, the next of which is fetched meanwhile. A prompt
of 77 tokens is then a tile of 64 keys and one of 16, and a softmax over both at once. Longer prompts pass in a loop of their
own, with a running softmax.

What it adds to plain attention are two products with the quality prompts' keys and, a weighted column, one multiplication
and addition a probability, in float32 registers.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels import launch as table
from lotts.kernels.tiles import LOG2_E, batch_stride, head_dims, load_tile, query_block, raise_maximum, scores

#: Blocks of queries that a program serves, where there are many: reading prompts then costs little, and waiting for the last
#: programs too. Where there are few, fewer: a multiprocessor has room for about so many programs, and all should have work.
SPAN, PROGRAMS = 4, 3


@triton.jit
def contrast_attention_kernel(
    q, k, v, o, maps, weight, k_pos, weight_pos, k_neg, weight_neg, key_mask,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    stride_ob, stride_oh, stride_on, stride_mb, stride_mh, stride_mn, stride_wb,
    stride_pb, stride_ph, stride_pl, stride_pwb, stride_nb, stride_nh, stride_nl, stride_nwb, stride_kmb,
    H, N, L, L_POS, L_NEG, first_row, mapped_rows, score_scale,
    C: tl.constexpr, HAS_POS: tl.constexpr, HAS_NEG: tl.constexpr, HAS_MASK: tl.constexpr, ACCUMULATE: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_C: tl.constexpr,
    CHUNK_D: tl.constexpr, PRECISION: tl.constexpr, STRIDE_WL: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    i_n, i_bh = tl.program_id(0), tl.program_id(1)
    # int64: batch and head offsets of long sequences pass 2**31
    i_b, i_h = (i_bh // H).to(tl.int64), (i_bh % H).to(tl.int64)
    # The row's place among those that make maps.
    i_r = i_b - first_row
    mapped = (i_r >= 0) & (i_r < mapped_rows)
    i_r = tl.where(mapped, i_r, 0)
    o_n, o_l, o_c = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_C)
    q += i_b * stride_qb + i_h * stride_qh
    k += i_b * stride_kb + i_h * stride_kh
    v += i_b * stride_vb + i_h * stride_vh
    o += i_b * stride_ob + i_h * stride_oh
    maps += i_r * stride_mb + i_h * stride_mh
    weight += i_r * stride_wb
    k_pos += i_r * stride_pb + i_h * stride_ph
    weight_pos += i_r * stride_pwb
    k_neg += i_r * stride_nb + i_h * stride_nh
    weight_neg += i_r * stride_nwb
    key_mask += i_b * stride_kmb

    if TAIL > 0:
        # Read here, and turned here, so that they are laid into shared memory here and not again for each block.
        # [BLOCK_D, BLOCK_L], [BLOCK_D, TAIL], and values the other way round
        b_k, b_k_tail = prompt_tiles(k, stride_kl, L, D, BLOCK_D, BLOCK_L, TAIL)
        b_k, b_k_tail = tl.trans(b_k), tl.trans(b_k_tail)
        if HAS_POS:
            b_pos, b_pos_tail = prompt_tiles(k_pos, stride_pl, L_POS, D, BLOCK_D, BLOCK_L, TAIL)
            b_pos, b_pos_tail = tl.trans(b_pos), tl.trans(b_pos_tail)
        if HAS_NEG:
            b_neg, b_neg_tail = prompt_tiles(k_neg, stride_nl, L_NEG, D, BLOCK_D, BLOCK_L, TAIL)
            b_neg, b_neg_tail = tl.trans(b_neg), tl.trans(b_neg_tail)
        b_v, b_v_tail = prompt_tiles(v, stride_vl, L, DV, BLOCK_DV, BLOCK_L, TAIL)

        for i_block in range(i_n, tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
            first = tl.cast(i_block, tl.int64) * BLOCK_N
            m_n = first + o_n < N
            # [BLOCK_N, BLOCK_D]
            b_q = query_block(q + first * stride_qn + o_n[:, None] * stride_qn, m_n, D, BLOCK_D, CHUNK_D)
            # [BLOCK_N, BLOCK_C]
            b_maps = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
            # These branches spare rows without maps the quality prompts, and keep the compiler from beginning all prompts'
            # products at once: what they take of registers would leave room for fewer programs.
            if HAS_POS:
                # [BLOCK_N]
                b_mass = tl.zeros([BLOCK_N], tl.float32)
                if mapped:
                    b_p, b_p_tail, b_sum = softmax(
                        b_q, b_pos, b_pos_tail, key_mask, L_POS, score_scale, False, PRECISION
                    )
                    b_mass = mass(b_p, b_p_tail, weight_pos, 1, L_POS) / b_sum
                b_maps = tl.where((o_c == C)[None, :], b_mass[:, None], b_maps)
            if HAS_NEG:
                b_mass = tl.zeros([BLOCK_N], tl.float32)
                if mapped:
                    b_p, b_p_tail, b_sum = softmax(
                        b_q, b_neg, b_neg_tail, key_mask, L_NEG, score_scale, False, PRECISION
                    )
                    b_mass = mass(b_p, b_p_tail, weight_neg, 1, L_NEG) / b_sum
                b_maps = tl.where((o_c == C + HAS_POS)[None, :], b_mass[:, None], b_maps)
            # [BLOCK_N, BLOCK_L], [BLOCK_N, TAIL], [BLOCK_N]
            b_p, b_p_tail, b_sum = softmax(b_q, b_k, b_k_tail, key_mask, L, score_scale, HAS_MASK, PRECISION)
            # A row that saw nothing has sum 0 and stays 0.
            b_scale = 1.0 / tl.where(b_sum > 0.0, b_sum, 1.0)
            for c in tl.static_range(C):
                b_mass = mass(b_p, b_p_tail, weight + c, STRIDE_WL, L) * b_scale
                b_maps = tl.where((o_c == c)[None, :], b_mass[:, None], b_maps)
            # [BLOCK_N, BLOCK_DV]
            b_o = tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION)
            b_o = tl.dot(b_p_tail.to(b_v.dtype), b_v_tail, b_o, input_precision=PRECISION)
            write(
                o + first * stride_on, maps + first * stride_mn, b_o * b_scale[:, None], b_maps, m_n, mapped, stride_on, stride_mn,
                DV, C + HAS_POS + HAS_NEG, ACCUMULATE,
            )  # fmt: skip
    else:
        first = i_n.to(tl.int64) * BLOCK_N
        m_n = first + o_n < N
        # [BLOCK_N, BLOCK_D]
        b_q = query_block(q + first * stride_qn + o_n[:, None] * stride_qn, m_n, D, BLOCK_D, CHUNK_D)
        o_dv = tl.arange(0, BLOCK_DV)
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
                b_w = tl.load(weight + o_t * STRIDE_WL + c, mask=m_t, other=0.0)
                b_maps = tl.where((o_c == c)[None, :], b_maps + tl.sum(b_p * b_w[None, :], axis=1)[:, None], b_maps)
        # A row that saw nothing has sum 0 and stays 0.
        b_scale = 1.0 / tl.where(b_sum > 0.0, b_sum, 1.0)
        b_o *= b_scale[:, None]
        b_maps *= b_scale[:, None]

        if HAS_POS:
            b_mass = tl.zeros([BLOCK_N], tl.float32)
            if mapped:
                b_mass = token_mass(
                    b_q, m_n, k_pos, stride_pl, weight_pos, L_POS, score_scale,
                    D, BLOCK_D, CHUNK_D, PRECISION, BLOCK_N, BLOCK_L,
                )  # fmt: skip
            b_maps = tl.where((o_c == C)[None, :], b_mass[:, None], b_maps)
        if HAS_NEG:
            b_mass = tl.zeros([BLOCK_N], tl.float32)
            if mapped:
                b_mass = token_mass(
                    b_q, m_n, k_neg, stride_nl, weight_neg, L_NEG, score_scale,
                    D, BLOCK_D, CHUNK_D, PRECISION, BLOCK_N, BLOCK_L,
                )  # fmt: skip
            b_maps = tl.where((o_c == C + HAS_POS)[None, :], b_mass[:, None], b_maps)
        write(
            o + first * stride_on, maps + first * stride_mn, b_o, b_maps, m_n, mapped, stride_on, stride_mn,
            DV, C + HAS_POS + HAS_NEG, ACCUMULATE,
        )  # fmt: skip


@triton.jit
def write(
    o, maps, b_o, b_maps, m_n, mapped, stride_on, stride_mn,
    DV: tl.constexpr, COLUMNS: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Store a block's output and, where it is ``mapped``, store or add its maps, at the rows that ``o`` and ``maps`` point to."""
    o_n, o_dv, o_c = tl.arange(0, b_o.shape[0]), tl.arange(0, b_o.shape[1]), tl.arange(0, b_maps.shape[1])
    p_o = o + o_n[:, None] * stride_on + o_dv[None, :]
    tl.store(p_o, b_o.to(o.dtype.element_ty), mask=m_n[:, None] & (o_dv < DV)[None, :])
    if COLUMNS > 0:
        p_maps = maps + o_n[:, None] * stride_mn + o_c[None, :]
        m_maps = m_n[:, None] & (o_c < tl.where(mapped, COLUMNS, 0))[None, :]
        if ACCUMULATE:
            b_maps += tl.load(p_maps, mask=m_maps, other=0.0)
        tl.store(p_maps, b_maps, mask=m_maps)


@triton.jit
def prompt_tiles(p, stride, L, COLS: tl.constexpr, BLOCK_COLS: tl.constexpr, BLOCK_L: tl.constexpr, TAIL: tl.constexpr):
    """The first BLOCK_L rows of [L, COLS], which are there, and the rest in a tile of TAIL rows, zeros after it."""
    o_l, o_tail, o_cols = tl.arange(0, BLOCK_L), BLOCK_L + tl.arange(0, TAIL), tl.arange(0, BLOCK_COLS)
    m_tail = o_tail < L
    b_head = load_tile(p + o_l[:, None] * stride, m_tail, o_cols, COLS, BLOCK_COLS, False)
    b_tail = load_tile(p + o_tail[:, None] * stride, m_tail, o_cols, COLS, BLOCK_COLS, True)
    return b_head, b_tail


@triton.jit
def softmax(b_q, b_k, b_k_tail, key_mask, L, scale, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr):
    """exp(scale * b_q (b_k, b_k_tail)), the largest of a row set to 1: two tiles of it, and the sum over both, [BLOCK_N].

    ``scale``, which has the factor for exp2, is positive: the largest is looked for before it is applied, as then the
    scaling and the shift are one instruction.
    """
    HEAD: tl.constexpr = b_k.shape[1]
    o_tail = HEAD + tl.arange(0, b_k_tail.shape[1])
    m_tail = o_tail < L
    # [BLOCK_N, HEAD], [BLOCK_N, TAIL]
    b_s = tl.dot(b_q, b_k, input_precision=PRECISION)
    b_s_tail = tl.dot(b_q, b_k_tail, input_precision=PRECISION)
    if HAS_MASK:
        m_head = tl.load(key_mask + tl.arange(0, HEAD)) != 0
        m_tail = m_tail & (tl.load(key_mask + o_tail, mask=m_tail, other=0) != 0)
        b_s = tl.where(m_head[None, :], b_s, float("-inf"))
    b_s_tail = tl.where(m_tail[None, :], b_s_tail, float("-inf"))
    # [BLOCK_N]
    b_max = tl.max(tl.maximum(tl.max(eights(b_s), axis=1), tl.max(eights(b_s_tail), axis=1)), axis=1)
    if HAS_MASK:
        # Rows that see nothing: no NaN may arise.
        b_max = tl.where(b_max == float("-inf"), 0.0, b_max)
    b_shift = b_max * scale
    b_p = tl.math.exp2(b_s * scale - b_shift[:, None])
    b_p_tail = tl.math.exp2(b_s_tail * scale - b_shift[:, None])
    return b_p, b_p_tail, row_sums(b_p, b_p_tail)


@triton.jit
def mass(b_p, b_p_tail, weight, STRIDE: tl.constexpr, L):
    """The two tiles' sums, each key weighted: [BLOCK_N]."""
    o_l = tl.arange(0, b_p.shape[1])
    o_tail = b_p.shape[1] + tl.arange(0, b_p_tail.shape[1])
    # [HEAD], [TAIL]
    b_w = tl.load(weight + o_l * STRIDE)
    b_w_tail = tl.load(weight + o_tail * STRIDE, mask=o_tail < L, other=0.0)
    return row_sums(b_p * b_w[None, :], b_p_tail * b_w_tail[None, :])


@triton.jit
def row_sums(b_head, b_tail):
    """Row sums over both tiles: threads first add up what they have, so that they exchange sums once and not once a tile."""
    return tl.sum(tl.sum(eights(b_head), axis=1) + tl.sum(eights(b_tail), axis=1), axis=1)


@triton.jit
def eights(b):
    """[rows, columns / 8, 8]: in a tensor core's result a thread has the same columns of every eight."""
    return tl.reshape(b, [b.shape[0], b.shape[1] // 8, 8])


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
    first_row: int,
    accumulate: bool,
    config: table.Config | None = None,
) -> None:
    """Write the output [B, H, N, Dv] and write, or add, the maps [R, H, N, C (+1) (+1)] of the rows from ``first_row`` on.

    Every last stride is 1.
    """
    batch, heads, rows, dim = query.shape
    length, value_dim = value.shape[2:]
    if config is None:
        arch = table.architecture(query.device)
        config = table.config("contrast_attention", arch, query.element_size() * 8, max(dim, value_dim), length)
    columns = 0 if weight is None else weight.shape[-1]
    blocks = head_dims(dim, value_dim, query.element_size())
    # A row of the table with a TAIL is for prompts that fill the first tile, and more, but not both.
    lengths = [length, *(pair[0].shape[2] for pair in (positive, negative) if pair is not None)]
    held = min(lengths) > config["BLOCK_L"] and max(lengths) <= config["BLOCK_L"] + config.get("TAIL", 0)
    config = {**config, "TAIL": config["TAIL"] if held and blocks["CHUNK_D"] == blocks["BLOCK_D"] else 0}
    if scale <= 0.0:
        # The kernel looks for the largest score before it scales.
        query, scale = (-query, -scale) if scale else (torch.zeros_like(query), 1.0)
    k_pos, w_pos = positive or (key, maps)
    k_neg, w_neg = negative or (key, maps)
    programs = table.cdiv(rows, config["BLOCK_N"])
    if config["TAIL"]:
        few = PROGRAMS * _multiprocessors(query.device) // (batch * heads)
        programs = max(table.cdiv(programs, SPAN), min(programs, few))
    contrast_attention_kernel[(programs, batch * heads)](
        query, key, value, out, maps, maps if weight is None else weight, k_pos, w_pos, k_neg, w_neg,
        query if key_mask is None else key_mask,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *out.stride()[:3], *maps.stride()[:3],
        0 if weight is None else batch_stride(weight),
        batch_stride(k_pos), k_pos.stride(1), k_pos.stride(2), batch_stride(w_pos),
        batch_stride(k_neg), k_neg.stride(1), k_neg.stride(2), batch_stride(w_neg),
        0 if key_mask is None else batch_stride(key_mask),
        heads, rows, length, k_pos.shape[2], k_neg.shape[2], first_row, len(maps), scale * LOG2_E,
        C=columns, HAS_POS=positive is not None, HAS_NEG=negative is not None, HAS_MASK=key_mask is not None,
        ACCUMULATE=accumulate, STRIDE_WL=1 if weight is None else weight.stride(1), **blocks,
        BLOCK_C=table.next_power_of_2(max(1, columns + (positive is not None) + (negative is not None))),
        **({"PRECISION": table.dot_precision(query.device)} | config),
    )  # fmt: skip


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def variants() -> list[table.Variant]:
    """Specialisations to compile ahead of time: head dims in half precision (80 runs as 128 does), and float32."""
    fixed = {"C": 2, "HAS_POS": True, "HAS_NEG": True, "HAS_MASK": False, "ACCUMULATE": True, "BLOCK_C": 4}
    # A TAIL comes from the table.
    fixed |= {"STRIDE_WL": 2, "TAIL": 0}
    maps = dict.fromkeys(("maps", "weight", "weight_pos", "weight_neg"), "fp32")
    return [
        table.Variant(
            f"contrast_attention {dtype} D={dim}{'' if keys == 77 else f' L={keys}'}",
            "contrast_attention",
            contrast_attention_kernel,
            dict.fromkeys(("q", "k", "v", "o", "k_pos", "k_neg"), dtype) | maps | {"key_mask": "i1"},
            fixed | head_dims(dim, dim, 4 if dtype == "fp32" else 2),
            bits=32 if dtype == "fp32" else 16,
            head_dim=dim,
            keys=keys,
            floats=("score_scale",),
            dots=dtype != "fp32",
        )
        for dtype, dim, keys in [
            *(("fp16", dim, 77) for dim in (40, 64, 128, 160)),
            *(("fp16", dim, 512) for dim in (64, 128)),
            ("bf16", 64, 77),
            *(("fp32", dim, 77) for dim in (64, 128, 160)),
        ]
    ]
