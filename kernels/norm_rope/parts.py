"""The norm before the rotation, as the api hands it to the implementations."""

from typing import NamedTuple

from torch import Tensor


class Norm(NamedTuple):
    """RMS norm with ``weight`` [D], and ``prefix_weight`` for the first ``prefix`` tokens; None for ones."""

    eps: float
    weight: Tensor | None
    prefix_weight: Tensor | None
    prefix: int
