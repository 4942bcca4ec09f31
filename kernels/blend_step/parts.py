"""The optional parts of a step, as the api hands them to the implementations."""

from typing import NamedTuple

from torch import Tensor

from lotts.kernels.factors import Factor


class Noise(NamedTuple):
    """``factor`` times the ``philox_normal`` noise of ``seeds`` [B]."""

    factor: Factor
    seeds: Tensor
    stream: int


class Blend(NamedTuple):
    """What surrounds the mask: the background as it is or, where ``noise`` is given, ``signal * background + noise``."""

    mask: Tensor
    background: Tensor
    signal: Factor
    noise: Noise | None
