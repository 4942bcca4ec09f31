"""What a run cost, each thing counted where it happens (paper, "Fair budgets")."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Cost:
    """Counts of one run.

    ``network_rows`` are batch rows through the denoiser: guidance makes two a step and sample. ``localization_rows`` are
    those spent on nothing but finding defects. ``tokens``: latent cells computed in all of these rows.
    """

    network_rows: int = 0
    localization_rows: int = 0
    tokens: int = 0
    text_encodes: int = 0
    vae_encodes: int = 0
    vae_decodes: int = 0
    verifier_calls: int = 0
    seconds: float = 0.0

    def denoised(self, rows: int, localization_rows: int, cells: int) -> None:
        """Rows of latents of ``cells`` cells, all computed."""
        self.network_rows += rows
        self.localization_rows += localization_rows
        self.tokens += (rows + localization_rows) * cells

    @property
    def nfe(self) -> int:
        """All rows through the denoiser, localisation included."""
        return self.network_rows + self.localization_rows

    @contextmanager
    def clock(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "nfe": self.nfe, "seconds": round(self.seconds, 3)}
