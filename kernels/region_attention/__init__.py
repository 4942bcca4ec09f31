"""Attention of a region's tokens over fresh keys and values of their own and stored ones of the rest."""

from lotts.kernels.region_attention.api import region_attention

__all__ = ["region_attention"]
