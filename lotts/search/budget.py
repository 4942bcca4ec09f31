"""How much a search may spend."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from lotts.cost import Cost

UNITS = ("samples", "nfe", "tokens", "seconds")
UNBOUNDED = 1_000_000_000


@dataclass(frozen=True)
class Budget:
    """A limit in one unit.

    Args:
        unit: "samples" (pictures that the verifier may choose from), "nfe" (rows through the denoiser, localisation
            included), "tokens" (latent cells computed in those rows) or "seconds".
        amount: how much of it, above 0.
    """

    unit: str
    amount: float

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"expected a budget in {', '.join(UNITS)}, got {self.unit!r}")
        if not 0 < self.amount < inf:
            raise ValueError(f"expected a budget above 0 {self.unit}, and a number, got {self.amount}")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From "samples=9", "nfe=450", "tokens=1e6" or "seconds=60"."""
        unit, separator, amount = text.partition("=")
        try:
            return cls(unit.strip(), float(amount))
        except ValueError as error:
            if separator and unit.strip() in UNITS and "above" in str(error):
                raise
            raise ValueError(
                f"expected a budget like samples=9, nfe=450, tokens=1e6 or seconds=60, got {text!r}"
            ) from None

    def __str__(self) -> str:
        # All digits: a rounded budget would be another one.
        return f"{self.unit}={int(self.amount) if self.amount == int(self.amount) else self.amount}"

    def left(self, cost: Cost, samples: int) -> float:
        """What is not spent yet, never below 0."""
        spent = {"samples": samples, "nfe": cost.nfe, "tokens": cost.tokens, "seconds": cost.seconds}[self.unit]
        return max(0.0, self.amount - spent)

    def affords(self, cost: Cost, samples: int, *, rows: int, cells: int) -> int:
        """How many more samples of ``rows`` network rows each fit; while there are seconds left, any number.

        However few the seconds, one sample is drawn: nobody knows beforehand what it takes.
        """
        left = self.left(cost, samples)
        if self.unit == "seconds":
            return UNBOUNDED if left > 0 else 0 if samples else 1
        return int(left // {"samples": 1, "nfe": rows, "tokens": rows * cells}[self.unit])
