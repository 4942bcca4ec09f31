"""The Triton form as torch.library knows it: schema, and shapes without data."""

from torch import Tensor

from lotts.kernels.dispatch import custom_op
from lotts.kernels.launch import on_device
from lotts.kernels.layout import output_like, unit_stride


@custom_op("lotts::region_attention", mutates_args=())
def _region_attention(
    query: Tensor, key: Tensor, value: Tensor, stored_key: Tensor, stored_value: Tensor, scale: float
) -> Tensor:
    from lotts.kernels.region_attention.triton import launch

    out = output_like(query, value)
    if out.numel():
        with on_device(query.device):
            launch(query, key, value, stored_key, stored_value, out, scale)
    return out


@_region_attention.register_fake
def _(query, key, value, stored_key, stored_value, scale):
    return output_like(query, value)


def region_attention(
    query: Tensor, key: Tensor, value: Tensor, stored_key: Tensor, stored_value: Tensor, scale: float | None
) -> Tensor:
    """The implementation behind ``impl="triton"``."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _region_attention(*map(unit_stride, (query, key, value, stored_key, stored_value)), scale)
