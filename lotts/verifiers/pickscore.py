"""PickScore (Kirstain et al. 2023, arXiv 2305.01569): CLIP ViT-H/14 trained on which of two pictures users kept."""

from __future__ import annotations

from pathlib import Path

import torch

from lotts.verifiers.checkpoints import Checkpoint, describe
from lotts.verifiers.clip import ClipVerifier, shared_tower
from lotts.verifiers.pixels import Pixels

CHECKPOINT = Checkpoint("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
TOKENIZER = Checkpoint("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")


class PickScoreVerifier(ClipVerifier):
    """Which picture a user would keep: the softmax over the scores of one prompt's pictures is that probability.

    Args:
        location: a folder in the layout of ``save_pretrained`` or another hub id; default: yuvalkirstain/PickScore_v1. The
            tokenizer of laion/CLIP-ViT-H-14-laion2B-s32B-b79K is used unless the folder has one.
        revision: commit, branch or tag on the hub; default: a pinned commit.
        dtype: of the towers.

    Raises:
        FileNotFoundError: the weights or the tokenizer cannot be had; the message says how to get them.
    """

    name = "pickscore"
    scale = "exp(logit_scale) times the cosine of picture and prompt, a logit: -100 to 100, mostly within 15 to 25"

    def __init__(
        self,
        location: str | Path | None = None,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype)
        self.tower = shared_tower(CHECKPOINT, TOKENIZER, location, revision, self.dtype)
        self.version = describe(CHECKPOINT, location, revision)
        self.pixels = Pixels(self.tower.side, style="transformers")

    def scaled(self, cosine: torch.Tensor) -> torch.Tensor:
        return self.tower.model.logit_scale.float().exp().to(cosine.device) * cosine
