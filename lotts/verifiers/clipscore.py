"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718) on the scale of torchmetrics: 100 times the cosine, at least 0."""

from __future__ import annotations

from pathlib import Path

import torch

from lotts.verifiers.checkpoints import Checkpoint, describe
from lotts.verifiers.clip import ClipVerifier, shared_tower
from lotts.verifiers.pixels import Pixels

CHECKPOINT = Checkpoint("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")


class ClipScoreVerifier(ClipVerifier):
    """How well the picture and the prompt agree by CLIP ViT-L/14. It sees content more than quality.

    Args:
        location: a folder in the layout of ``save_pretrained`` or another hub id; default: openai/clip-vit-large-patch14.
        revision: commit, branch or tag on the hub; default: a pinned commit.
        dtype: of the towers.

    Raises:
        FileNotFoundError: the weights or the tokenizer cannot be had; the message says how to get them.
    """

    name = "clipscore"
    scale = "100 times the cosine of picture and prompt, cut off at 0: 0 to 100, photographs mostly within 15 to 35"

    def __init__(
        self,
        location: str | Path | None = None,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype)
        self.tower = shared_tower(CHECKPOINT, CHECKPOINT, location, revision, self.dtype)
        self.version = describe(CHECKPOINT, location, revision)
        self.pixels = Pixels(self.tower.side, style="transformers")

    def scaled(self, cosine: torch.Tensor) -> torch.Tensor:
        return (100 * cosine).clamp(min=0)
