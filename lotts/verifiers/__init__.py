"""Judges that pick among samples: by name, or any callable ``(images, prompts) -> scores``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lotts.verifiers.base import Judge, Verifier, placed

__all__ = ["REGISTRY", "Judge", "Verifier", "available", "check_name", "load", "places", "score", "with_places"]

#: A name and who makes it: "module:attribute", imported when it is asked for, or a callable. It may be called with a
#: location (a folder, a file, a hub id) as its only argument.
REGISTRY: dict[str, str | Callable[..., Judge]] = {
    "imagereward": "lotts.verifiers.imagereward:ImageRewardVerifier",
    "hpsv2": "lotts.verifiers.hpsv2:Hpsv2Verifier",
    "hpsv2.0": "lotts.verifiers.hpsv2:release_2_0",
    "pickscore": "lotts.verifiers.pickscore:PickScoreVerifier",
    "clipscore": "lotts.verifiers.clipscore:ClipScoreVerifier",
    "aesthetic": "lotts.verifiers.aesthetic:AestheticVerifier",
    "shapes": "lotts.verifiers.shapes:ShapesVerifier",
    "ocr": "lotts.verifiers.ocr:OCRVerifier",
    "vlm": "lotts.verifiers.vlm:VLMJudge",
}


def available() -> tuple[str, ...]:
    """The verifiers that ``load`` knows by name."""
    return tuple(REGISTRY)


def load(verifier: str | Judge) -> Judge:
    """A verifier by name, an ensemble of several, or the given callable.

    >>> load("imagereward")
    >>> load("imagereward=/models/ImageReward")  # a folder, a file or another hub id in the place of the default
    >>> load("imagereward,pickscore")  # an ensemble by rank, see ``lotts.verifiers.ensemble``
    >>> load("zscore(imagereward:2,pickscore)")  # by standard score, the first with twice the weight

    Raises:
        ValueError: no verifier has that name, or the text is none of these.
        TypeError: neither a name nor a callable.
    """
    if isinstance(verifier, str):
        return _by_text(verifier)
    if not callable(verifier):
        raise TypeError(
            f"expected a verifier's name or a callable (images, prompts) -> scores, got {type(verifier).__name__}"
        )
    return verifier


def check_name(text: str) -> None:
    """ValueError for a text that ``load`` cannot read or whose names it does not know; loads nothing."""
    _parts(text)


def places(text: str) -> list[tuple[str, str | None]]:
    """Of a text that ``load`` reads: each verifier's name, and the folder, file, hub id or address given for it."""
    return [(name, place) for name, _, place in _parts(text)[1]]


def with_places(text: str, changed: Callable[[str], str]) -> str:
    """The text with each place ``changed``; one that would no longer be read as one place stays as it is."""

    def part(text: str) -> str:
        name, equals, place = text.partition("=")
        new = changed(place.strip()) if equals else ""
        return f"{name}={new}" if equals and not set(new) & set(",()") else text

    method, inside = _method(text)
    told = ",".join(map(part, inside.split(",")))
    return told if method is None else f"{method}({told})"


def _by_text(text: str) -> Judge:
    from lotts.verifiers.ensemble import Ensemble, Member

    # Every name before any weights: an unknown one should not wait for the others to load.
    method, parts = _parts(text)
    if method is None and len(parts) == 1 and parts[0][1] is None:
        return _make(*parts[0][::2])
    members = [Member(name, _make(name, place), weight or 1.0) for name, weight, place in parts]
    return Ensemble(members, method or "rank")


def _parts(text: str) -> tuple[str | None, list[tuple[str, float | None, str | None]]]:
    """The method of an ensemble, if it is named, and what ``_part`` makes of each verifier."""
    method, inside = _method(text)
    return method, [_part(part) for part in inside.split(",")]


def _method(text: str) -> tuple[str | None, str]:
    """The method of an ensemble, if it is named, and what stands in its brackets, or the text itself."""
    call = re.fullmatch(r"\s*(rank|zscore)\((.*)\)\s*", text)
    return (call[1], call[2]) if call else (None, text)


def _part(text: str) -> tuple[str, float | None, str | None]:
    """Name, weight and location of "name", "name:weight", "name=location" or "name:weight=location"."""
    name, equals, location = text.strip().partition("=")
    name, colon, weight = name.partition(":")
    if name not in REGISTRY:
        raise ValueError(
            f"expected a verifier out of {', '.join(REGISTRY)} or a callable (images, prompts) -> scores, got {name!r}"
        )
    try:
        number = float(weight) if colon else None
    except ValueError:
        raise ValueError(f"expected a number as the weight of {name}, got {weight!r}") from None
    if number is not None and not 0 < number < float("inf"):
        raise ValueError(f"expected a weight above 0 for {name}, got {weight}")
    if equals and not location:
        raise ValueError(f"expected a folder, a file or a hub id after {name}=, got nothing")
    return name, number, location or None


def _make(name: str, location: str | None) -> Judge:
    maker = REGISTRY[name]
    if isinstance(maker, str):
        module, _, attribute = maker.partition(":")
        maker = getattr(importlib.import_module(module), attribute)
    return maker() if location is None else maker(location)


def score(
    verifier: Judge,
    images: Sequence[np.ndarray],
    prompts: Sequence[str],
    device: str | torch.device | None = None,
) -> list[float]:
    """Score pictures; ValueError when the verifier returns a wrong count or a number that is not finite.

    A ``Verifier`` that rests on the CPU and ``follows`` moves to ``device`` for this call and back.
    """
    with placed(verifier, device):
        scores = [float(s) for s in torch.as_tensor(verifier(images, prompts), dtype=torch.float64).flatten()]
    if len(scores) != len(images):
        raise ValueError(f"expected one score for each of {len(images)} pictures, got {len(scores)} from the verifier")
    for index, value in enumerate(scores):
        if not np.isfinite(value):
            raise ValueError(
                f"the verifier scored picture {index} ({prompts[index]!r}) {value}: expected a finite number"
            )
    return scores
