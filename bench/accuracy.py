"""The gate before any speed is reported: no worse than twice the error of eager PyTorch in the same dtype."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Check:
    """Errors of one result against the float64 truth, with what each may be at most."""

    result: str
    error: float
    allowed: float
    rms: float
    rms_allowed: float

    @property
    def passed(self) -> bool:
        """False also where an error is not a number."""
        return self.error <= self.allowed and self.rms <= self.rms_allowed

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "passed": self.passed}

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILS"
        largest = f"largest error {self.error:.3g} of {self.allowed:.3g}"
        return f"{self.result}: {verdict}, {largest}, RMS {self.rms:.3g} of {self.rms_allowed:.3g}"


def compare(result: str, actual: Tensor, eager: Tensor, truth: Tensor, rms_bound: float) -> Check:
    """``truth`` is float64, ``eager`` the same formula in the dtype of the inputs; ``rms_bound`` is relative to the truth's RMS."""
    error, eager_error = actual.double() - truth, eager.double() - truth
    # Rounding the exact answer to the dtype of the result must always be allowed.
    rounding = truth.abs().max() * torch.finfo(eager.dtype).eps
    allowed = 2 * eager_error.abs().max() + rounding
    return Check(result, error.abs().max().item(), allowed.item(), _rms(error), rms_bound * _rms(truth))


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
