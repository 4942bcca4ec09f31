"""The meaning of contrast_attention, written out: every attention matrix in memory, at least float32 throughout."""

import torch
from torch import Tensor

from lotts.kernels.validate import map_dtype


def contrast_attention(
    query: Tensor, key: Tensor, value: Tensor, groups: list[tuple[Tensor, Tensor]], scale: float | None
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, Dv] and maps [B, H, N, sum of C]; ``groups`` holds (keys, weights [B or 1, L, C]) in map order."""
    work = map_dtype(query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale

    def attention(keys: Tensor) -> Tensor:
        """softmax(QK^T), [B, H, N, L]."""
        return torch.softmax(query.to(work) @ keys.to(work).transpose(-2, -1) * scale, dim=-1)

    out = (attention(key) @ value.to(work)).to(value.dtype)
    no_maps = query.new_empty((*query.shape[:-1], 0), dtype=work)
    maps = [attention(keys) @ weights.unsqueeze(1) for keys, weights in groups]
    return out, torch.cat([no_maps, *maps], dim=-1)
