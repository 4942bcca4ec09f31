"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718) on the scale of torchmetrics: 100 times the cosine, at least 0 for each picture."""

from __future__ import annotations

from dataclasses import replace

import torch

from lotts.verifiers.checkpoints import Checkpoint
from lotts.verifiers.clip import PretrainedClipVerifier

CHECKPOINT = Checkpoint(
    "openai/clip-vit-large-patch14",
    "32bd64288804d66eefd0ccbe215aa642df71cc41",
    key="vision_model.embeddings.class_embedding",
)
TOKENIZER = replace(CHECKPOINT, key="")


class ClipScoreVerifier(PretrainedClipVerifier):
    """How well the picture and the prompt agree by CLIP ViT-L/14. It sees content more than quality."""

    checkpoint = CHECKPOINT
    tokenizer = TOKENIZER
    name = "clipscore"
    scale = "100 times the cosine of picture and prompt, cut off at 0: 0 to 100, photographs mostly within 15 to 35"

    def scaled(self, cosine: torch.Tensor) -> torch.Tensor:
        return (100 * cosine).clamp(min=0)
