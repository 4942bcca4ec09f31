"""The verifier ``shapes``: a small reward model that reads captions of the shapes grammar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lotts.shapes import reward
from lotts.shapes.draw import SIDE
from lotts.shapes.reward_queries import Queries
from lotts.shapes.scenes import parse


class ShapesVerifier:
    """Scores how right a picture of a scene of shapes is, object by object.

    A score is the mean log-probability that an object of the caption is present, as stated, where stated and whole, plus
    a smaller weight for the rest of the picture being clean; it is at most 0. A picture's score does not depend on the
    pictures scored with it. The model is a neural one: it errs, unlike the checker that measures results.

    Args:
        folder: where ``config.json`` and ``model.safetensors`` lie (default: the weights that come with the package).

    Raises:
        FileNotFoundError: the weights are missing.
    """

    name = "shapes"
    version = f"shapes-{reward.VERSION}"

    def __init__(self, folder: Path = reward.FOLDER) -> None:
        self.model = reward.load(folder)

    def check_prompt(self, prompt: str) -> None:
        """Raises ValueError, with examples of the grammar, for a prompt outside it."""
        parse(prompt)

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        """Scores, higher is better, for float [H, W, 3] arrays in [0, 1] (resized to 128 x 128) and a prompt each.

        Raises:
            ValueError: as many prompts as images were expected, an image is not as said, or a prompt is outside the grammar.
        """
        if len(images) != len(prompts):
            raise ValueError(f"expected one prompt for each of {len(images)} images, got {len(prompts)}")
        scores = []
        for image, prompt in zip(images, prompts, strict=True):
            # One at a time: kernels may round a batch of two otherwise than two batches of one.
            queries = Queries.of([parse(prompt)])
            answers = self.model(reward.to_input(torch.from_numpy(_resized(image))[None]), queries)[-1]
            scores.append(float(reward.score(answers, queries.real)))
        return scores


def _resized(image: np.ndarray) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3] from a float [H, W, 3] array in [0, 1]."""
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"expected a float [H, W, 3] image, got {array.dtype} {list(array.shape)}")
    if not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"expected an image in [0, 1], got values from {array.min()} to {array.max()}")
    pixels = np.rint(array * 255).astype(np.uint8)
    if pixels.shape[:2] == (SIDE, SIDE):
        return pixels
    return np.array(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
