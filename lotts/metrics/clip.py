"""A verifier's score over a set of pictures: CLIP score, or any other verifier's mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lotts import verifiers
from lotts.checks import counted_from
from lotts.metrics.pictures import Picture, as_pixels
from lotts.verifiers import Judge, Verifier
from lotts.verifiers.ensemble import Ensemble


@dataclass(frozen=True)
class SetScore:
    """A mean over pictures, and whose it is.

    Attributes:
        mean: in the verifier's own scale, also where a lower score is the better one.
        standard_error: of the mean over pictures, standard deviation (with N - 1) over the root of N; None for one picture.
            It tells of these pictures only: another seed or another set of prompts varies more.
        count: N.
        verifier, version, scale: the verifier's; version and scale are None for a plain callable.
    """

    mean: float
    standard_error: float | None
    count: int
    verifier: str
    version: str | None
    scale: str | None

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" +- {self.standard_error:.4f}"
        version = "" if self.version is None else f" {self.version}"
        return f"{self.mean:.4f}{error} ({self.verifier}{version}, {self.count} pictures)"

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def clip_score(
    pictures: Sequence[Picture], prompts: Sequence[str], verifier: str | Judge = "clipscore", batch_size: int = 32
) -> SetScore:
    """The mean score of pictures against their prompts.

    With ``clipscore`` a picture's score is 100 times the cosine of the two embeddings, no less than 0 (Hessel et al.,
    "CLIPScore", 2021, who scale by 2.5 instead), and the mean is taken afterwards.

    Args:
        pictures: PIL images, arrays, tensors or paths; paths are opened ``batch_size`` at a time.
        prompts: one a picture.
        verifier: by name, or any verifier or callable ``(images, prompts) -> scores``; it stays on its device.

    Raises:
        ValueError: the counts differ or are 0, a picture is not as said, the verifier is an ensemble, refuses a prompt or
            returns what is not finite. Prompts are checked before the first picture is scored.
    """
    if isinstance(prompts, str) or len(pictures) != len(prompts):
        got = "one string" if isinstance(prompts, str) else len(prompts)
        raise ValueError(f"expected one prompt for each of {len(pictures)} pictures, got {got}")
    if not len(pictures):
        raise ValueError("expected pictures to score, got none")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"expected batch_size to be a whole number from 1 up, got {batch_size!r}")
    judge = verifiers.load(verifier)
    if isinstance(judge, Ensemble):
        raise ValueError(
            f"expected one verifier, got the ensemble {judge.name}: its scores only rank pictures of one prompt and call"
        )
    for prompt in dict.fromkeys(prompts):
        getattr(judge, "check_prompt", lambda prompt: None)(prompt)
    scores: list[float] = []
    cache: dict[str, Any] = {}
    for start in range(0, len(pictures), batch_size):
        chosen = range(start, min(start + batch_size, len(pictures)))
        images = [as_pixels(pictures[index], f"picture {index}") / np.float32(255) for index in chosen]
        with counted_from(f"picture {start} of all"):
            scores += _scores(judge, images, [prompts[index] for index in chosen], cache)
    spread = float(np.std(scores, ddof=1)) / len(scores) ** 0.5 if len(scores) > 1 else None
    name = getattr(judge, "name", getattr(judge, "__name__", type(judge).__name__))
    version, scale = getattr(judge, "version", None), getattr(judge, "scale", None)
    return SetScore(float(np.mean(scores)), spread, len(scores), name, version, scale)


def _scores(judge: Judge, images: list[np.ndarray], prompts: list[str], cache: dict[str, Any]) -> list[float]:
    if isinstance(judge, Verifier):  # its own scale: a call would negate one that is better when lower
        return judge.score(images, prompts, cache).tolist()
    return verifiers.score(judge, images, prompts)
