"""LoTTS: localised test-time scaling for diffusion models.

Find the weak region of a generated picture, resample only there, keep the rest, never return something worse.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lotts.capture import capture
    from lotts.localize import LocalizeConfig
    from lotts.models import load_pipeline
    from lotts.output import LoTTSOutput, Sample
    from lotts.pipeline import LoTTS
    from lotts.repairs import repair
    from lotts.replays import replay
    from lotts.sources import AttentionSource, PredictionSource
    from lotts.support import Support, supported

_HOME = {
    "AttentionSource": "lotts.sources",
    "LoTTS": "lotts.pipeline",
    "LoTTSOutput": "lotts.output",
    "LocalizeConfig": "lotts.localize",
    "PredictionSource": "lotts.sources",
    "Sample": "lotts.output",
    "Support": "lotts.support",
    "capture": "lotts.capture",
    "load_pipeline": "lotts.models",
    "repair": "lotts.repairs",
    "replay": "lotts.replays",
    "supported": "lotts.support",
}

__all__ = [
    "AttentionSource",
    "LoTTS",
    "LoTTSOutput",
    "LocalizeConfig",
    "PredictionSource",
    "Sample",
    "Support",
    "__version__",
    "capture",
    "load_pipeline",
    "repair",
    "replay",
    "supported",
]


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that ``import lotts`` costs little."""
    if name not in _HOME:
        raise AttributeError(f"module 'lotts' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    if name != "capture":  # the package lotts.capture is itself callable and must stay importable under its name
        globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
