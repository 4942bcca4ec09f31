"""Masks to compare a method's own with: chance, and what the exact checker of scenes knows.

They are for studies: a random mask is the control that any localisation has to beat, the checker's masks are what a
perfect one could do, and the checker only judges pictures of the embedded pipelines' scenes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from lotts.backbones import Backbone
from lotts.localize import smooth
from lotts.resample import derive_seed
from lotts.sources.base import Heatmaps, LatentsAt, LateWatch


class ControlSource:
    """A source that looks at nothing while a sample is denoised."""

    name: str
    text_encodes, reads_steps = 0, False

    def rows(self, backbone: Backbone, steps: int, first: int = 0) -> int:
        return 0

    def watch(self, backbone, prompt, seeds, size, steps, text) -> ControlWatch:
        return ControlWatch(self, backbone, prompt, list(seeds), size, steps)

    def defects(self, watch: ControlWatch, latents_at: LatentsAt) -> torch.Tensor:
        """The defect map, fp32 [B, h, w]."""
        raise NotImplementedError


class ControlWatch(LateWatch):
    def __init__(
        self,
        source: ControlSource,
        backbone: Backbone,
        prompt: str,
        seeds: list[int],
        size: tuple[int, int],
        steps: int,
    ) -> None:
        self.source, self.backbone, self.prompt = source, backbone, prompt
        self.seeds, self.size, self.num_steps = seeds, size, steps

    def maps(self, latents_at: LatentsAt) -> Heatmaps:
        return {"P": self.source.defects(self, latents_at)}


class RandomSource(ControlSource):
    """Smooth noise of a sample's own seed, so that a mask is a few blobs as a found one is.

    A search has it ``redrawn`` for each refinement of a sample.
    """

    name = "random"

    def defects(self, watch: ControlWatch, latents_at: LatentsAt) -> torch.Tensor:
        return self.redrawn(watch.seeds, watch.size).to(watch.backbone.device)

    def redrawn(self, seeds: Sequence[int], size: Sequence[int]) -> torch.Tensor:
        """A map [B, h, w] of each seed."""
        generators = [torch.Generator().manual_seed(derive_seed(seed, "random mask")) for seed in seeds]
        return smooth(torch.stack([torch.rand(tuple(size), generator=generator) for generator in generators]))


class CheckerSource(ControlSource):
    """What the exact checker says of the decoded picture, spread a little, so that a larger mask grows around it."""

    def pixels(self, image: np.ndarray, prompt: str) -> np.ndarray:
        """bool [H, W] of what is sought in a picture uint8 [H, W, 3]."""
        raise NotImplementedError

    def check(self, backbone: Backbone, prompt: str, steps: int) -> None:
        """ValueError for a prompt that is no scene of shapes."""
        from lotts.shapes.scenes import parse

        parse(prompt)

    def defects(self, watch: ControlWatch, latents_at: LatentsAt) -> torch.Tensor:
        # What would enter the step after the last is the result.
        images = np.rint(watch.backbone.decode(latents_at(watch.num_steps)) * 255).astype(np.uint8)
        watch.decodes += len(images)
        sought = torch.from_numpy(np.stack([self.pixels(image, watch.prompt) for image in images])).float()
        cells = F.adaptive_avg_pool2d(sought[:, None], watch.size)[:, 0]
        return (cells + 0.1 * smooth(cells) + 0.01 * smooth(smooth(cells))).to(watch.backbone.device)


class DefectsSource(CheckerSource):
    """The true defects: damage, objects that are not right, stated places of missing ones, extra objects."""

    name = "defects"
    #: Half of a cell.
    sure = 0.5

    def pixels(self, image: np.ndarray, prompt: str) -> np.ndarray:
        from lotts.shapes.checker import check
        from lotts.shapes.scenes import parse

        return check(image, parse(prompt)).defects


class ForegroundSource(CheckerSource):
    """Everything painted, right or wrong: what localisation is worth if it only finds the objects."""

    name = "foreground"

    def pixels(self, image: np.ndarray, prompt: str) -> np.ndarray:
        from lotts.shapes.checker import check
        from lotts.shapes.scenes import parse

        return check(image, parse(prompt)).foreground
