"""One step of a sampler and its blend with the background, in one pass over the latents."""

from lotts.kernels.blend_step.api import blend_step

__all__ = ["blend_step"]
