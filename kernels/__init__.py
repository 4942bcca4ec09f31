"""Fused attention-and-map operations for localised test-time scaling: tensors in, tensors out."""

from lotts.kernels.blend_step import blend_step
from lotts.kernels.contrast_attention import contrast_attention
from lotts.kernels.dispatch import available_implementations
from lotts.kernels.inject_noise import inject_noise
from lotts.kernels.norm_rope import norm_rope
from lotts.kernels.philox_normal import philox_normal
from lotts.kernels.propagate_attention import propagate_attention
from lotts.kernels.region_attention import region_attention

__all__ = [
    "available_implementations",
    "blend_step",
    "contrast_attention",
    "inject_noise",
    "norm_rope",
    "philox_normal",
    "propagate_attention",
    "region_attention",
]
