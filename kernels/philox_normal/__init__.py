"""Counter-based standard normal noise: a number depends on its seed, stream and position, and on nothing else."""

from lotts.kernels.philox_normal.api import philox_normal

__all__ = ["philox_normal"]
