"""inject_noise as one Triton kernel: a block of x0 is read once and noised for all refinements of its sample.

The noise is made in registers and never in memory, which leaves reading the background and writing the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels import launch as table
from lotts.kernels.elements import coordinates, load_factor, masked_blend, merge_dims, scaled_sum
from lotts.kernels.philox_normal.triton import normal_block


@triton.jit(do_not_specialize=["stream"])
def inject_noise_kernel(
    p_x, p_mask, p_background, p_seeds, p_signal, p_noise, p_out, signal, noise, stream,
    stride_xb, stride_x0, stride_x1, stride_x2, stride_x3,
    stride_mb, stride_mk, stride_m0, stride_m1, stride_m2, stride_m3,
    stride_bb, stride_bk, stride_b0, stride_b1, stride_b2, stride_b3,
    stride_sb, stride_sk, K, N, blocks, SIZE_1, SIZE_2, SIZE_3,
    MASK_EACH: tl.constexpr, BACKGROUND_EACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # int64: batch offsets of large tensors pass 2**31
    i_b, i_block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    # [BLOCK]
    o_n = i_block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    o_0, o_1, o_2, o_3 = coordinates(o_n.to(tl.uint32), SIZE_1, SIZE_2, SIZE_3)
    o_x = o_0 * stride_x0 + o_1 * stride_x1 + o_2 * stride_x2 + o_3 * stride_x3
    o_mask = o_0 * stride_m0 + o_1 * stride_m1 + o_2 * stride_m2 + o_3 * stride_m3
    o_background = o_0 * stride_b0 + o_1 * stride_b1 + o_2 * stride_b2 + o_3 * stride_b3
    p_mask += i_b * stride_mb
    p_background += i_b * stride_bb
    p_seeds += i_b * stride_sb
    p_out += i_b * K * N

    # [BLOCK]
    b_x = tl.load(p_x + i_b * stride_xb + o_x, mask=m_n, other=0.0).to(tl.float32)
    b_mask = tl.load(p_mask + o_mask, mask=m_n, other=0.0).to(tl.float32)
    b_background = tl.load(p_background + o_background, mask=m_n, other=0.0).to(tl.float32)
    signal, noise = load_factor(p_signal, signal, i_b), load_factor(p_noise, noise, i_b)
    for _ in range(K):
        # [BLOCK]
        if MASK_EACH:
            b_mask = tl.load(p_mask + o_mask, mask=m_n, other=0.0).to(tl.float32)
        if BACKGROUND_EACH:
            b_background = tl.load(p_background + o_background, mask=m_n, other=0.0).to(tl.float32)
        b_noised = scaled_sum(signal, b_x, noise, normal_block(tl.load(p_seeds), i_block, stream, BLOCK))
        b_out = masked_blend(b_mask, b_noised, b_background)
        tl.store(p_out + o_n, b_out.to(p_out.dtype.element_ty), mask=m_n)
        p_mask += stride_mk
        p_background += stride_bk
        p_seeds += stride_sk
        p_out += N


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
    if config is None:
        config = table.config("inject_noise", table.architecture(x0.device), 8 * x0.element_size())
    mask = mask.expand(batch, mask.shape[1], *x0.shape[1:])
    sizes, (x_strides, mask_strides, background_strides) = merge_dims(x0, mask[:, 0], background[:, 0])
    count = x0[0].numel()
    blocks = triton.cdiv(count, config["BLOCK"])
    inject_noise_kernel[(batch * blocks,)](
        x0, mask, background, seeds,
        None if signal_each is None else signal_each.contiguous(),
        None if noise_each is None else noise_each.contiguous(),
        out, signal, noise, stream,
        x0.stride(0), *x_strides, *mask.stride()[:2], *mask_strides, *background.stride()[:2], *background_strides,
        *seeds.stride(), refinements, count, blocks, *sizes[1:],
        MASK_EACH=mask.shape[1] > 1, BACKGROUND_EACH=background.shape[1] > 1, **config,
    )  # fmt: skip
    return out


def variants() -> list[table.Variant]:
    """Specialisations to compile ahead of time: latents of 128 x 128, then sizes that allow no wide loads."""
    aligned = {"N": 65536, "SIZE_2": 4, "SIZE_3": 16384}
    return [
        table.Variant(
            f"inject_noise {dtype}{', masks each' if each else ''}{'' if sizes else ', odd sizes'}",
            "inject_noise",
            inject_noise_kernel,
            {**dict.fromkeys(("p_x", "p_background", "p_out"), dtype), "p_mask": "fp32", "p_seeds": "i64"},
            {"p_signal": None, "p_noise": None, "MASK_EACH": each, "BACKGROUND_EACH": each, "SIZE_1": 1, **sizes}
            | {f"stride_{tensor}3": 1 for tensor in "xmb"},
            bits=32 if dtype == "fp32" else 16,
            floats=("signal", "noise"),
        )
        for dtype, each, sizes in (
            ("fp16", False, aligned),
            ("bf16", True, aligned),
            ("fp32", True, aligned),
            ("fp16", True, {}),
        )
    ]
