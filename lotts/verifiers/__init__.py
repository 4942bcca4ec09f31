"""Judges that pick among samples: by name, or any callable ``(images, prompts) -> scores``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch


class Verifier(Protocol):
    """Scores pictures, higher is better.

    ``images``: float32 [H, W, 3] arrays in [0, 1]; ``prompts``: one a picture. Returns N numbers. A verifier may have
    ``check_prompt(prompt)``, which raises ValueError for a prompt that it cannot judge.
    """

    def __call__(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> Sequence[float] | torch.Tensor: ...


def _shapes() -> Verifier:
    from lotts.verifiers.shapes import ShapesVerifier

    return ShapesVerifier()


REGISTRY: dict[str, Callable[[], Verifier]] = {"shapes": _shapes}


def available() -> tuple[str, ...]:
    """The verifiers that ``load`` knows by name."""
    return tuple(REGISTRY)


def load(verifier: str | Verifier) -> Verifier:
    """A verifier by name, or the given callable.

    Raises:
        ValueError: no verifier has that name.
        TypeError: neither a name nor a callable.
    """
    if isinstance(verifier, str):
        if verifier not in REGISTRY:
            raise ValueError(
                f"expected a verifier out of {', '.join(REGISTRY)} or a callable (images, prompts) -> scores, got {verifier!r}"
            )
        return REGISTRY[verifier]()
    if not callable(verifier):
        raise TypeError(
            f"expected a verifier's name or a callable (images, prompts) -> scores, got {type(verifier).__name__}"
        )
    return verifier


def score(verifier: Verifier, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
    """Score pictures; ValueError when the verifier returns a wrong count or a number that is not finite."""
    scores = [float(s) for s in torch.as_tensor(verifier(images, prompts), dtype=torch.float64).flatten()]
    if len(scores) != len(images):
        raise ValueError(f"expected one score for each of {len(images)} pictures, got {len(scores)} from the verifier")
    for index, value in enumerate(scores):
        if not np.isfinite(value):
            raise ValueError(
                f"the verifier scored picture {index} ({prompts[index]!r}) {value}: expected a finite number"
            )
    return scores
