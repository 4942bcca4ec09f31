"""What a run returns: every sample with its score, mask and heatmaps, and the best of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from lotts.cost import Cost

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class Sample:
    """One picture of the pool.

    Attributes:
        image: as ``output_type`` asks.
        score: the verifier's.
        kind: "candidate", "refinement", from ``lotts.repair`` "original", from a particle search "particle".
        seed: of the candidate; a refinement has its parent's.
        parent: index of the refined sample in the pool, None for candidates.
        refinement: which refinement of its parent this is, from 0; None for candidates.
        mask: bool [h, w] on the latent grid: what was resampled; of a candidate, what is to be, before ``dilate`` (None in a search).
        heatmaps: fp32 [h, w] each: CA_orig, CA_diff, CA'_orig, CA'_diff and P (other sources: P). Empty for refinements.
        nfe, seconds: what the whole run had spent when this picture was judged. In a search each of a batch counts its own rows.
    """

    image: Any
    score: float
    kind: str
    seed: int
    parent: int | None = None
    refinement: int | None = None
    mask: torch.Tensor | None = None
    heatmaps: dict[str, torch.Tensor] = field(default_factory=dict)
    nfe: int = 0
    seconds: float = 0.0

    @property
    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3], whatever the output type."""
        return to_uint8(self.image)


@dataclass
class LoTTSOutput:
    """The pool of samples, best first by ``best``; ``image`` is the best one's.

    ``made_with``: the verifier's version and the scheduler's configuration, for the manifest.
    """

    prompt: str
    samples: list[Sample]
    best: int
    cost: Cost
    settings: dict[str, Any]
    made_with: dict[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> Any:
        return self.samples[self.best].image

    @property
    def improvement(self) -> float:
        """By how much the chosen sample outscores the best one that was not refined; negative only where a search does not choose."""
        return self.samples[self.best].score - max(s.score for s in self.samples if s.parent is None)

    def report(self) -> Image.Image:
        """One picture of the whole run: candidates, heatmaps, masks, before and after, scores."""
        from lotts.report import draw_report

        return draw_report(self)

    def show(self) -> None:
        self.report().show()

    def save(self, folder: str | Path, context: dict[str, Any] | None = None) -> Path:
        """Write best.png, every sample, report.png and manifest.json; returns the folder used.

        A folder that holds another run is left alone: folder-2, folder-3, ... take its place. ``context`` (model,
        verifier, dtype, device by name) goes into the manifest, so that ``lotts replay`` can rebuild the pipeline.
        """
        from lotts.report import save_output

        return save_output(self, Path(folder), context)


def to_uint8(image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, torch.Tensor) else image
    return np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)


def as_output_type(array: np.ndarray, output_type: str) -> Any:
    """float32 [H, W, 3] in [0, 1] as a PIL image, as it is, or as a tensor [3, H, W]."""
    if output_type == "np":
        return array
    return Image.fromarray(to_uint8(array)) if output_type == "pil" else torch.from_numpy(array).permute(2, 0, 1)


def best_index(samples: list[Sample]) -> int:
    """The highest score; ties go to the earliest, so candidates win over their refinements."""
    return max(range(len(samples)), key=lambda i: (samples[i].score, -i))
