"""What works with which pipeline: ``lotts.supported()``."""

from __future__ import annotations

from dataclasses import dataclass

from lotts.backbones import FAMILIES
from lotts.localize import LocalizeConfig


@dataclass(frozen=True)
class Support:
    """What a pipeline class can do here.

    Attributes:
        pipeline: the diffusers class; its subclasses count too.
        schedulers: with which ``LoTTS`` and ``repair`` can drive it. ``lotts.capture`` takes any.
        contrast: how its quality prompts get their maps without a network row of their own.
        localize: what ``AttentionSource()`` takes for it; ``AttentionSource(LocalizeConfig(...))`` overrides it.
        prediction_levels: what ``PredictionSource()`` takes for it; ``PredictionSource(levels)`` overrides it.
        notes: what to know beforehand.
    """

    pipeline: str
    schedulers: tuple[str, ...]
    contrast: str
    localize: LocalizeConfig
    prediction_levels: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        cross, spread = (f"{a:.0%} to {b:.0%}" for a, b in (self.localize.cross_steps, self.localize.self_steps))
        lines = [
            self.pipeline,
            f"  schedulers: {', '.join(self.schedulers)}",
            f"  quality prompts: {self.contrast}",
            f"  attention maps: read from {cross} of the steps, spread from {spread}",
            f"  prediction maps: at {', '.join(f'{level:.0%}' for level in self.prediction_levels)} of the steps",
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def supported() -> list[Support]:
    """What works with which pipeline class. Print an entry to read it."""
    return [
        Support(
            name,
            family.schedulers,
            "as keys of their own in every cross-attention layer"
            if family.order is None
            else "as probe tokens that ride along in the joint sequence",
            family.localize,
            family.prediction_levels,
            _notes(family.schedulers) + family.notes,
        )
        for name, family in FAMILIES.items()
    ]


def _notes(schedulers: tuple[str, ...]) -> tuple[str, ...]:
    if "DPMSolverMultistepScheduler" not in schedulers:
        return ()
    return (
        "DPMSolverMultistepScheduler (DPM++ 2M) forgets its history where a refinement starts: that step is of first order",
    )
