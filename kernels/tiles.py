"""What the attention kernels share, on the device and at their launch."""

import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels.launch import next_power_of_2

#: Scores are scaled by this beside the softmax scale, so that exp2, which the hardware has, serves as exp.
LOG2_E = 1.4426950408889634


def head_dims(dim: int, value_dim: int, element_size: int) -> dict[str, int]:
    """Head dims, and the powers of two, at least 16, that hold them: what a tile and a matrix product take.

    Where a block of queries would fill the registers (float32, or more than 128 wide) scores are summed over chunks of 32.
    """
    blocks = {f"BLOCK_{name}": max(16, next_power_of_2(size)) for name, size in (("D", dim), ("DV", value_dim))}
    whole = element_size * blocks["BLOCK_D"] <= 256
    return {"D": dim, "DV": value_dim, **blocks, "CHUNK_D": blocks["BLOCK_D"] if whole else 32}


def batch_stride(tensor: Tensor) -> int:
    """Stride of the first dim, 0 where one entry serves the whole batch."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)


@triton.jit
def load_tile(p_rows, m_rows, o_cols, COLS: tl.constexpr, BLOCK_COLS: tl.constexpr, ROWS_MASKED: tl.constexpr):
    """[rows, BLOCK_COLS] from row pointers [rows, 1], zeros outside; no mask where a tile is known to be full."""
    p_tile = p_rows + o_cols[None, :]
    if ROWS_MASKED:
        return tl.load(p_tile, mask=m_rows[:, None] & (o_cols < COLS)[None, :], other=0.0)
    elif COLS != BLOCK_COLS:
        return tl.load(p_tile, mask=(o_cols < COLS)[None, :], other=0.0)
    else:
        return tl.load(p_tile)


@triton.jit
def query_block(p_q, m_n, D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr):
    """What ``scores`` takes: the queries themselves or, where they are read chunk by chunk, where they lie."""
    if CHUNK_D == BLOCK_D:
        return load_tile(p_q, m_n, tl.arange(0, BLOCK_D), D, BLOCK_D, True)
    else:
        return p_q


@triton.jit
def scores(
    b_q, m_n, p_k, m_keys, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr, PRECISION: tl.constexpr, KEYS_MASKED: tl.constexpr,
):  # fmt: skip
    """scale * Q K^T, [queries, keys], for keys with row pointers ``p_k`` [keys, 1]."""
    if CHUNK_D == BLOCK_D:
        # [keys, BLOCK_D]
        b_k = load_tile(p_k, m_keys, tl.arange(0, BLOCK_D), D, BLOCK_D, KEYS_MASKED)
        return tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale
    else:
        b_s = tl.zeros([b_q.shape[0], p_k.shape[0]], tl.float32)
        for first in range(0, D, CHUNK_D):
            o_d = first + tl.arange(0, CHUNK_D)
            # [queries, CHUNK_D], [keys, CHUNK_D]
            b_part = load_tile(b_q, m_n, o_d, D, 0, True)
            b_k = load_tile(p_k, m_keys, o_d, D, 0, True)
            b_s = tl.dot(b_part, tl.trans(b_k), b_s, input_precision=PRECISION)
        return b_s * scale


@triton.jit
def raise_maximum(b_max, b_scores, MAY_BE_EMPTY: tl.constexpr):
    """The running row maximum [rows] after ``b_scores`` [rows, keys], and what it does to earlier sums (a factor).

    Rows that have seen only masked keys have maximum -inf; they are then shifted by 0 instead, so that no NaN arises.
    """
    b_new = tl.maximum(b_max, tl.max(b_scores, axis=1))
    b_shift = b_new
    if MAY_BE_EMPTY:
        b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
    return b_new, b_shift, tl.math.exp2(b_max - b_shift)
