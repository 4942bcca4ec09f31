"""Cross-attention that also reads how much each pixel attends to chosen text tokens."""

from lotts.kernels.contrast_attention.api import contrast_attention

__all__ = ["contrast_attention"]
