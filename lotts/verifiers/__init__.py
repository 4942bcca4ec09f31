"""Judges that pick among samples: by name, or any callable ``(images, prompts) -> scores``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch

from lotts.verifiers.base import Verifier

__all__ = ["REGISTRY", "Judge", "Verifier", "available", "load", "score"]


class Judge(Protocol):
    """Scores pictures, higher is better: all that the method asks of a verifier.

    ``images``: float32 [H, W, 3] arrays in [0, 1]; ``prompts``: one a picture. Returns N numbers. A judge may have
    ``check_prompt(prompt)``, which raises ValueError for a prompt that it cannot judge. ``Verifier`` is the base class
    of those that hold weights.
    """

    def __call__(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> Sequence[float] | torch.Tensor: ...


#: A name and who makes it: "module:attribute", imported when it is asked for, or a callable without arguments.
REGISTRY: dict[str, str | Callable[[], Judge]] = {
    "shapes": "lotts.verifiers.shapes:ShapesVerifier",
    "ocr": "lotts.verifiers.ocr:OCRVerifier",
    "vlm": "lotts.verifiers.vlm:VLMJudge",
}


def available() -> tuple[str, ...]:
    """The verifiers that ``load`` knows by name."""
    return tuple(REGISTRY)


def load(verifier: str | Judge) -> Judge:
    """A verifier by name, or the given callable.

    Raises:
        ValueError: no verifier has that name.
        TypeError: neither a name nor a callable.
    """
    if isinstance(verifier, str):
        return _by_name(verifier)
    if not callable(verifier):
        raise TypeError(
            f"expected a verifier's name or a callable (images, prompts) -> scores, got {type(verifier).__name__}"
        )
    return verifier


def _by_name(name: str) -> Judge:
    if name not in REGISTRY:
        raise ValueError(
            f"expected a verifier out of {', '.join(REGISTRY)} or a callable (images, prompts) -> scores, got {name!r}"
        )
    maker = REGISTRY[name]
    if isinstance(maker, str):
        module, _, attribute = maker.partition(":")
        maker = getattr(importlib.import_module(module), attribute)
    return maker()


def score(
    verifier: Judge,
    images: Sequence[np.ndarray],
    prompts: Sequence[str],
    device: str | torch.device | None = None,
) -> list[float]:
    """Score pictures; ValueError when the verifier returns a wrong count or a number that is not finite.

    A ``Verifier`` that rests on the CPU and ``follows`` moves to ``device`` for this call and back.
    """
    with _placed(verifier, device):
        scores = [float(s) for s in torch.as_tensor(verifier(images, prompts), dtype=torch.float64).flatten()]
    if len(scores) != len(images):
        raise ValueError(f"expected one score for each of {len(images)} pictures, got {len(scores)} from the verifier")
    for index, value in enumerate(scores):
        if not np.isfinite(value):
            raise ValueError(
                f"the verifier scored picture {index} ({prompts[index]!r}) {value}: expected a finite number"
            )
    return scores


def _placed(verifier: Judge, device: str | torch.device | None) -> AbstractContextManager[object]:
    if device is None or not isinstance(verifier, Verifier) or not verifier.follows or verifier.device.type != "cpu":
        return nullcontext()
    return verifier.on(device)
