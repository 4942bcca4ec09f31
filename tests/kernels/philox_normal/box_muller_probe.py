"""The transform alone, on words of the caller's choice."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels.philox_normal.triton import box_muller

BLOCK = 1024


@triton.jit
def probe_kernel(p_first, p_second, p_out, N, BLOCK: tl.constexpr):
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    b_first = tl.load(p_first + o_n, mask=m_n, other=0).to(tl.uint32, bitcast=True)
    b_second = tl.load(p_second + o_n, mask=m_n, other=0).to(tl.uint32, bitcast=True)
    b_cosine, b_sine = box_muller(b_first, b_second)
    tl.store(p_out + o_n, b_cosine, mask=m_n)
    tl.store(p_out + N + o_n, b_sine, mask=m_n)


def probe(first: Tensor, second: Tensor) -> Tensor:
    """[2, N] from words [N], int32."""
    out = torch.empty(2, len(first), device=first.device)
    probe_kernel[(triton.cdiv(len(first), BLOCK),)](first, second, out, len(first), BLOCK=BLOCK)
    return out
