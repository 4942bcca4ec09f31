"""The public op: checks its arguments, then hands them to the implementation that ``impl`` names."""

import torch
from torch import Tensor

from lotts.kernels import dispatch, factors, validate
from lotts.kernels.inject_noise.op import inject_noise as fused
from lotts.kernels.inject_noise.portable import inject_noise as portable
from lotts.kernels.inject_noise.reference import inject_noise as reference

dispatch.register("inject_noise", triton=fused, portable=portable, reference=reference)


def inject_noise(
    x0: Tensor,
    mask: Tensor,
    background: Tensor,
    seeds: Tensor,
    *,
    signal: float | Tensor,
    noise: float | Tensor,
    stream: int = 0,
    impl: str | None = None,
) -> Tensor:
    """K noised starting points for each sample, noisy where the mask is, background elsewhere.

    ``mask * (signal * x0 + noise * e) + (1 - mask) * background``, with e the ``philox_normal`` noise of each seed. So
    a refinement's numbers come from its seed and stream alone, whatever else is in the batch.

    Args:
        x0: [B, C, h, w], clean latents; any other [B, ...] works the same way.
        mask: [B, 1, h, w], or [B, K, 1, h, w] for one mask a refinement; float, 0 to 1; dims of 1 broadcast.
        background: [B, C, h, w] or [B, K, C, h, w], dtype of ``x0``.
        seeds: [B, K], int64, 0 to 2**63 - 1.
        signal: factor on ``x0``: a number, or float32 [B].
        noise: factor on the noise, its standard deviation: a number, or float32 [B].
        stream: 0 to 2**32 - 1, as in ``philox_normal``.
        impl: ``"triton"``, ``"portable"`` or ``"reference"``; None means Triton on a GPU, otherwise ``"portable"``.

    Returns:
        [B, K, C, h, w] in the dtype of ``x0``; the arithmetic is float32, or float64 for float64 latents. Where the
        mask is 0 the result is bit-equal to the background, and where it is 1 to the noised latents: the other branch
        does not enter, even if it is not finite.

    Raises:
        TypeError: an argument is not a tensor, or has another dtype.
        ValueError: a shape or device does not match, ``stream`` is out of range, or (Triton) the strides of a sample
            leave more than four dims that cannot be merged.
        RuntimeError: ``impl`` is not available.
    """
    if not isinstance(x0, Tensor):
        raise TypeError(f"x0: expected a torch.Tensor, got {type(x0).__name__}")
    validate.at_least("x0.ndim", x0.ndim, 2)
    sample = [f"d{axis}" for axis in range(1, x0.ndim)]
    sizes: dict[str, int] = {}
    validate.has_shape("x0", x0, " ".join(["B", *sample]), sizes)
    validate.has_shape("seeds", seeds, "B K", sizes)
    per_refinement = {}
    for name, value, dims in (("mask", mask, [f"{dim}|1" for dim in sample]), ("background", background, sample)):
        if isinstance(value, Tensor) and value.ndim == x0.ndim:
            value = value.unsqueeze(1)
        validate.has_shape(name, value, " ".join(["B", "K|1", *dims]), sizes)
        per_refinement[name] = value
    validate.has_dtype("x0", x0, *validate.FLOATING)
    validate.has_dtype("background", background, x0.dtype)
    validate.has_dtype("mask", mask, *validate.FLOATING)
    validate.has_dtype("seeds", seeds, torch.int64)
    validate.on_device(x0.device, mask=mask, background=background, seeds=seeds)
    validate.in_stream_range(stream)
    scales = [factors.checked(name, value, x0.device, sizes) for name, value in (("signal", signal), ("noise", noise))]
    run = dispatch.select("inject_noise", impl, x0.device, x0.dtype)
    return run(x0, per_refinement["mask"], per_refinement["background"], seeds, *scales, stream)
