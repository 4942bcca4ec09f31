"""RMS norm and rotary embedding of queries or keys, of tokens in any order."""

from lotts.kernels.norm_rope.api import norm_rope

__all__ = ["norm_rope"]
