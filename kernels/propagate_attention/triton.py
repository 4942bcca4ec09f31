"""propagate_attention in Triton: flash attention in which a few columns ride beside V.

The columns W and, as one more column, ones form a second, narrow operand of the same probabilities: softmax(QK^T) W comes out
next to the output, and the ones bring the softmax's denominator out of the tensor cores too. In half precision each column
rides as the part that bfloat16 (float16) keeps and what that leaves over, so columns keep about 16 (22) bits; and because
the denominator sums the very probabilities that weigh the columns, a constant column comes back constant. A small kernel lays
this operand out first: made anew for each block of queries, in registers, it took three times as long as all the rest.

In the joint form the sequence holds main tokens and, in one gap among them, groups of probe tokens. Main tokens attend to
main tokens as if there were no gap; a group attends to itself and to the context (the image). Keys are counted without the
gap, so in tiles of one size the main tokens' results are the same with probes and without, bit for bit.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels import launch as table
from lotts.kernels.propagate_attention.columns import column_blocks, lay_columns, lay_columns_kernel
from lotts.kernels.tiles import LOG2_E, batch_stride, head_dims, load_tile, query_block, raise_maximum, scores


@triton.jit
def propagate_attention_kernel(
    q, k, v, w, unit, o, maps, key_mask, bounds,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_km, stride_vb, stride_vh, stride_vm,
    stride_wb, stride_wh, stride_ob, stride_oh, stride_on, stride_pb, stride_ph, stride_pn, stride_kmb,
    H, N, M, first_row, mapped_rows, gap, gap_size, context_start, context_stop, main_blocks, blocks_per_group, score_scale,
    C: tl.constexpr, GROUPS: tl.constexpr, HAS_MASK: tl.constexpr, ACCUMULATE: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    CHUNK_D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    i_n, i_bh = tl.program_id(0), tl.program_id(1)
    # int64: batch and head offsets of long sequences pass 2**31
    i_b, i_h = (i_bh // H).to(tl.int64), (i_bh % H).to(tl.int64)
    # Of the rows that make no maps, the maps are those of the first that does, and not kept.
    i_r = i_b - first_row
    m_r = (i_r >= 0) & (i_r < mapped_rows)
    i_r = tl.where(m_r, i_r, 0)
    o_n, o_m = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    o_dv, o_c = tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_C)

    # Rows and keys of this program, each in two runs: positions below `split` lie from `head` on, the others from `tail` on.
    # [BLOCK_N]
    o_row = i_n * BLOCK_N + o_n
    rows, keys = N, M
    is_main = True
    if GROUPS > 0:
        is_main = i_n < main_blocks
        i_group = tl.where(is_main, 0, (i_n - main_blocks) // blocks_per_group)
        group_start, group_stop = tl.load(bounds + i_group), tl.load(bounds + i_group + 1)
        o_row -= tl.where(is_main, 0, (main_blocks + i_group * blocks_per_group) * BLOCK_N)
        rows = tl.where(is_main, N - gap_size, group_stop - group_start)
        keys = tl.where(is_main, M - gap_size, group_stop - group_start + context_stop - context_start)
        head = tl.where(is_main, 0, group_start)
        split = tl.where(is_main, gap, group_stop - group_start)
        tail = tl.where(is_main, gap + gap_size, context_start)
        # The context, in main positions.
        past_gap = tl.where(context_start >= gap + gap_size, gap_size, 0)
        seen_start, seen_stop = context_start - past_gap, context_stop - past_gap
        m_n = o_row < rows
        o_row = tl.where(is_main, tl.where(o_row < gap, o_row, o_row + gap_size), group_start + o_row)
    else:
        m_n = o_row < rows
        head, split, tail, seen_start, seen_stop = 0, 0, 0, 0, 0

    o_row = o_row.to(tl.int64)
    p_q = q + i_b * stride_qb + i_h * stride_qh + o_row[:, None] * stride_qn
    # [BLOCK_N, BLOCK_D]
    b_q = query_block(p_q, m_n, D, BLOCK_D, CHUNK_D)
    k += i_b * stride_kb + i_h * stride_kh
    v += i_b * stride_vb + i_h * stride_vh
    o_w = tl.arange(0, BLOCK_W)
    i_w = i_r * stride_wb + i_h * stride_wh
    w += i_w * M * BLOCK_W
    key_mask += i_b * stride_kmb

    # [BLOCK_N]
    b_max = tl.full([BLOCK_N], float("-inf"), tl.float32)
    b_seen = tl.zeros([BLOCK_N], tl.float32)
    # [BLOCK_N, BLOCK_DV], [BLOCK_N, BLOCK_W]
    b_o = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    b_w = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
    whole = keys // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        b_max, b_seen, b_o, b_w = attend(
            b_q, m_n, b_max, b_seen, b_o, b_w, k, v, w, key_mask, start, o_m, keys, head, split, tail, seen_start, seen_stop,
            stride_km, stride_vm, score_scale, o_dv, o_w,
            GROUPS, HAS_MASK, D, DV, BLOCK_D, BLOCK_DV, CHUNK_D, PRECISION, BLOCK_W, False,
        )  # fmt: skip
    if whole < keys:
        b_max, b_seen, b_o, b_w = attend(
            b_q, m_n, b_max, b_seen, b_o, b_w, k, v, w, key_mask, whole, o_m, keys, head, split, tail, seen_start, seen_stop,
            stride_km, stride_vm, score_scale, o_dv, o_w,
            GROUPS, HAS_MASK, D, DV, BLOCK_D, BLOCK_DV, CHUNK_D, PRECISION, BLOCK_W, True,
        )  # fmt: skip

    if unit is not None:
        b_w *= tl.load(unit + i_w * BLOCK_W + o_w)[None, :]
    # A column's halves lie side by side; the ones are column C.
    # [BLOCK_N, BLOCK_C]
    b_maps = tl.sum(tl.reshape(b_w, [BLOCK_N, BLOCK_C, BLOCK_W // BLOCK_C]), axis=2)
    b_sum = tl.sum(tl.where((o_c == C)[None, :], b_maps, 0.0), axis=1)
    # A row that saw nothing has sum 0 and stays 0.
    b_scale = 1.0 / tl.where(b_sum > 0.0, b_sum, 1.0)
    b_maps *= b_scale[:, None]
    p_o = o + i_b * stride_ob + i_h * stride_oh + o_row[:, None] * stride_on + o_dv[None, :]
    tl.store(p_o, (b_o * b_scale[:, None]).to(o.dtype.element_ty), mask=m_n[:, None] & (o_dv < DV)[None, :])

    for i_g in tl.static_range(GROUPS):
        # What a main row would give to this group, were its only rival the context: a ratio of two sums of exponentials,
        # taken in the log domain, so that it is exact however small. (The context's own sum is one below the row's maximum.)
        group_start, group_stop = tl.load(bounds + i_g), tl.load(bounds + i_g + 1)
        b_top, b_group = group_sum(
            b_q, m_n, k, key_mask, stride_km, group_start, group_stop, score_scale,
            HAS_MASK, D, BLOCK_D, CHUNK_D, PRECISION, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        b_rival = b_max + tl.math.log2(b_seen) - b_top - tl.math.log2(b_group)
        b_mass = tl.where(is_main & (b_group > 0.0), 1.0 / (1.0 + tl.math.exp2(b_rival)), 0.0)
        b_maps = tl.where((o_c == C + i_g)[None, :], b_mass[:, None], b_maps)

    p_maps = maps + i_r * stride_pb + i_h * stride_ph + o_row[:, None] * stride_pn + o_c[None, :]
    m_maps = m_n[:, None] & (o_c < tl.where(m_r, C + GROUPS, 0))[None, :]
    if ACCUMULATE:
        b_maps += tl.load(p_maps, mask=m_maps, other=0.0)
    tl.store(p_maps, b_maps, mask=m_maps)


@triton.jit
def attend(
    b_q, m_n, b_max, b_seen, b_o, b_w, k, v, w, key_mask, start, o_m, keys, head, split, tail, seen_start, seen_stop,
    stride_km, stride_vm, score_scale, o_dv, o_w,
    GROUPS: tl.constexpr, HAS_MASK: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_W: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """One tile of keys from position ``start`` on (the last tile is RAGGED) joins the running softmax."""
    # [BLOCK_M]
    o_key = start + o_m
    m_m = o_key < keys
    # Where the tile's first key lies, which is a number, and the others from there: in a loop only the number changes.
    first, o_at = start, o_m.to(tl.int64)
    if GROUPS > 0:
        # A tile that begins in the first run may pass into the second.
        first = tl.where(start < split, head + start, tail + start - split)
        o_at += tl.where((start < split) & (o_key >= split), tail - split - head, 0)
    first = tl.cast(first, tl.int64)
    # [BLOCK_N, BLOCK_M]
    b_s = scores(
        b_q, m_n, k + first * stride_km + o_at[:, None] * stride_km, m_m, score_scale,
        D, BLOCK_D, CHUNK_D, PRECISION, RAGGED,
    )  # fmt: skip
    # [BLOCK_M, BLOCK_DV]
    b_v = load_tile(v + first * stride_vm + o_at[:, None] * stride_vm, m_m, o_dv, DV, BLOCK_DV, RAGGED)
    if HAS_MASK:
        m_seen = m_m & (tl.load(key_mask + first + o_at, mask=m_m, other=0) != 0)
        b_s = tl.where(m_seen[None, :], b_s, float("-inf"))
    elif RAGGED:
        b_s = tl.where(m_m[None, :], b_s, float("-inf"))
    b_max, b_shift, b_fade = raise_maximum(b_max, b_s, HAS_MASK)
    b_p = tl.math.exp2(b_s - b_shift[:, None])
    if GROUPS > 0:
        # A product, which becomes one fused multiplication and addition.
        b_context = tl.where((o_key >= seen_start) & (o_key < seen_stop), 1.0, 0.0)
        b_seen = b_seen * b_fade + tl.sum(b_p * b_context[None, :], axis=1)
    b_p = b_p.to(b_v.dtype)
    # [BLOCK_M, BLOCK_W]. Loaded before V's product: afterwards the last tile's would take V's place in shared memory, and there
    # ptxas 12.8 gives them wrong descriptors (docs/kernels.md).
    b_column = load_tile(w + first * BLOCK_W + o_at[:, None] * BLOCK_W, m_m, o_w, BLOCK_W, BLOCK_W, RAGGED)
    b_o = tl.dot(b_p, b_v, b_o * b_fade[:, None], input_precision=PRECISION)
    b_w = tl.dot(b_p, b_column, b_w * b_fade[:, None], input_precision=PRECISION)
    return b_max, b_seen, b_o, b_w


@triton.jit
def group_sum(
    b_q, m_n, k, key_mask, stride_km, start, stop, score_scale,
    HAS_MASK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Maximum [BLOCK_N] of the scores of keys ``start`` to ``stop`` that are not hidden, and the sum of their exponentials below it.

    Of no key: 0 and 0.
    """
    o_m = tl.arange(0, BLOCK_M)
    b_max = tl.full([BLOCK_N], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    for first in range(start, stop, BLOCK_M):
        o_at = first + o_m
        m_m = o_at < stop
        # [BLOCK_N, BLOCK_M]
        p_k = k + o_at.to(tl.int64)[:, None] * stride_km
        b_s = scores(b_q, m_n, p_k, m_m, score_scale, D, BLOCK_D, CHUNK_D, PRECISION, True)
        if HAS_MASK:
            m_m &= tl.load(key_mask + o_at, mask=m_m, other=0) != 0
        b_s = tl.where(m_m[None, :], b_s, float("-inf"))
        b_max, b_shift, b_fade = raise_maximum(b_max, b_s, HAS_MASK)
        b_sum = b_sum * b_fade + tl.sum(tl.math.exp2(b_s - b_shift[:, None]), axis=1)
    return tl.where(b_max == float("-inf"), 0.0, b_max), b_sum


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    out: Tensor,
    maps: Tensor,
    key_mask: Tensor | None,
    probe_sizes: list[int],
    probe_start: int,
    context: tuple[int, int],
    scale: float,
    first_row: int,
    accumulate: bool,
    config: table.Config | None = None,
) -> None:
    """Write the output [B, H, N, Dv] and write, or add, the maps [R, H, N, C + G] of the rows from ``first_row`` on.

    Every last stride is 1.
    """
    batch, heads, rows, dim = query.shape
    keys, value_dim = value.shape[2:]
    count, groups, probes = columns.shape[-1], len(probe_sizes), sum(probe_sizes)
    beside_v = column_blocks(count, groups, query.element_size())
    if config is None:
        row = _table_row(groups, beside_v)
        arch = table.architecture(query.device)
        config = table.config(row, arch, query.element_size() * 8, max(dim, value_dim), keys)
    main_blocks = table.cdiv(rows - probes, config["BLOCK_N"])
    blocks_per_group = table.cdiv(max(probe_sizes, default=0), config["BLOCK_N"])
    bounds = _bounds(probe_start, tuple(probe_sizes), query.device) if groups else key
    halves, unit = lay_columns(columns, query.dtype, probe_start, probes, beside_v)
    propagate_attention_kernel[(main_blocks + groups * blocks_per_group, batch * heads)](
        query, key, value, halves, unit, out, maps, key if key_mask is None else key_mask, bounds,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        0 if len(halves) == 1 else halves.shape[1], int(halves.shape[1] != 1),
        *out.stride()[:3], *maps.stride()[:3], 0 if key_mask is None else batch_stride(key_mask),
        heads, rows, keys, first_row, len(maps), probe_start, probes, *context, main_blocks, max(1, blocks_per_group), scale * LOG2_E,
        C=count, GROUPS=groups, HAS_MASK=key_mask is not None, ACCUMULATE=accumulate,
        **head_dims(dim, value_dim, query.element_size()),
        **beside_v,
        **({"PRECISION": table.dot_precision(query.device)} | config),
    )  # fmt: skip


