"""blend_step as a PyTorch operator, so that compiled graphs, fake tensors and exporters know it."""

from torch import Tensor

from lotts.kernels.blend_step.parts import Blend, Noise
from lotts.kernels.dispatch import custom_op
from lotts.kernels.factors import Factor, split
from lotts.kernels.launch import on_device


@custom_op("lotts::blend_step", mutates_args=())
def _blend_step(
    latents: Tensor,
    prediction: Tensor,
    mask: Tensor | None,
    background: Tensor | None,
    seeds: Tensor | None,
    background_seeds: Tensor | None,
    numbers: list[float],
    each: list[Tensor | None],
    streams: list[int],
    guided: bool,
) -> Tensor:
    # Imported at the first launch: importing lotts must not import triton.
    from lotts.kernels.blend_step.triton import launch

    with on_device(latents.device):
        return launch(
            latents, prediction, mask, background, seeds, background_seeds, numbers, each, streams, guided
        )  # fmt: skip


@_blend_step.register_fake
def _(latents, prediction, mask, background, seeds, background_seeds, numbers, each, streams, guided):
    return latents.new_empty(latents.shape)


def blend_step(
    latents: Tensor,
    prediction: Tensor,
    latents_factor: Factor,
    prediction_factor: Factor,
    guidance_scale: Factor | None,
    noise: Noise | None,
    blend: Blend | None,
) -> Tensor:
    """The implementation behind ``impl="triton"``."""
    mask, background, signal, behind = blend or (None, None, None, None)
    factor, seeds, stream = noise or (None, None, 0)
    background_factor, background_seeds, background_stream = behind or (None, None, 0)
    scales = latents_factor, prediction_factor, guidance_scale, factor, signal, background_factor
    numbers, each = zip(*map(split, scales), strict=True)
    return _blend_step(
        latents, prediction, mask, background, seeds, background_seeds,
        list(numbers), list(each), [stream, background_stream], guidance_scale is not None,
    )  # fmt: skip
