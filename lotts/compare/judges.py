"""Held-out metrics: who judges a picture that a search chose, one number a column, higher is better."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from lotts.verifiers import Judge, load, score

CHECKER = "checker"
CHECKED = ("objects_right", "scene_right")


class Metric(Protocol):
    """``columns`` names the numbers that a call on a picture, uint8 [H, W, 3], and its prompt gives; ``version`` who says so."""

    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def version(self) -> str: ...
    def check_prompt(self, prompt: str) -> None: ...
    def __call__(self, pixels: np.ndarray, prompt: str) -> list[float]: ...


class CheckerMetric:
    """The exact checker of scenes of shapes: the share of objects that are right, and whether the whole scene is."""

    columns = CHECKED

    @property
    def version(self) -> str:
        from lotts.shapes.checker import VERSION

        return f"checker-{VERSION}"

    def check_prompt(self, prompt: str) -> None:
        from lotts.shapes.scenes import parse

        parse(prompt)

    def __call__(self, pixels: np.ndarray, prompt: str) -> list[float]:
        from lotts.shapes.checker import check
        from lotts.shapes.scenes import parse

        verdict = check(pixels, parse(prompt))
        return [verdict.objects_right, float(verdict.scene_right)]


class VerifierMetric:
    """Another verifier than the one searched with."""

    def __init__(self, name: str, device: torch.device | None = None) -> None:
        self.judge: Judge = load(name)
        if getattr(self.judge, "relative", False):
            raise ValueError(f"expected one verifier as a metric, got the ensemble {name}: its scores have no scale")
        self.columns, self.device = (name,), device
        self.version = str(getattr(self.judge, "version", name))

    def check_prompt(self, prompt: str) -> None:
        check: Any = getattr(self.judge, "check_prompt", None)
        if check is not None:
            check(prompt)

    def __call__(self, pixels: np.ndarray, prompt: str) -> list[float]:
        return score(self.judge, [pixels.astype(np.float32) / 255], [prompt], self.device)


def load_metric(name: str, device: torch.device | None = None) -> Metric:
    """The metric of a name: "checker" or a verifier's."""
    return CheckerMetric() if name == CHECKER else VerifierMetric(name, device)


def columns_of(name: str) -> tuple[str, ...]:
    """The columns of a metric by its name, without loading it."""
    return CHECKED if name == CHECKER else (name,)
