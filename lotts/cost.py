"""What a run cost, each thing counted where it happens (paper, "Fair budgets")."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

#: Where the seconds of a run go, in the order of the method.
STAGES = ("text", "encode", "denoise", "localise", "refine", "decode", "verify")


@dataclass
class Cost:
    """Counts of one run.

    ``network_rows`` are batch rows through the denoiser: guidance makes two a step and sample. ``localization_rows`` are
    those spent on nothing but finding defects. ``tokens``: latent cells computed in all of these rows. ``capture_rows``: of the
    network's rows those in which attention was read on the way, which takes a few percent more and no row of its own.

    ``sparse_rows`` of the network's rows computed a region alone; each adds to ``tokens`` the share of a whole row's
    multiplications and additions that it took. ``stored_bytes``: the most that was kept of the background for them. ``notes``:
    what was asked for and done otherwise.

    ``stages``: seconds by stage, out of ``STAGES``. What attention is read beside a forward pass is part of that pass:
    "localise" is what comes after it, making maps of what was read and the rows that do nothing else. ``peak_bytes``: the most
    memory held above what was there when the run began, of the device where that is a GPU, else of the process; None
    where the system does not tell.
    """

    network_rows: int = 0
    localization_rows: int = 0
    capture_rows: int = 0
    tokens: int = 0
    text_encodes: int = 0
    vae_encodes: int = 0
    vae_decodes: int = 0
    verifier_calls: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    sparse_rows: int = 0
    stored_bytes: int = 0
    notes: list[str] = field(default_factory=list)

    def denoised(self, rows: int, localization_rows: int, cells: int) -> None:
        """Rows of latents of ``cells`` cells, all computed."""
        self.network_rows += rows
        self.localization_rows += localization_rows
        self.tokens += (rows + localization_rows) * cells

    def spare(self, rows: int, cells: int, share: float) -> None:
        """Of rows that are counted as ``cells`` cells each, only ``share`` was computed."""
        self.sparse_rows += rows
        self.tokens -= round(rows * cells * (1 - share))

    def tell(self, note: str, *, loud: bool = True) -> None:
        """Keep a note, and warn of it the first time; not ``loud``: it says what happens, not that something did not."""
        if note not in self.notes:
            self.notes.append(note)
            if loud:
                warnings.warn(note, stacklevel=3)

    @property
    def nfe(self) -> int:
        """All rows through the denoiser, localisation included."""
        return self.network_rows + self.localization_rows

    def as_dict(self) -> dict[str, Any]:
        stages = {name: round(self.stages[name], 3) for name in STAGES if name in self.stages}
        return {**asdict(self), "nfe": self.nfe, "seconds": round(self.seconds, 3), "stages": stages}
