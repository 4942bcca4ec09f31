"""The meaning of inject_noise, one refinement at a time."""

import torch
from torch import Tensor

from lotts.kernels import factors
from lotts.kernels.philox_normal.reference import philox_normal


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
    result = x0.new_empty((*seeds.shape, *x0.shape[1:]))
    for b in range(seeds.shape[0]):
        a, s = factors.of_sample(signal, b), factors.of_sample(noise, b)
        for k in range(seeds.shape[1]):
            m = mask[b, min(k, mask.shape[1] - 1)].to(work)
            behind = background[b, min(k, background.shape[1] - 1)].to(work)
            noised = a * x0[b].to(work) + s * philox_normal(seeds[b, k], tuple(x0.shape[1:]), stream).to(work)
            mixed = m * noised + (1 - m) * behind
            result[b, k] = torch.where(m == 0, behind, torch.where(m == 1, noised, mixed)).to(x0.dtype)
    return result
