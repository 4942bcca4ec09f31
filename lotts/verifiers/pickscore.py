"""PickScore (Kirstain et al. 2023, arXiv 2305.01569): CLIP ViT-H/14 trained on which of two pictures users kept."""

from __future__ import annotations

import torch

from lotts.verifiers.checkpoints import Checkpoint
from lotts.verifiers.clip import PretrainedClipVerifier

CHECKPOINT = Checkpoint(
    "yuvalkirstain/PickScore_v1",
    "a4e4367c6dfa7288a00c550414478f865b875800",
    key="vision_model.embeddings.class_embedding",
)
TOKENIZER = Checkpoint("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")


class PickScoreVerifier(PretrainedClipVerifier):
    """Which picture a user would keep: the softmax over the scores of one prompt's pictures is that probability.

    The tokenizer is that of laion/CLIP-ViT-H-14-laion2B-s32B-b79K unless the folder has one.
    """

    checkpoint = CHECKPOINT
    tokenizer = TOKENIZER
    name = "pickscore"
    scale = "exp(logit_scale) times the cosine of picture and prompt, a logit: -100 to 100, mostly within 15 to 25"

    def scaled(self, cosine: torch.Tensor) -> torch.Tensor:
        return self.tower.model.logit_scale.float().exp().to(cosine.device) * cosine
