"""The LAION aesthetic predictor v2 (github.com/christophschuhmann/improved-aesthetic-predictor): a head on CLIP ViT-L/14."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lotts.verifiers import clipscore
from lotts.verifiers.checkpoints import Checkpoint, describe, fill, read_state
from lotts.verifiers.clip import shared_tower
from lotts.verifiers.heads import RewardHead
from lotts.verifiers.pixels import Pixels, PixelVerifier

#: The authors' sac+logos+ava1-l14-linearMSE.pth; the hub has it under this name.
CHECKPOINT = Checkpoint(
    "trl-lib/ddpo-aesthetic-predictor",
    "cf4bd10345610935a80a5d3be9a3133c50f121e4",
    "aesthetic-model.pth",
    "layers.0.weight",
)


class AestheticVerifier(PixelVerifier):
    """How beautiful people find the picture. The prompt plays no part.

    Args:
        location: the head's file (also sac+logos+ava1-l14-linearMSE.pth as its authors name it), the folder it lies in, or
            another hub id; default: trl-lib/ddpo-aesthetic-predictor.
        clip: folder or hub id of CLIP ViT-L/14; default: openai/clip-vit-large-patch14, shared with CLIPScore.
        revision: of the head, commit, branch or tag on the hub; default: a pinned commit.
        dtype: of CLIP; the head is float32 always.

    Raises:
        FileNotFoundError: the weights cannot be had; the message says how to get them.
        ValueError: the file is no such head.
    """

    name = "aesthetic"
    scale = "predicted mean rating of people who rated from 1 to 10, mostly within 3 to 7"

    def __init__(
        self,
        location: str | Path | None = None,
        *,
        clip: str | Path | None = None,
        revision: str | None = None,
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype)
        path = CHECKPOINT.path(location, revision)
        self.tower = shared_tower(clipscore.CHECKPOINT, clipscore.TOKENIZER, clip, None, self.dtype)
        self.version = describe(CHECKPOINT, location, revision)
        self.head = RewardHead(self.tower.model.config.projection_dim).eval()
        fill(self.head, read_state(path, CHECKPOINT), path, CHECKPOINT)
        self.pixels = Pixels(self.tower.side)

    def forward(self, tensors: torch.Tensor, cache: list[Any]) -> torch.Tensor:
        """Ratings [B] of pixels [B, 3, side, side]; the prompts are not looked at."""
        # The tower is shared and may have been moved without the head.
        return self.head(self.tower.image(tensors).to(next(self.head.parameters()).device))
