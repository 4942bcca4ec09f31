"""What rides beside V in propagate_attention: how wide it is, and the kernel that lays it out."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels import launch as table


def column_blocks(columns: int, groups: int, element_size: int) -> dict[str, int]:
    """Widths of the tile of columns and of the tile of maps: both hold the columns, the ones and the groups' masses."""
    width = table.next_power_of_2(columns + max(1, groups))
    split = 1 if element_size == 4 else 2
    # 16 columns are the least that a tensor core takes.
    width = max(width, 16 // split)
    return {"BLOCK_W": width * split, "BLOCK_C": width}


@triton.jit
def lay_columns_kernel(
    w, halves, unit, stride_wb, stride_wh, stride_wm, H, M, gap, gap_size,
    C: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One tile of ``halves`` [M, BLOCK_W]: columns 0, 1, ..., C - 1 and ones, each once or, in half precision, as two halves."""
    i_m, i_w = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_w = tl.arange(0, BLOCK_W)
    o_column = o_w // (BLOCK_W // BLOCK_C)
    w += i_w // H * stride_wb + i_w % H * stride_wh + o_column[None, :]
    # [BLOCK_W]
    b_unit = tl.full([BLOCK_W], 1.0, tl.float32)
    if unit is not None:
        # float16 has too few exponents for any float32 column: each is scaled by its largest entry, the probes' left out.
        b_most = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
        for start in range(0, M, BLOCK_M):
            o_m = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
            m_m = (o_m < M) & ((o_m < gap) | (o_m >= gap + gap_size))
            b_w = tl.load(w + o_m[:, None] * stride_wm, mask=m_m[:, None] & (o_column < C)[None, :], other=0.0)
            b_most = tl.maximum(b_most, tl.abs(b_w))
        b_most = tl.max(b_most, axis=0)
        b_unit = tl.where(b_most > 0.0, b_most, 1.0)
        if i_m == 0:
            tl.store(unit + i_w * BLOCK_W + o_w, b_unit)
    o_m = i_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = (o_m < M)[:, None]
    # [BLOCK_M, BLOCK_W]
    b_w = tl.load(w + o_m[:, None] * stride_wm, mask=m_m & (o_column < C)[None, :], other=0.0) / b_unit[None, :]
    b_w = tl.where((o_column == C)[None, :], 1.0, b_w)
    b_high = b_w.to(halves.dtype.element_ty)
    if BLOCK_W != BLOCK_C:
        b_low = (b_w - b_high.to(tl.float32)).to(halves.dtype.element_ty)
        b_high = tl.where((o_w % 2 == 0)[None, :], b_high, b_low)
    tl.store(halves + (i_w * M + o_m)[:, None] * BLOCK_W + o_w[None, :], b_high, mask=m_m)


def lay_columns(
    columns: Tensor, dtype: torch.dtype, gap: int, gap_size: int, blocks: dict[str, int]
) -> tuple[Tensor, Tensor | None]:
    """The operand beside V, [1 or B, 1 or H, M, BLOCK_W], and what multiplies its products again, or None for one."""
    batch, heads, keys, count = columns.shape
    width = blocks["BLOCK_W"]
    config = table.config("lay_columns", table.architecture(columns.device), 8 * dtype.itemsize)
    halves = torch.empty(batch, heads, keys, width, dtype=dtype, device=columns.device)
    unit = torch.empty(batch, heads, width, device=columns.device) if dtype == torch.float16 else None
    lay_columns_kernel[(table.cdiv(keys, config["BLOCK_M"]), batch * heads)](
        columns, halves, unit, *columns.stride()[:3], heads, keys, gap, gap_size,
        C=count, **blocks, **config,
    )  # fmt: skip
    return halves, unit
