"""Self- or joint attention that also carries extra float32 columns beside V."""

from lotts.kernels.propagate_attention.api import propagate_attention

__all__ = ["propagate_attention"]
