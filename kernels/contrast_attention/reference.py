"""The meaning of contrast_attention, written out: every attention matrix in memory, at least float32 throughout."""

import torch
from torch import Tensor

from lotts.kernels.validate import map_dtype


def contrast_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor | None,
    positive: tuple[Tensor, Tensor] | None,
    negative: tuple[Tensor, Tensor] | None,
    key_mask: Tensor | None,
    scale: float | None,
    rows: tuple[int, int],
    accumulate: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, Dv] and maps [R, H, N, C (+1) (+1)] of ``rows``; ``positive`` and ``negative`` are (keys, weights [R or 1, L])."""
    work = map_dtype(query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale

    def attention(keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(QK^T), [B, H, N, L]."""
        scores = query.to(work) @ keys.to(work).transpose(-2, -1) * scale
        if mask is None:
            return torch.softmax(scores, dim=-1)
        seen = mask[:, None, None, :]
        return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1).masked_fill(~seen, 0.0)

    prompt = attention(key, key_mask)
    out = (prompt @ value.to(work)).to(value.dtype)
    # From here on, the rows that make maps.
    query, prompt = query[rows[0] : rows[1]], prompt[rows[0] : rows[1]]
    maps = [query.new_empty((*query.shape[:-1], 0), dtype=work)]
    if weight is not None:
        maps.append(prompt @ weight.unsqueeze(1))
    maps += [attention(probe[0]) @ probe[1][:, None, :, None] for probe in (positive, negative) if probe is not None]
    joined = torch.cat(maps, dim=-1)
    return out, joined if accumulate is None else accumulate.add_(joined.detach())
