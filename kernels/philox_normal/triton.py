"""philox_normal in Triton, and the device function with which other kernels draw the same numbers in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels import launch as table


@triton.jit
def normal_block(seed, i_block, stream, BLOCK: tl.constexpr):
    """[BLOCK]: elements from ``i_block * BLOCK`` on of the noise of one sample; BLOCK is a multiple of 4."""
    # [BLOCK // 4]
    o_call = i_block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    b_bits0, b_bits1, b_bits2, b_bits3 = tl.philox(seed, o_call, stream.to(tl.uint32), 0, 0)
    b_n0, b_n1 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(b_bits0), tl.uint_to_uniform_float(b_bits1))
    b_n2, b_n3 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(b_bits2), tl.uint_to_uniform_float(b_bits3))
    # The four numbers of a call lie side by side: a thread keeps what it made, and no shared memory is needed.
    return tl.interleave(tl.interleave(b_n0, b_n2), tl.interleave(b_n1, b_n3))


@triton.jit(do_not_specialize=["stream"])
def philox_normal_kernel(p_seeds, p_out, stream, N, blocks, BLOCK: tl.constexpr):
    """One program makes one block of one sample; seeds [samples] and the result [samples, N] are contiguous."""
    i_sample, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    # [BLOCK]
    b_noise = normal_block(tl.load(p_seeds + i_sample), i_block, stream, BLOCK)
    # int64: a sample may have up to 2**32 elements
    o_n = i_block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + i_sample.to(tl.int64) * N + o_n, b_noise, mask=o_n < N)


def launch(seeds: Tensor, count: int, stream: int, config: table.Config | None = None) -> Tensor:
    """[*seeds.shape, count], float32."""
    out = torch.empty((*seeds.shape, count), dtype=torch.float32, device=seeds.device)
    if out.numel() == 0:
        return out
    if config is None:
        config = table.config("philox_normal", table.architecture(seeds.device), 32)
    blocks = triton.cdiv(count, config["BLOCK"])
    philox_normal_kernel[(seeds.numel() * blocks,)](seeds.contiguous(), out, stream, count, blocks, **config)
    return out


def variants() -> list[table.Variant]:
    """The specialisation to compile ahead of time."""
    return [
        table.Variant(
            "philox_normal", "philox_normal", philox_normal_kernel, {"p_seeds": "i64", "p_out": "fp32"}, {}, bits=32
        )
    ]
