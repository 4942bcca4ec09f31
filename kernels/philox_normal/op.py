"""philox_normal as a PyTorch operator, so that compiled graphs, fake tensors and exporters know it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lotts.kernels.dispatch import custom_op
from lotts.kernels.launch import on_device


@custom_op("lotts::philox_normal", mutates_args=())
def philox_normal(seeds: Tensor, shape: Sequence[int], stream: int) -> Tensor:
    """[*seeds.shape, *shape], float32, by the Triton kernel."""
    # Imported at the first launch: importing lotts must not import triton.
    from lotts.kernels.philox_normal.triton import launch

    with on_device(seeds.device):
        return launch(seeds, math.prod(shape), stream).reshape((*seeds.shape, *shape))


@philox_normal.register_fake
def _(seeds: Tensor, shape: Sequence[int], stream: int) -> Tensor:
    return seeds.new_empty((*seeds.shape, *shape), dtype=torch.float32)
