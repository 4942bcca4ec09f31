"""Where defect maps come from, behind one interface: attention (the paper's) or the model's predictions.

A source opens a watch on a batch of candidates. While they are denoised, ``watch.step(i)`` is entered around the model's
prediction of step i; afterwards ``watch.maps(latents_at)`` gives the heatmaps, the defect map under the name "P".
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lotts.sources.attention import AttentionSource
from lotts.sources.base import Heatmaps, LatentsAt, LateWatch, MapSource, NothingSeen, Watch
from lotts.sources.prediction import PredictionSource

if TYPE_CHECKING:
    from lotts.verifiers import Judge

__all__ = [
    "SOURCES",
    "AttentionSource",
    "Heatmaps",
    "LateWatch",
    "LatentsAt",
    "MapSource",
    "NothingSeen",
    "PredictionSource",
    "Watch",
    "map_source",
    "recorded_name",
]

#: A name and what makes the source: a class, or "module:attribute" of one that is only needed when it is asked for.
SOURCES: dict[str, type | str] = {
    "attention": AttentionSource,
    "prediction": PredictionSource,
    "verifier": "lotts.sources.verifier:VerifierSource",
    "random": "lotts.sources.controls:RandomSource",
    "defects": "lotts.sources.controls:DefectsSource",
    "foreground": "lotts.sources.controls:ForegroundSource",
}


def map_source(source: str | MapSource, verifier: Judge) -> MapSource:
    """A source by name, or the given one. ``verifier`` is the run's, which may be a source itself."""
    if isinstance(source, str):
        if source not in SOURCES:
            raise ValueError(
                f"expected a map source out of {', '.join(SOURCES)} or an object with watch(), got {source!r}"
            )
        found = SOURCES[source]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = getattr(importlib.import_module(module), attribute)
        return found(verifier) if source == "verifier" else found()
    if not hasattr(source, "watch"):
        raise TypeError(f"expected a map source with a watch() method, got {type(source).__name__}")
    return source


def recorded_name(source: MapSource, verifier: Judge) -> str | None:
    """The name by which ``map_source`` makes this very source again; None where it has arguments, or is none of ours."""
    name = getattr(source, "name", None)
    if name not in SOURCES or (name == "verifier" and not hasattr(verifier, "defect_maps")):
        return None
    again = map_source(name, verifier)
    return name if type(again) is type(source) and vars(again) == vars(source) else None
