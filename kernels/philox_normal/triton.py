"""philox_normal in Triton, and the device function with which other kernels draw the same numbers in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels import launch as table


@triton.jit
def philox_words(seed, b_c0, c1):
    """The four words of Philox4x32-10 at counters (b_c0, c1, 0, 0), those of tl.philox.

    Both halves of a product come from one 64-bit multiplication, which GPUs have as one instruction.
    """
    seed = seed.to(tl.uint64)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    b_c0 = b_c0.to(tl.uint32)
    b_c1, b_c2 = tl.zeros_like(b_c0) + c1.to(tl.uint32), tl.zeros_like(b_c0)
    b_c3 = b_c2
    for _ in tl.static_range(10):
        b_a = b_c0.to(tl.uint64) * 0xD2511F53
        b_b = b_c2.to(tl.uint64) * 0xCD9E8D57
        b_c0, b_c2 = (b_b >> 32).to(tl.uint32) ^ b_c1 ^ k0, (b_a >> 32).to(tl.uint32) ^ b_c3 ^ k1
        b_c1, b_c3 = b_b.to(tl.uint32), b_a.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return b_c0, b_c1, b_c2, b_c3


@triton.jit
def box_muller(b_first, b_second):
    """Two standard normal numbers from two words: those of tl.pair_uniform_to_normal but for rounding.

    Library functions cost more than Philox itself, since they take any argument. Here u is in [1e-7, 1) and the angle in
    [0, 2 pi), so that short polynomials do, with no branch. Their errors are below 6e-8, and with all rounding a radius errs by
    less than 7e-7, a sine or cosine by less than 2.5e-7.
    """
    # u = 2**e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); e comes as a multiple of 2**23. Where u is near 1, e is 0 and
    # -2 log u, a multiple of f, keeps its relative precision, which the square root needs.
    b_u = tl.maximum(tl.uint_to_uniform_float(b_first), 1.0e-7).to(tl.int32, bitcast=True)
    b_e = (b_u - 0x3F3504F3) & -0x800000
    b_f = (b_u - b_e).to(tl.float32, bitcast=True) - 1.0
    b_p = tl.fma(b_f, 0.20683106811029547, -0.3308966623607358)
    b_p = tl.fma(b_f, b_p, 0.34584270877084433)
    b_p = tl.fma(b_f, b_p, -0.3969738801712468)
    b_p = tl.fma(b_f, b_p, 0.49923176288796506)
    b_p = tl.fma(b_f, b_p, -0.6667529036582661)
    b_p = tl.fma(b_f, b_p, 1.0000125511670699)
    b_p = tl.fma(b_f, b_p, -1.9999991259206136)
    b_radius = tl.sqrt(tl.fma(b_f, b_p, b_e.to(tl.float32) * -1.6525916589735634e-07))

    # The angle, less the nearest multiple q pi: sine and cosine of both differ by the sign of odd q. Adding 1.5 * 2**23 rounds
    # to an integer, and leaves it in the lowest bits. q pi is subtracted in two parts, the first of them exactly.
    b_angle = tl.uint_to_uniform_float(b_second) * 6.283185307179586
    b_q = tl.fma(b_angle, 0.3183098861837907, 12582912.0)
    b_sign = b_q.to(tl.int32, bitcast=True) << 31
    b_q -= 12582912.0
    b_t = tl.fma(b_q, 8.742277657347586e-08, tl.fma(b_q, -3.1415927410125732, b_angle))
    b_s = b_t * b_t
    b_cos = tl.fma(b_s, 2.3189033527160063e-05, -0.0013855708530172706)
    b_cos = tl.fma(b_s, b_cos, 0.041663963347673416)
    b_cos = tl.fma(b_s, b_cos, -0.4999993145465851)
    b_cos = tl.fma(b_s, b_cos, 1.0)
    b_sin = tl.fma(b_s, 2.5988488232542295e-06, -0.00019806032651104033)
    b_sin = tl.fma(b_s, b_sin, 0.008333008736371994)
    b_sin = tl.fma(b_s, b_sin, -0.16666656732559204)
    b_sin = tl.fma(b_s, b_sin, 1.0)
    b_radius = (b_radius.to(tl.int32, bitcast=True) ^ b_sign).to(tl.float32, bitcast=True)
    return b_radius * b_cos, b_radius * b_t * b_sin


@triton.jit
def normal_calls(seed, o_call, stream):
    """The four numbers of each call of Philox."""
    b_bits0, b_bits1, b_bits2, b_bits3 = philox_words(seed, o_call, stream)
    b_n0, b_n1 = box_muller(b_bits0, b_bits1)
    b_n2, b_n3 = box_muller(b_bits2, b_bits3)
    return b_n0, b_n1, b_n2, b_n3


@triton.jit
def normal_block(seed, i_block, stream, BLOCK: tl.constexpr, CALLS: tl.constexpr):
    """[BLOCK]: elements from ``i_block * BLOCK`` on of the noise of one sample; BLOCK is a multiple of 4 CALLS.

    CALLS (1 or 2) of Philox, of four numbers each, lie side by side in a thread. What is stored in half precision wants 2,
    since a thread then keeps what it made for its store of 16 bytes, and no shared memory is needed; float32 wants 1.
    """
    # [BLOCK // 4 // CALLS]
    o_call = i_block * (BLOCK // 4) + CALLS * tl.arange(0, BLOCK // 4 // CALLS)
    b_n0, b_n1, b_n2, b_n3 = normal_calls(seed, o_call, stream)
    if CALLS == 2:
        b_m0, b_m1, b_m2, b_m3 = normal_calls(seed, o_call + 1, stream)
        b_n0, b_n1 = tl.interleave(b_n0, b_m0), tl.interleave(b_n1, b_m1)
        b_n2, b_n3 = tl.interleave(b_n2, b_m2), tl.interleave(b_n3, b_m3)
    return tl.interleave(tl.interleave(b_n0, b_n2), tl.interleave(b_n1, b_n3))


#: Most programs in the second and third dim of a grid.
MOST_PROGRAMS = tl.constexpr(65535)


def grid(blocks: int, samples: int) -> tuple[int, int, int]:
    """Programs for the blocks of all samples. A dim of its own for the samples saves each thread a division."""
    return blocks, min(samples, MOST_PROGRAMS.value), table.cdiv(samples, MOST_PROGRAMS.value)


@triton.jit
def sample_of_program():
    """Of a ``grid``, which may have a few programs more than there are samples."""
    return tl.program_id(2) * MOST_PROGRAMS + tl.program_id(1)


@triton.jit(do_not_specialize=["stream"])
def philox_normal_kernel(p_seeds, p_out, stream, samples, N, BLOCK: tl.constexpr, CALLS: tl.constexpr):
    """One program makes one block of one sample; seeds [samples] and the result [samples, N] are contiguous."""
    i_block, i_sample = tl.program_id(0), sample_of_program()
    if i_sample >= samples:
        return
    # [BLOCK]
    b_noise = normal_block(tl.load(p_seeds + i_sample), i_block, stream, BLOCK, CALLS)
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
    samples = seeds.numel()
    philox_normal_kernel[grid(table.cdiv(count, config["BLOCK"]), samples)](
        seeds.contiguous(), out, stream, samples, count, **config
    )
    return out


def variants() -> list[table.Variant]:
    """Specialisations to compile ahead of time: latents of 128 x 128, then a size that allows no wide stores."""
    pointers = {"p_seeds": "i64", "p_out": "fp32"}
    return [
        table.Variant(f"philox_normal{name}", "philox_normal", philox_normal_kernel, pointers, sizes, bits=32)
        for name, sizes in (("", {"N": 65536}), (", odd sizes", {}))
    ]
