"""Defect maps from the model's predictions under the quality prompts."""

from __future__ import annotations

import torch

from lotts.backbones import Backbone, Conditioning, Embedding
from lotts.capture.tokens import QUALITY_NEGATIVE, QUALITY_POSITIVE
from lotts.sources.base import Heatmaps, LatentsAt, LateWatch


class PredictionSource:
    """How far the model's predictions under the two quality prompts lie apart: two extra rows a level and candidate.

    Args:
        levels: shares of the steps, from pure noise, at which the candidate is looked at; None: what the model's family takes.
    """

    name, text_encodes, reads_steps = "prediction", 2, False

    def __init__(self, levels: tuple[float, ...] | None = None) -> None:
        if levels is not None and not (levels and all(0 <= level < 1 for level in levels)):
            raise ValueError(f"expected levels as shares of the steps in [0, 1), got {levels}")
        self.levels = levels

    def rows(self, backbone: Backbone, steps: int, first: int = 0) -> int:
        return 2 * len(self._steps(backbone, steps))

    def watch(self, backbone, prompt, seeds, size, steps, text) -> PredictionWatch:
        return PredictionWatch(backbone, prompt, len(seeds), self._steps(backbone, steps), text)

    def _steps(self, backbone: Backbone, steps: int) -> list[int]:
        return sorted({int(round(level * steps, 9)) for level in self.levels or backbone.prediction_levels})


class PredictionWatch(LateWatch):
    def __init__(self, backbone: Backbone, prompt: str, batch: int, steps: list[int], text: Conditioning) -> None:
        self.backbone, self._steps = backbone, steps
        templates = (QUALITY_POSITIVE, QUALITY_NEGATIVE)
        prompts = [backbone.embed_once(t.replace("{p}", prompt)).repeat(batch) for t in templates]
        self.text = Conditioning(Embedding.cat(prompts), embedded_guidance=text.embedded_guidance)

    def maps(self, latents_at: LatentsAt) -> Heatmaps:
        total: torch.Tensor | float = 0.0
        for step in self._steps:
            latents = latents_at(step)
            positive, negative = self.backbone.predict(torch.cat([latents, latents]), step, self.text).float().chunk(2)
            self.rows += 2 * len(latents)
            total = total + (positive - negative).square().sum(1).sqrt()
        assert isinstance(total, torch.Tensor)
        return {"P": total / len(self._steps)}
