"""blend_step as one Triton kernel, element by element: about ten launches of eager PyTorch, each through memory, in one.

What does not take part (guidance, noise, mask, noise of the background) is None and compiled away.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lotts.kernels import launch as table
from lotts.kernels.elements import coordinates, load_factor, masked_blend, merge_dims, scaled_sum
from lotts.kernels.philox_normal.triton import normal_block

#: The factors, in the order of the lists ``numbers`` and ``each``.
FACTORS = ("latents", "prediction", "guidance", "noise", "signal", "background_noise")


@triton.jit(do_not_specialize=["stream", "background_stream"])
def blend_step_kernel(
    p_x, p_prediction, p_mask, p_background, p_seeds, p_background_seeds, p_out,
    f_latents, f_prediction, f_guidance, f_noise, f_signal, f_background_noise,
    p_latents_each, p_prediction_each, p_guidance_each, p_noise_each, p_signal_each, p_background_noise_each,
    stream, background_stream,
    stride_xb, stride_x0, stride_x1, stride_x2, stride_x3, stride_pb, stride_p0, stride_p1, stride_p2, stride_p3,
    stride_mb, stride_m0, stride_m1, stride_m2, stride_m3, stride_bb, stride_b0, stride_b1, stride_b2, stride_b3,
    stride_sb, stride_bsb, B, N, blocks, SIZE_1, SIZE_2, SIZE_3,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr, CALLS: tl.constexpr,
):  # fmt: skip
    # int64: batch offsets of large tensors pass 2**31
    i_b, i_block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    # [BLOCK]
    o_n = i_block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    o_0, o_1, o_2, o_3 = coordinates(o_n.to(tl.uint32), SIZE_1, SIZE_2, SIZE_3)

    # Guidance. [BLOCK]
    p_prediction += i_b * stride_pb
    o_p = o_0 * stride_p0 + o_1 * stride_p1 + o_2 * stride_p2 + o_3 * stride_p3
    b_prediction = tl.load(p_prediction + o_p, mask=m_n, other=0.0).to(tl.float32)
    if GUIDED:
        # The conditional rows follow the B unconditional ones.
        p_prediction += tl.cast(B, tl.int64) * stride_pb
        b_conditional = tl.load(p_prediction + o_p, mask=m_n, other=0.0).to(tl.float32)
        b_prediction = tl.fma(load_factor(p_guidance_each, f_guidance, i_b), b_conditional - b_prediction, b_prediction)

    # The sampler's update. [BLOCK]
    o_x = i_b * stride_xb + o_0 * stride_x0 + o_1 * stride_x1 + o_2 * stride_x2 + o_3 * stride_x3
    b_x = tl.load(p_x + o_x, mask=m_n, other=0.0).to(tl.float32)
    b_x = scaled_sum(
        load_factor(p_latents_each, f_latents, i_b), b_x,
        load_factor(p_prediction_each, f_prediction, i_b), b_prediction,
    )  # fmt: skip
    if p_seeds is not None:
        b_e = normal_block(tl.load(p_seeds + i_b * stride_sb), i_block, stream, BLOCK, CALLS)
        b_x = tl.fma(load_factor(p_noise_each, f_noise, i_b), b_e, b_x)

    # The blend. [BLOCK]
    if p_mask is not None:
        o_b = i_b * stride_bb + o_0 * stride_b0 + o_1 * stride_b1 + o_2 * stride_b2 + o_3 * stride_b3
        b_background = tl.load(p_background + o_b, mask=m_n, other=0.0).to(tl.float32)
        if p_background_seeds is not None:
            b_e = normal_block(tl.load(p_background_seeds + i_b * stride_bsb), i_block, background_stream, BLOCK, CALLS)
            # In inject_noise's order, so that both round alike.
            b_background = scaled_sum(
                load_factor(p_background_noise_each, f_background_noise, i_b), b_e,
                load_factor(p_signal_each, f_signal, i_b), b_background,
            )  # fmt: skip
        o_m = i_b * stride_mb + o_0 * stride_m0 + o_1 * stride_m1 + o_2 * stride_m2 + o_3 * stride_m3
        b_mask = tl.load(p_mask + o_m, mask=m_n, other=0.0).to(tl.float32)
        b_x = masked_blend(b_mask, b_x, b_background)
    tl.store(p_out + i_b * N + o_n, b_x.to(p_out.dtype.element_ty), mask=m_n)


def launch(
    latents: Tensor,
    prediction: Tensor,
    mask: Tensor | None,
    background: Tensor | None,
    seeds: Tensor | None,
    background_seeds: Tensor | None,
    numbers: Sequence[float],
    each: Sequence[Tensor | None],
    streams: Sequence[int],
    guided: bool,
    config: table.Config | None = None,
) -> Tensor:
    """[B, ...], contiguous; of the ``FACTORS``, ``each[i]`` [B] counts where it is given, else ``numbers[i]``.

    ``streams`` are those of the update's and of the background's noise.

    Raises:
        ValueError: more than four dims of a sample remain after merging.
    """
    out = torch.empty(latents.shape, dtype=latents.dtype, device=latents.device)
    if out.numel() == 0:
        return out
    if config is None:
        config = table.config("blend_step", table.architecture(latents.device), 8 * latents.element_size())
    batch = latents.shape[0]
    # Without a blend the latents stand in for the tensors that are not read.
    weight = latents if mask is None else mask.expand(latents.shape)
    behind = latents if background is None else background
    samples = (latents, prediction, weight, behind)
    sizes, strides = merge_dims(*samples)
    count = latents[0].numel()
    blocks = table.cdiv(count, config["BLOCK"])
    blend_step_kernel[(batch * blocks,)](
        latents, prediction, mask, background, seeds, background_seeds, out,
        *numbers, *(None if factor is None else factor.contiguous() for factor in each), *streams,
        *(step for sample, inner in zip(samples, strides, strict=True) for step in (sample.stride(0), *inner)),
        *(0 if keys is None else keys.stride(0) for keys in (seeds, background_seeds)),
        batch, count, blocks, *sizes[1:], GUIDED=guided, **config,
    )  # fmt: skip
    return out


def variants() -> list[table.Variant]:
    """Specialisations to compile ahead of time: latents of 128 x 128, then sizes that allow no wide loads."""
    aligned = {"N": 65536, "SIZE_2": 4, "SIZE_3": 16384}
    deterministic = {"p_seeds": None}
    replay = deterministic | {"p_background_seeds": None}
    plain = replay | {"p_mask": None, "p_background": None}
    return [
        table.Variant(
            f"blend_step {dtype}, {name}",
            "blend_step",
            blend_step_kernel,
            {**dict.fromkeys(("p_x", "p_prediction", "p_background", "p_out"), dtype), "p_mask": "fp32"}
            | dict.fromkeys(("p_seeds", "p_background_seeds"), "i64"),
            {**{f"p_{factor}_each": None for factor in FACTORS}, "GUIDED": True, "SIZE_1": 1}
            | {f"stride_{tensor}3": 1 for tensor in "xpmb"}
            | absent
            | sizes,
            bits=32 if dtype == "fp32" else 16,
            floats=tuple(f"f_{factor}" for factor in FACTORS),
        )
        for dtype, name, absent, sizes in (
            ("fp16", "no blend", plain, aligned),
            ("fp16", "replay", replay, aligned),
            ("bf16", "noised background", deterministic, aligned),
            ("fp32", "stochastic, noised background", {}, aligned),
            ("fp16", "stochastic, noised background, odd sizes", {}, {}),
        )
    ]
