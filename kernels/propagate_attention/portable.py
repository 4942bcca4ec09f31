"""propagate_attention in plain torch: the columns ride through the stock attention call as extra channels of V.

torch's fused attention wants Q, K and V equally wide, so Q and K are widened with zeros, which add nothing to a score.
The attention matrix then never exists in memory, on any device where the stock call is fused.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lotts.kernels.propagate_attention.probes import Probes
from lotts.kernels.stock import stock_attention
from lotts.kernels.validate import map_dtype

# Fused attention on GPUs takes head dims that are multiples of 8 in half precision, and falls back otherwise.
_ALIGNMENT = 8

# Tokens of the context whose scores are computed once more, to tell what the sums of a softmax were.
_ANCHOR = 64


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
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if probes is None:
        out, maps = _some_rows(query, key, value, columns, key_mask, scale, *rows)
    else:
        out, maps = _joint_attention(query, key, value, columns, key_mask, probes, scale)
    return out, maps if accumulate is None else accumulate.add_(maps.detach())


def _some_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    key_mask: Tensor | None,
    scale: float,
    start: int,
    stop: int,
) -> tuple[Tensor, Tensor]:
    """The rows that make maps widened, and the others by the stock call as it is."""

    def seen_by(part: slice) -> Tensor | None:
        return key_mask if key_mask is None or len(key_mask) == 1 else key_mask[part]

    def stock(part: slice) -> Tensor:
        seen = seen_by(part)
        seen = None if seen is None else seen[:, None, None, :]
        out = stock_attention(query[part], key[part], value[part], attn_mask=seen, scale=scale)
        return out if seen is None else out.masked_fill(~seen.any(-1, keepdim=True), 0.0)

    part = slice(start, stop)
    out, maps = _attention(query[part], key[part], value[part], columns, seen_by(part), scale)
    if stop - start == len(query):
        return out, maps
    outs = [stock(slice(0, start)), out, stock(slice(stop, None))]
    # Joined as [B, N, H, Dv], the layout attention returns and the output projection reads without a copy.
    return torch.cat([rows.transpose(1, 2) for rows in outs if len(rows)]).transpose(1, 2), maps


def _joint_attention(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, key_mask: Tensor | None, probes: Probes, scale: float
) -> tuple[Tensor, Tensor]:
    """The main tokens and each group of probes by separate calls, and the masses that main rows give to the groups."""
    count, (low, high) = columns.shape[-1], probes.context

    def without_probes(tensor: Tensor, axis: int = -2) -> Tensor:
        tokens = tensor.shape[axis]
        return torch.cat(
            [tensor.narrow(axis, 0, probes.start), tensor.narrow(axis, probes.stop, tokens - probes.stop)], axis
        )

    def beside_context(tensor: Tensor, group: slice, axis: int = -2) -> Tensor:
        size = group.stop - group.start
        return torch.cat([tensor.narrow(axis, group.start, size), tensor.narrow(axis, low, high - low)], axis)

    # Two columns of our own: how much of a row's attention goes to the context, and to the few tokens that the context
    # begins with. The latter's scores are cheap to know, and so the sum over the whole context follows.
    anchor = slice(low, min(high, low + _ANCHOR))
    marks = columns.new_zeros((1, 1, key.shape[2], 2))
    marks[..., low:high, 0] = 1
    marks[..., anchor, 1] = 1
    marked = torch.cat([columns, marks.expand(*columns.shape[:2], -1, -1)], dim=-1)
    seen = None if key_mask is None else without_probes(key_mask, -1)
    main_query, main_key = without_probes(query), without_probes(key)
    main_out, main_maps = _attention(main_query, main_key, without_probes(value), without_probes(marked), seen, scale)
    shares = main_maps[..., count:]
    if value.dtype != columns.dtype:  # half precision rounds a small share away
        wide = [t.to(columns.dtype) for t in (main_query, main_key)]
        shares = _attention(
            *wide, wide[1][..., :1], without_probes(marks).expand(query.shape[0], -1, -1, -1), seen, scale
        )[1]
    context_sum = shares[..., 0].log() - shares[..., 1].log() + _log_sum(main_query, key, anchor, key_mask, scale)
    # A row that gives the context nothing has no other rival to a group.
    context_sum = context_sum.masked_fill(shares[..., 0] == 0, -torch.inf)

    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    maps = columns.new_zeros((*query.shape[:-1], count + len(probes.sizes)))
    for whole, main in ((out, main_out), (maps[..., :count], main_maps[..., :count])):
        whole[:, :, : probes.start] = main[:, :, : probes.start]
        whole[:, :, probes.stop :] = main[:, :, probes.start :]
    for index, group in enumerate(probes.groups()):
        group_sum = _log_sum(main_query, key, group, key_mask, scale)
        mass = torch.sigmoid(group_sum - context_sum).masked_fill(group_sum == -torch.inf, 0.0)
        maps[:, :, : probes.start, count + index] = mass[..., : probes.start]
        maps[:, :, probes.stop :, count + index] = mass[..., probes.start :]
        out[:, :, group], maps[:, :, group, :count] = _attention(
            query[:, :, group],
            *(beside_context(tensor, group) for tensor in (key, value, columns)),
            None if key_mask is None else beside_context(key_mask, group, -1),
            scale,
        )
    return out, maps


def _log_sum(query: Tensor, key: Tensor, tokens: slice, key_mask: Tensor | None, scale: float) -> Tensor:
    """Logarithm of the sum of the exponential scores of a few tokens, [B, H, N], at least float32."""
    work = map_dtype(query)
    scores = query.to(work) @ (key[:, :, tokens].to(work) * scale).transpose(-2, -1)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, tokens], -torch.inf)
    return scores.logsumexp(-1)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, key_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(QK^T) of V and of the columns."""
    if value.dtype == columns.dtype:
        return _widened_attention(query, key, value, columns, key_mask, scale)

    # Half precision. A softmax keeps constants, so each column travels as its deviation from its mean: the rounding of
    # probabilities and of results is then relative to that deviation, and a constant column comes back exact. Dividing
    # by the largest deviation keeps float16 from overflowing; the low half carries what the high half rounds away.
    centre = columns.mean(dim=-2, keepdim=True)
    deviation = columns - centre
    spread = deviation.abs().amax(dim=-2, keepdim=True).clamp_min(torch.finfo(columns.dtype).tiny)
    unit = deviation / spread
    high = unit.to(value.dtype)
    low = (unit - high).to(value.dtype)
    out, halves = _widened_attention(query, key, value, torch.cat([high, low], dim=-1), key_mask, scale)
    high, low = halves.to(columns.dtype).chunk(2, dim=-1)
    maps = (high + low) * spread + centre
    return out, maps if key_mask is None else maps.masked_fill(~key_mask.any(-1)[:, None, None, None], 0.0)


def _widened_attention(
    query: Tensor, key: Tensor, value: Tensor, channels: Tensor, key_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(QK^T) of V [B, H, M, Dv] and of channels [B, 1 or H, M, W], in one attention call."""
    dim, value_dim, extra = query.shape[-1], value.shape[-1], channels.shape[-1]
    width = -(-max(dim, value_dim + extra) // _ALIGNMENT) * _ALIGNMENT
    beside = F.pad(channels, (0, width - value_dim - extra)).expand(*value.shape[:-1], -1)
    seen = None if key_mask is None else key_mask[:, None, None, :]
    result = stock_attention(
        F.pad(query, (0, width - dim)),
        F.pad(key, (0, width - dim)),
        torch.cat([value, beside], dim=-1),
        attn_mask=seen,
        scale=scale,
    )
    if seen is not None:
        result = result.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return result[..., :value_dim], result[..., value_dim : value_dim + extra]
