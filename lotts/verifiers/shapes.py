"""The verifier ``shapes``: a small reward model that reads captions of the shapes grammar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lotts.shapes import reward
from lotts.shapes.draw import SIDE
from lotts.shapes.reward_queries import Queries
from lotts.shapes.scenes import parse
from lotts.verifiers.base import Verifier


class ShapesVerifier(Verifier):
    """Scores how right a picture of a scene of shapes is, object by object.

    A score is the mean log-probability that an object of the caption is present, as stated, where stated and whole, plus
    a smaller weight for the rest of the picture being clean; it is at most 0. A picture's score does not depend on the
    pictures scored with it. The model is a neural one: it errs, unlike the checker that measures results.

    Args:
        folder: where ``config.json`` and ``model.safetensors`` lie (default: the weights that come with the package).

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: they are another model's.
    """

    name = "shapes"
    scale = "mean log-probability that an object is right, in nats, at most 0"
    # Kernels may round a batch of two otherwise than two batches of one, and a GPU otherwise than the CPU.
    batch_size = 1
    follows = False

    def __init__(self, folder: str | Path = reward.FOLDER) -> None:
        super().__init__()
        self.model = reward.load(Path(folder))
        self.version = reward.version(Path(folder))

    def check_prompt(self, prompt: str) -> None:
        """Raises ValueError, with examples of the grammar, for a prompt outside it."""
        parse(prompt)

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The parsed scene of each prompt; ValueError for one outside the grammar."""
        return {prompt: parse(prompt) for prompt in prompts}

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """uint8 [128, 128, 3]."""
        if image.size != (SIDE, SIDE):
            image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image))

    @torch.no_grad()
    def defect_maps(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> torch.Tensor:
        """Where the model finds something wrong: fp32 [N, 16, 16] chances in [0, 1], for float32 [H, W, 3] pictures in [0, 1].

        Damage cell by cell, and objects that are not as stated, each spread over its stated place or over what looks most
        like it.
        """
        maps, scenes = [], self.encode_prompts(prompts)
        for image, prompt in zip(images, prompts, strict=True):
            pixels = self.preprocess(Image.fromarray(np.rint(image * 255).astype(np.uint8)))
            queries = Queries.of([scenes[prompt]], self.device)
            answers = self.model(reward.to_input(pixels[None].to(self.device)), queries)[-1]
            maps.append(reward.wrong_cells(answers, queries)[0].cpu())
        return torch.stack(maps)

    def forward(self, tensors: torch.Tensor, cache: list[Any]) -> torch.Tensor:
        """Scores [B] of uint8 [B, 128, 128, 3] pictures, one at a time whatever B is."""
        scores = []
        for image, scene in zip(tensors, cache, strict=True):
            queries = Queries.of([scene], self.device)
            answers = self.model(reward.to_input(image[None]), queries)[-1]
            scores.append(reward.score(answers, queries.real))
        return torch.cat(scores)
