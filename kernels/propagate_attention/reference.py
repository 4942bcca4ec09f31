"""The meaning of propagate_attention, written out: the whole attention matrix in memory, at least float32."""

import torch
from torch import Tensor

from lotts.kernels.propagate_attention.probes import Probes
from lotts.kernels.validate import map_dtype


def propagate_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    key_mask: Tensor | None,
    probes: Probes | None,
    scale: float | None,
    rows: tuple[int, int],
    accumulate: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, Dv] and maps [R, H, N, C + G] of ``rows`` from columns [R, 1 or H, M, C]."""
    work = map_dtype(query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query.to(work) @ key.to(work).transpose(-2, -1) * scale
    hidden = torch.zeros(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    if key_mask is not None:
        hidden = hidden | ~key_mask[:, None, None, :]

    def attention(hidden: Tensor) -> Tensor:
        """softmax of the scores that are not hidden; rows without any are 0."""
        return torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1).masked_fill(hidden, 0.0)

    masses = []
    seen = hidden
    if probes is not None:
        position = torch.arange(key.shape[2], device=query.device)
        in_context = (position >= probes.context[0]) & (position < probes.context[1])
        is_probe = (position >= probes.start) & (position < probes.stop)
        seen = hidden | is_probe
        for group in probes.groups():
            in_group = (position >= group.start) & (position < group.stop)
            mass = attention(hidden | ~(in_group | in_context))[..., group].sum(-1, keepdim=True)
            masses.append(mass.masked_fill(is_probe[:, None], 0.0))
            seen = torch.where(in_group[:, None], hidden | ~(in_group | in_context), seen)
    weights = attention(seen)
    maps = torch.cat([weights[rows[0] : rows[1]] @ columns, *masses], dim=-1)
    return (weights @ value.to(work)).to(value.dtype), maps if accumulate is None else accumulate.add_(maps.detach())
