"""blend_step in torch, all samples at once."""

import torch
from torch import Tensor

from lotts.kernels.blend_step.parts import Blend, Noise
from lotts.kernels.factors import Factor, broadcast
from lotts.kernels.philox_normal.portable import philox_normal


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
    shape, ndim = tuple(latents.shape[1:]), latents.ndim

    def drawn(noise: Noise) -> Tensor:
        return broadcast(noise.factor, ndim) * philox_normal(noise.seeds, shape, noise.stream).to(work)

    guided = prediction.to(work)
    if guidance_scale is not None:
        unconditional, conditional = guided.chunk(2)
        guided = unconditional + broadcast(guidance_scale, ndim) * (conditional - unconditional)
    x = broadcast(latents_factor, ndim) * latents.to(work) + broadcast(prediction_factor, ndim) * guided
    if noise is not None:
        x = x + drawn(noise)
    if blend is not None:
        weight, behind = blend.mask.to(work), blend.background.to(work)
        if blend.noise is not None:
            behind = broadcast(blend.signal, ndim) * behind + drawn(blend.noise)
        mixed = weight * x + (1 - weight) * behind
        x = torch.where(weight == 0, behind, torch.where(weight == 1, x, mixed))
    return x.to(latents.dtype)
