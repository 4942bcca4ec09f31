"""inject_noise in torch, all refinements at once."""

import torch
from torch import Tensor

from lotts.kernels import factors
from lotts.kernels.philox_normal.portable import philox_normal


def inject_noise(
    x0: Tensor,
    mask: Tensor,
    background: Tensor,
    seeds: Tensor,
    signal: factors.Factor,
    noise: factors.Factor,
    stream: int,
) -> Tensor:
    """[B, K, ...] from x0 [B, ...], mask and background [B, 1 or K, ...]; factors are numbers or [B]."""
    work = torch.promote_types(x0.dtype, torch.float32)
    normal = philox_normal(seeds, tuple(x0.shape[1:]), stream).to(work)
    signal, noise = factors.broadcast(signal, x0.ndim + 1), factors.broadcast(noise, x0.ndim + 1)
    noised = signal * x0.to(work).unsqueeze(1) + noise * normal
    weight, behind = mask.to(work), background.to(work)
    # lerp would be one operation, but gives neither end exactly when the other is infinite.
    mixed = weight * noised + (1 - weight) * behind
    return torch.where(weight == 0, behind, torch.where(weight == 1, noised, mixed)).to(x0.dtype)
