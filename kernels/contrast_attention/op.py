"""The Triton form as torch.library knows it: schema, shapes without data, and what it writes to."""

import torch
from torch import Tensor

from lotts.kernels.dispatch import custom_op
from lotts.kernels.launch import on_device
from lotts.kernels.layout import output_like, unit_stride


@custom_op("lotts::contrast_attention", mutates_args=("maps",))
def _contrast_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    maps: Tensor,
    weight: Tensor | None,
    key_pos: Tensor | None,
    weight_pos: Tensor | None,
    key_neg: Tensor | None,
    weight_neg: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
    first_row: int,
    accumulate: bool,
) -> Tensor:
    from lotts.kernels.contrast_attention.triton import launch

    out = output_like(query, value)
    positive = None if key_pos is None or weight_pos is None else (key_pos, weight_pos)
    negative = None if key_neg is None or weight_neg is None else (key_neg, weight_neg)
    if query.numel():
        with on_device(query.device):
            launch(query, key, value, out, maps, weight, positive, negative, key_mask, scale, first_row, accumulate)
    return out


@_contrast_attention.register_fake
def _(
    query, key, value, maps, weight, key_pos, weight_pos, key_neg, weight_neg, key_mask, scale, first_row, accumulate
):
    return output_like(query, value)


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
    """The implementation behind ``impl="triton"``."""
    columns = (0 if weight is None else weight.shape[-1]) + int(positive is not None) + int(negative is not None)
    maps = accumulate
    if maps is None:
        maps = query.new_empty((rows[1] - rows[0], *query.shape[1:-1], columns), dtype=torch.float32)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    pairs = [None if pair is None else tuple(map(unit_stride, pair)) for pair in (positive, negative)]
    (key_pos, weight_pos), (key_neg, weight_neg) = (pair or (None, None) for pair in pairs)
    out = _contrast_attention(
        *map(unit_stride, (query, key, value)), maps, None if weight is None else unit_stride(weight),
        key_pos, weight_pos, key_neg, weight_neg, None if key_mask is None else unit_stride(key_mask), scale,
        rows[0], accumulate is not None,
    )  # fmt: skip
    return out, maps
