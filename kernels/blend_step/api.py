"""The public op: checks its arguments, then hands them to the implementation that ``impl`` names."""

from typing import Any

import torch
from torch import Tensor

from lotts.kernels import dispatch, factors, validate
from lotts.kernels.blend_step.op import blend_step as fused
from lotts.kernels.blend_step.parts import Blend, Noise
from lotts.kernels.blend_step.portable import blend_step as portable
from lotts.kernels.blend_step.reference import blend_step as reference

dispatch.register("blend_step", triton=fused, portable=portable, reference=reference)


def blend_step(
    latents: Tensor,
    prediction: Tensor,
    *,
    latents_factor: float | Tensor,
    prediction_factor: float | Tensor,
    guidance_scale: float | Tensor | None = None,
    noise_factor: float | Tensor | None = None,
    seeds: Tensor | None = None,
    stream: int = 0,
    mask: Tensor | None = None,
    background: Tensor | None = None,
    background_signal: float | Tensor | None = None,
    background_noise: float | Tensor | None = None,
    background_seeds: Tensor | None = None,
    background_stream: int = 0,
    impl: str | None = None,
) -> Tensor:
    """Guidance, a sampler's linear update, and the blend with what surrounds the mask (paper, "Masked refinement").

    ``p = unconditional + guidance_scale * (conditional - unconditional)``, or the prediction as it is;
    ``x = latents_factor * latents + prediction_factor * p + noise_factor * e``;
    ``mask * x + (1 - mask) * b``, where b is the background, or ``background_signal * background + background_noise * e``
    with a noise of its own. The e are ``philox_normal`` of the seeds. DDIM, Euler and flow-matching updates have this form.

    Args:
        latents: [B, C, h, w]; any other [B, ...] works the same way.
        prediction: [B, C, h, w], or under guidance [2B, C, h, w] with the unconditional rows first; dtype of ``latents``.
        latents_factor, prediction_factor, guidance_scale: numbers, or float32 [B].
        noise_factor: number or float32 [B], given with ``seeds``; None for a deterministic update.
        seeds: [B], int64, 0 to 2**63 - 1.
        stream: 0 to 2**32 - 1, as in ``philox_normal``.
        mask: [B, 1, h, w], float, 0 to 1; dims of 1 broadcast. None: no blend. Given with ``background``.
        background: [B, C, h, w], dtype of ``latents``.
        background_signal, background_noise, background_seeds: all three to noise the background, or none.
        background_stream: stream of the background's noise.
        impl: ``"triton"``, ``"portable"`` or ``"reference"``; None means Triton on a GPU, otherwise ``"portable"``.

    Returns:
        [B, C, h, w] in the dtype of ``latents``; the arithmetic is float32, or float64 for float64 latents. Where the
        mask is 0 the result is bit-equal to the (noised) background, as ``inject_noise`` makes it, and where it is 1 to
        x: the other branch does not enter, even if it is not finite.

    Raises:
        TypeError: an argument is not a tensor, or has another dtype.
        ValueError: a shape or device does not match, a stream is out of range, of arguments that go together some are
            missing, or (Triton) the strides of a sample leave more than four dims that cannot be merged.
        RuntimeError: ``impl`` is not available.
    """
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents: expected a torch.Tensor, got {type(latents).__name__}")
    validate.at_least("latents.ndim", latents.ndim, 1)
    _together(noise_factor=noise_factor, seeds=seeds)
    _together(mask=mask, background=background)
    _together(background_signal=background_signal, background_noise=background_noise, background_seeds=background_seeds)
    sample = [f"d{axis}" for axis in range(1, latents.ndim)]
    sizes: dict[str, int] = {}
    validate.has_shape("latents", latents, " ".join(["B", *sample]), sizes)
    validate.has_dtype("latents", latents, *validate.FLOATING)
    sizes["2B"] = 2 * sizes["B"]
    rows = "B" if guidance_scale is None else "2B"
    validate.has_shape("prediction", prediction, " ".join([rows, *sample]), sizes)
    validate.has_dtype("prediction", prediction, latents.dtype)
    validate.on_device(latents.device, prediction=prediction)

    def factor(name: str, value: float | Tensor) -> factors.Factor:
        return factors.checked(name, value, latents.device, sizes)

    def noise_of(
        names: tuple[str, str], value: float | Tensor | None, keys: Tensor | None, stream: int
    ) -> Noise | None:
        validate.in_stream_range(stream)
        if value is None or keys is None:
            return None
        validate.has_shape(names[1], keys, "B", sizes)
        validate.has_dtype(names[1], keys, torch.int64)
        validate.on_device(latents.device, **{names[1]: keys})
        return Noise(factor(names[0], value), keys, stream)

    noise = noise_of(("noise_factor", "seeds"), noise_factor, seeds, stream)
    names = "background_noise", "background_seeds"
    behind = noise_of(names, background_noise, background_seeds, background_stream)
    blend = None
    if mask is not None and background is not None:
        validate.has_shape("mask", mask, " ".join(f"{dim}|1" for dim in ["B", *sample]), sizes)
        validate.has_dtype("mask", mask, *validate.FLOATING)
        validate.has_shape("background", background, " ".join(["B", *sample]), sizes)
        validate.has_dtype("background", background, latents.dtype)
        validate.on_device(latents.device, mask=mask, background=background)
        signal = 1.0 if background_signal is None else factor("background_signal", background_signal)
        blend = Blend(mask, background, signal, behind)
    elif behind is not None:
        raise ValueError("background_seeds: expected a background to noise, got none")
    run = dispatch.select("blend_step", impl, latents.device, latents.dtype)
    return run(
        latents,
        prediction,
        factor("latents_factor", latents_factor),
        factor("prediction_factor", prediction_factor),
        None if guidance_scale is None else factor("guidance_scale", guidance_scale),
        noise,
        blend,
    )


def _together(**arguments: Any) -> None:
    """Raise ValueError if only some of the ``arguments`` were given."""
    missing = [name for name, value in arguments.items() if value is None]
    if 0 < len(missing) < len(arguments):
        given = [name for name in arguments if name not in missing]
        raise ValueError(f"{', '.join(missing)}: expected together with {', '.join(given)}, got None")
