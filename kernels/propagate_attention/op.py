"""The Triton form as torch.library knows it: schema, shapes without data, and what it writes to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lotts.kernels.dispatch import custom_op
from lotts.kernels.launch import on_device
from lotts.kernels.layout import output_like, unit_stride
from lotts.kernels.propagate_attention.probes import Probes


@custom_op("lotts::propagate_attention", mutates_args=("maps",))
def _propagate_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    maps: Tensor,
    key_mask: Tensor | None,
    probe_sizes: Sequence[int],
    probe_start: int,
    context_start: int,
    context_stop: int,
    scale: float,
    first_row: int,
    accumulate: bool,
) -> Tensor:
    from lotts.kernels.propagate_attention.triton import launch

    out = output_like(query, value)
    if query.numel():
        context = (context_start, context_stop)
        with on_device(query.device):
            launch(
                query, key, value, columns, out, maps, key_mask, list(probe_sizes), probe_start, context, scale,
                first_row, accumulate,
            )  # fmt: skip
    return out


@_propagate_attention.register_fake
def _(query, key, value, columns, maps, key_mask, probe_sizes, probe_start, start, stop, scale, first_row, accumulate):
    return output_like(query, value)


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
    """The implementation behind ``impl="triton"``."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    probes = probes or Probes(key.shape[2], (), (0, 0))
    maps = accumulate
    if maps is None:
        width = columns.shape[-1] + len(probes.sizes)
        maps = query.new_empty((rows[1] - rows[0], *query.shape[1:-1], width), dtype=torch.float32)
    out = _propagate_attention(
        *map(unit_stride, (query, key, value, columns)), maps, None if key_mask is None else unit_stride(key_mask),
        probes.sizes, probes.start, *probes.context, scale, rows[0], accumulate is not None,
    )  # fmt: skip
    return out, maps
