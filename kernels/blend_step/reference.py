"""The meaning of blend_step, one sample at a time."""

import torch
from torch import Tensor

from lotts.kernels.blend_step.parts import Blend, Noise
from lotts.kernels.factors import Factor, of_sample
from lotts.kernels.philox_normal.reference import philox_normal


def blend_step(
    latents: Tensor,
    prediction: Tensor,
    latents_factor: Factor,
    prediction_factor: Factor,
    guidance_scale: Factor | None,
    noise: Noise | None,
    blend: Blend | None,
) -> Tensor:
    """[B, ...] from latents [B, ...] and prediction [B or 2B, ...]; factors are numbers or [B]."""
    work = torch.promote_types(latents.dtype, torch.float32)
    batch, shape = latents.shape[0], tuple(latents.shape[1:])

    def drawn(b: int, noise: Noise) -> Tensor:
        return of_sample(noise.factor, b) * philox_normal(noise.seeds[b], shape, noise.stream).to(work)

    result = latents.new_empty(latents.shape)
    for b in range(batch):
        guided = prediction[b].to(work)
        if guidance_scale is not None:
            guided = guided + of_sample(guidance_scale, b) * (prediction[batch + b].to(work) - guided)
        x = of_sample(latents_factor, b) * latents[b].to(work) + of_sample(prediction_factor, b) * guided
        if noise is not None:
            x = x + drawn(b, noise)
        if blend is not None:
            behind = blend.background[b].to(work)
            if blend.noise is not None:
                behind = of_sample(blend.signal, b) * behind + drawn(b, blend.noise)
            m = blend.mask[min(b, blend.mask.shape[0] - 1)].to(work)
            x = torch.where(m == 0, behind, torch.where(m == 1, x, m * x + (1 - m) * behind))
        result[b] = x.to(latents.dtype)
    return result
