"""Defect maps from the verifier itself, where it can say what it finds wrong and where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lotts.backbones import Backbone
from lotts.capture.grids import resize_maps
from lotts.localize import smooth
from lotts.sources.base import Heatmaps, LatentsAt, LateWatch
from lotts.verifiers import Judge


class VerifierSource:
    """Asks the verifier where the finished picture falls short: no extra network row, one more decoding and judgement.

    Args:
        verifier: a judge with ``defect_maps(images, prompts)``, which returns fp32 [N, h, w] in [0, 1], the chance that
            something is wrong, for float32 [H, W, 3] pictures in [0, 1].

    Raises:
        ValueError: the verifier has no ``defect_maps``.
    """

    name, text_encodes, reads_steps = "verifier", 0, False
    #: The map is a chance: above it, that something is wrong is likelier than not.
    sure = 0.5

    def __init__(self, verifier: Judge) -> None:
        if not hasattr(verifier, "defect_maps"):
            told = getattr(verifier, "name", type(verifier).__name__)
            raise ValueError(
                f"expected a verifier with defect_maps(images, prompts) for the map source 'verifier', got {told}: use "
                "'attention' or 'prediction', or a verifier that says where a picture falls short, such as shapes"
            )
        self.verifier = verifier

    def rows(self, backbone: Backbone, steps: int, first: int = 0) -> int:
        return 0

    def watch(self, backbone, prompt, seeds, size, steps, text) -> VerifierWatch:
        return VerifierWatch(self, backbone, prompt, size, steps)


class VerifierWatch(LateWatch):
    def __init__(
        self, source: VerifierSource, backbone: Backbone, prompt: str, size: tuple[int, int], steps: int
    ) -> None:
        self.source, self.backbone, self.prompt, self.size, self.num_steps = source, backbone, prompt, size, steps

    def maps(self, latents_at: LatentsAt) -> Heatmaps:
        # What would enter the step after the last is the result.
        images: Sequence[np.ndarray] = list(self.backbone.decode(latents_at(self.num_steps)))
        self.decodes += len(images)
        self.judgements += len(images)
        wrong = self.source.verifier.defect_maps(images, [self.prompt] * len(images))  # type: ignore[attr-defined]
        wrong = resize_maps(wrong[:, None].float(), self.size)[:, 0]
        # Where nothing is wrong, less the farther from what is: a mask larger than that grows around it.
        return {"P": torch.maximum(wrong, 0.1 * smooth(wrong)).to(self.backbone.device)}
