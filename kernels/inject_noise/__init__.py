"""Masked noise injection for local refinement."""

from lotts.kernels.inject_noise.api import inject_noise

__all__ = ["inject_noise"]
