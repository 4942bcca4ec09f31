"""inject_noise as a PyTorch operator, so that compiled graphs, fake tensors and exporters know it."""

from torch import Tensor

from lotts.kernels import factors
from lotts.kernels.dispatch import custom_op
from lotts.kernels.launch import on_device


@custom_op("lotts::inject_noise", mutates_args=())
def _inject_noise(
    x0: Tensor,
    mask: Tensor,
    background: Tensor,
    seeds: Tensor,
    signal: float,
    signal_each: Tensor | None,
    noise: float,
    noise_each: Tensor | None,
    stream: int,
) -> Tensor:
    # Imported at the first launch: importing lotts must not import triton.
    from lotts.kernels.inject_noise.triton import launch

    with on_device(x0.device):
        return launch(x0, mask, background, seeds, signal, signal_each, noise, noise_each, stream)


@_inject_noise.register_fake
def _(x0, mask, background, seeds, signal, signal_each, noise, noise_each, stream):
    return x0.new_empty((*seeds.shape, *x0.shape[1:]))


def inject_noise(
    x0: Tensor,
    mask: Tensor,
    background: Tensor,
    seeds: Tensor,
    signal: factors.Factor,
    noise: factors.Factor,
    stream: int,
) -> Tensor:
    """The implementation behind ``impl="triton"``."""
    return _inject_noise(x0, mask, background, seeds, *factors.split(signal), *factors.split(noise), stream)
