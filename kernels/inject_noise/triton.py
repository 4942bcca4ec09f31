"""inject_noise as one Triton kernel: a block of x0 is read once and noised for all refinements of its sample.

The noise is made in registers and never in memory, which leaves reading the background and writing the result.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels import launch as table
from lotts.kernels.elements import coordinates, load_factor, merge_dims, scaled_sum
from lotts.kernels.philox_normal.triton import grid, normal_block, sample_of_program


@triton.jit(do_not_specialize=["stream"])
def inject_noise_kernel(
    p_x, p_mask, p_background, p_seeds, p_signal, p_noise, p_out, signal, noise, stream,
    stride_xb, stride_x0, stride_x1, stride_x2, stride_x3,
    stride_mb, stride_mk, stride_m0, stride_m1, stride_m2, stride_m3,
    stride_bb, stride_bk, stride_b0, stride_b1, stride_b2, stride_b3,
    stride_sb, stride_sk, B, K, N, SIZE_1, SIZE_2, SIZE_3,
    MASK_EACH: tl.constexpr, BACKGROUND_EACH: tl.constexpr,
    X_DIMS: tl.constexpr, MASK_DIMS: tl.constexpr, BACKGROUND_DIMS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK: tl.constexpr, CALLS: tl.constexpr,
):  # fmt: skip
    # int64: batch offsets of large tensors pass 2**31
    i_block, i_b = tl.program_id(0), sample_of_program().to(tl.int64)
    if i_b >= B:
        return
    # [BLOCK]
    o_n = i_block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_n = tl.full([BLOCK], True, tl.int1) if EVEN else o_n < N
    o_x = offsets(o_n, stride_x0, stride_x1, stride_x2, stride_x3, SIZE_1, SIZE_2, SIZE_3, X_DIMS)
    o_mask = offsets(o_n, stride_m0, stride_m1, stride_m2, stride_m3, SIZE_1, SIZE_2, SIZE_3, MASK_DIMS)
    o_background = offsets(o_n, stride_b0, stride_b1, stride_b2, stride_b3, SIZE_1, SIZE_2, SIZE_3, BACKGROUND_DIMS)
    p_mask += i_b * stride_mb
    p_background += i_b * stride_bb
    p_seeds += i_b * stride_sb
    p_out += i_b * K * N

    # [BLOCK]
    b_x = tl.load(p_x + i_b * stride_xb + o_x, mask=m_n, other=0.0).to(tl.float32)
    b_mask = tl.load(p_mask + o_mask, mask=m_n, other=0.0).to(tl.float32)
    b_background = tl.load(p_background + o_background, mask=m_n, other=0.0).to(tl.float32)
    signal, noise = load_factor(p_signal, signal, i_b), load_factor(p_noise, noise, i_b)
    # -0.0, by its bits, since Triton makes the literal 0.0: what leaves any number as it is when added.
    b_none = tl.full([BLOCK], -0x80000000, tl.int32).to(tl.float32, bitcast=True)
    for _ in range(K):
        # [BLOCK]
        if MASK_EACH:
            b_mask = tl.load(p_mask + o_mask, mask=m_n, other=0.0).to(tl.float32)
        if BACKGROUND_EACH:
            b_background = tl.load(p_background + o_background, mask=m_n, other=0.0).to(tl.float32)
        b_noise = normal_block(tl.load(p_seeds), i_block, stream, BLOCK, CALLS)
        b_noised = scaled_sum(noise, b_noise, signal, b_x)
        # masked_blend, so written that all but one selection leaves the loop: where the mask is 1 nothing (b_none) is added,
        # where it is 0 the outside is the background itself.
        b_outside = tl.where(b_mask == 1.0, b_none, (1.0 - b_mask) * b_background)
        b_out = tl.where(b_mask == 0.0, b_outside, tl.fma(b_mask, b_noised, b_outside))
        tl.store(p_out + o_n, b_out.to(p_out.dtype.element_ty), mask=m_n)
        p_mask += stride_mk
        p_background += stride_bk
        p_seeds += stride_sk
        p_out += N


@triton.jit
def offsets(o_n, stride_0, stride_1, stride_2, stride_3, SIZE_1, SIZE_2, SIZE_3, DIMS: tl.constexpr):
    """Where the elements of a sample lie, which has at most DIMS dims; 0 means that they lie one after the other."""
    if DIMS == 0:
        return o_n
    elif DIMS <= 2:
        size = tl.cast(SIZE_3, tl.uint32)
        o_row = o_n.to(tl.uint32) // size
        return o_row.to(tl.int64) * stride_2 + (o_n.to(tl.uint32) - o_row * size).to(tl.int64) * stride_3
    else:
        o_0, o_1, o_2, o_3 = coordinates(o_n.to(tl.uint32), SIZE_1, SIZE_2, SIZE_3)
        return o_0 * stride_0 + o_1 * stride_1 + o_2 * stride_2 + o_3 * stride_3


def launch(
    x0: Tensor,
    mask: Tensor,
    background: Tensor,
    seeds: Tensor,
    signal: float,
    signal_each: Tensor | None,
    noise: float,
    noise_each: Tensor | None,
    stream: int,
    config: table.Config | None = None,
) -> Tensor:
    """[B, K, ...], contiguous; each factor is ``*_each`` [B] where that is given, else the number.

    Raises:
        ValueError: more than four dims of a sample remain after merging.
    """
    batch, refinements = seeds.shape
    out = torch.empty((*seeds.shape, *x0.shape[1:]), dtype=x0.dtype, device=x0.device)
    if out.numel() == 0:
        return out
    mask = mask.expand(batch, mask.shape[1], *x0.shape[1:])
    sizes, strides = merge_dims(x0, mask[:, 0], background[:, 0])
    x_strides, mask_strides, background_strides = strides
    x_dims, mask_dims, background_dims = dims = [needed_dims(sizes, steps) for steps in strides]
    count = x0[0].numel()
    if config is None:
        # Where sizes allow no wide loads each element has registers of its own for its place, and a thread takes fewer.
        wide = 4 not in dims and count % 16 == 0 and (2 not in dims or sizes[-1] % 16 == 0)
        row = "inject_noise" if wide else "inject_noise_narrow"
        config = table.config(row, table.architecture(x0.device), 8 * x0.element_size())
    inject_noise_kernel[grid(table.cdiv(count, config["BLOCK"]), batch)](
        x0, mask, background, seeds,
        None if signal_each is None else signal_each.contiguous(),
        None if noise_each is None else noise_each.contiguous(),
        out, signal, noise, stream,
        x0.stride(0), *x_strides, *mask.stride()[:2], *mask_strides, *background.stride()[:2], *background_strides,
        *seeds.stride(), batch, refinements, count, *sizes[1:],
        MASK_EACH=mask.shape[1] > 1, BACKGROUND_EACH=background.shape[1] > 1,
        X_DIMS=x_dims, MASK_DIMS=mask_dims, BACKGROUND_DIMS=background_dims, EVEN=count % config["BLOCK"] == 0, **config,
    )  # fmt: skip
    return out


def needed_dims(sizes: list[int], strides: list[int]) -> int:
    """Dims by which the kernel must go through a sample: 0 where its elements lie one after the other, else 2 or 4."""
    dense = [math.prod(sizes[dim + 1 :]) for dim in range(len(sizes))]
    if all(size == 1 or step == one for size, step, one in zip(sizes, strides, dense, strict=True)):
        return 0
    return 2 if sizes[:2] == [1, 1] else 4


def variants() -> list[table.Variant]:
    """Specialisations to compile ahead of time: latents of 128 x 128, then sizes that allow no wide loads."""
    aligned = {"SIZE_1": 1, "SIZE_2": 4, "SIZE_3": 16384, "N": 65536, "EVEN": True}
    aligned |= {"X_DIMS": 0, "MASK_DIMS": 2, "BACKGROUND_DIMS": 0}
    odd = {"X_DIMS": 4, "MASK_DIMS": 4, "BACKGROUND_DIMS": 4, "EVEN": False}
    return [
        table.Variant(
            f"inject_noise {dtype}{', masks each' if each else ''}{', odd sizes' if sizes is odd else ''}",
            "inject_noise_narrow" if sizes is odd else "inject_noise",
            inject_noise_kernel,
            {**dict.fromkeys(("p_x", "p_background", "p_out"), dtype), "p_mask": "fp32", "p_seeds": "i64"},
            {"p_signal": None, "p_noise": None, "MASK_EACH": each, "BACKGROUND_EACH": each, **sizes}
            | {f"stride_{tensor}3": 1 for tensor in "xmb"},
            bits=32 if dtype == "fp32" else 16,
            floats=("signal", "noise"),
        )
        for dtype, each, sizes in (
            ("fp16", False, aligned),
            ("bf16", True, aligned),
            ("fp32", True, aligned),
            ("fp16", True, odd),
        )
    ]
