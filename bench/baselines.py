"""The ops as a user of PyTorch would write them: every step in the dtype of the inputs, nothing fused by hand."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def contrast_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    key_pos: Tensor,
    weight_pos: Tensor,
    key_neg: Tensor,
    weight_neg: Tensor,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, D] and maps [B, H, N, C + 2]; weights [B, L, C] and [B, L]."""

    def attention(keys: Tensor) -> Tensor:
        return torch.softmax(query @ keys.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1)

    prompt = attention(key)
    maps = [prompt @ weight.to(query.dtype).unsqueeze(1)]
    for keys, weights in ((key_pos, weight_pos), (key_neg, weight_neg)):
        maps.append(attention(keys) @ weights.to(query.dtype)[:, None, :, None])
    return prompt @ value, torch.cat(maps, dim=-1)


def propagate_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    probe_sizes: Sequence[int] = (),
    probe_start: int = 0,
    context: tuple[int, int] = (0, 0),
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, D] and maps [B, H, N, C + probe groups] from columns [B, M, C]."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    masses = []
    if probe_sizes:
        position = torch.arange(key.shape[2], device=query.device)
        is_probe = (position >= probe_start) & (position < probe_start + sum(probe_sizes))
        in_context = (position >= context[0]) & (position < context[1])
        seen = ~is_probe.expand(len(position), -1)
        start = probe_start
        for size in probe_sizes:
            in_group = (position >= start) & (position < start + size)
            visible = in_group | in_context
            attention = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
            mass = attention[..., start : start + size].sum(-1, keepdim=True)
            masses.append(mass.masked_fill(is_probe[:, None], 0.0))
            seen = torch.where(in_group[:, None], visible, seen)
            start += size
        scores = scores.masked_fill(~seen, -torch.inf)
    attention = torch.softmax(scores, dim=-1)
    return attention @ value, torch.cat([attention @ columns.to(query.dtype).unsqueeze(1), *masses], dim=-1)


def region_attention(query: Tensor, key: Tensor, value: Tensor, stored_key: Tensor, stored_value: Tensor) -> Tensor:
    """Output [B, H, N, D] from fresh and stored keys and values."""
    keys, values = torch.cat([key, stored_key], dim=2), torch.cat([value, stored_value], dim=2)
    return torch.softmax(query @ keys.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1) @ values


def norm_rope(
    tokens: Tensor,
    cos: Tensor,
    sin: Tensor,
    places: Tensor,
    eps: float,
    weight: Tensor,
    prefix_weight: Tensor,
    prefix: int,
) -> Tensor:
    """Tokens [B, H, N, D], normalised and turned; the turn in float32, as diffusers has it."""
    dim = tokens.shape[-1:]
    parts = tokens[:, :, :prefix], tokens[:, :, prefix:]
    normed = [F.rms_norm(part, dim, w, eps) for part, w in zip(parts, (prefix_weight, weight), strict=True)]
    x = torch.cat(normed, dim=2)
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(-2)
    c, s = (table[places].unsqueeze(1) for table in (cos, sin))
    return (x.float() * c.float() + turned.float() * s.float()).to(tokens.dtype)


def inject_noise(
    x0: Tensor,
    mask: Tensor,
    background: Tensor,
    seeds: Tensor,
    signal: float,
    noise: float,
    drawn: Tensor | None = None,
) -> Tensor:
    """[B, K, ...] from x0 and background [B, ...] and mask [B, 1, h, w]; ``drawn`` noise [B, K, ...], or torch's own."""
    if drawn is None:
        drawn = torch.randn(*seeds.shape, *x0.shape[1:], dtype=x0.dtype, device=x0.device)
    mask = mask.to(x0.dtype).unsqueeze(1)
    return mask * (signal * x0.unsqueeze(1) + noise * drawn) + (1 - mask) * background.unsqueeze(1)


def blend_step(
    latents: Tensor,
    prediction: Tensor,
    mask: Tensor,
    background: Tensor,
    latents_factor: float,
    prediction_factor: float,
    guidance_scale: float | None = None,
) -> Tensor:
    """[B, ...] from latents and background [B, ...], prediction [B or 2B, ...] and mask [B, 1, h, w]."""
    if guidance_scale is not None:
        unconditional, conditional = prediction.chunk(2)
        prediction = unconditional + guidance_scale * (conditional - unconditional)
    x = latents_factor * latents + prediction_factor * prediction
    mask = mask.to(latents.dtype)
    return mask * x + (1 - mask) * background


def philox_normal(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """[*seeds.shape, *shape], float32; from torch's own generator, since its numbers do not come from a seed each."""
    return torch.randn(*seeds.shape, *shape, device=seeds.device)