@functools.cache  # a few words each, and a captured graph goes on reading them
def _bounds(start: int, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Where the probe groups begin, and where the last one ends. Kept: a copy to the device cannot be part of a CUDA graph."""
    ends = [start]
    for size in sizes:
        ends.append(ends[-1] + size)
    return torch.tensor(ends, dtype=torch.int32, device=device)


def _table_row(groups: int, beside_v: dict[str, int]) -> str:
    """Probes and many columns take registers, so they have launch configurations of their own."""
    return "propagate_attention_wide" if groups or beside_v["BLOCK_W"] > 16 else "propagate_attention"


def variants() -> list[table.Variant]:
    """Specialisations to compile ahead of time: head dims in half precision (80 runs as 128 does), float32, the joint form, and
    what lays the columns out."""
    half = [("fp16", d, 2, 0) for d in (40, 64, 128, 160)]
    joint = [("bf16", 64, 2, 2), ("bf16", 128, 2, 2)]
    single = [("fp32", d, 2, 0) for d in (64, 128, 160)]
    found = []
    for dtype, dim, columns, groups in [*half, ("bf16", 64, 16, 0), *joint, *single]:
        size = 4 if dtype == "fp32" else 2
        blocks = column_blocks(columns, groups, size)
        scaled = {"unit": "fp32"} if dtype == "fp16" else {}
        fixed = {} if scaled else {"unit": None}
        name = f"{dtype} D={dim} C={columns}{' joint' if groups else ''}"
        found.append(
            table.Variant(
                f"propagate_attention {name}",
                _table_row(groups, blocks),
                propagate_attention_kernel,
                dict.fromkeys("qkvwo", dtype) | {"maps": "fp32", "key_mask": "i1", "bounds": "i32"} | scaled,
                {"C": columns, "GROUPS": groups, "HAS_MASK": False, "ACCUMULATE": True}
                | fixed
                | head_dims(dim, dim, size)
                | blocks,
                bits=8 * size,
                head_dim=dim,
                keys=4096,
                floats=("score_scale",),
                dots=size == 2,
            )
        )
        if dim == 64:
            found.append(
                table.Variant(
                    f"lay_columns {name}",
                    "lay_columns",
                    lay_columns_kernel,
                    {"w": "fp32", "halves": dtype} | scaled,
                    {"C": columns} | fixed | blocks,
                    bits=8 * size,
                )
            )
    return found
