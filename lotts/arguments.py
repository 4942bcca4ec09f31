"""The arguments of a run, checked before any compute."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lotts.checks import real, whole
from lotts.localize import check_ratio, check_threshold
from lotts.resample_config import ResampleConfig

if TYPE_CHECKING:
    from lotts.verifiers import Judge


def check_callback(callback: Any) -> None:
    """TypeError unless a callback is a function of (pipe, step, timestep, kwargs), or None."""
    if callback is None:
        return
    if not callable(callback):
        raise TypeError(f"expected callback_on_step_end as a function, got {type(callback).__name__}")
    if getattr(callback, "tensor_inputs", None):
        raise TypeError(
            "expected callback_on_step_end as a function (pipe, step, timestep, kwargs), whose kwargs hold latents and stage, got "
            f"{type(callback).__name__}, which asks for {', '.join(callback.tensor_inputs)} of the pipeline's own call"
        )


def check_numbers(
    *,
    num_candidates: int,
    num_inference_steps: int,
    batch_size: int = 1,
    num_refinements: int = 0,
    mask_ratio: float = 0.5,
    mask_threshold: float | None = None,
    noise_step: int | None = None,
    guidance_scale: float | None = None,
    true_cfg_scale: float = 1.0,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    **resample: Any,
) -> tuple[dict[str, Any], ResampleConfig]:
    """The numbers of a run as plain ones and its setting of refinements; ValueError where one is out of range.

    Needs no pipeline. ``resample``: arguments of ``ResampleConfig``.
    """
    check_ratio(mask_ratio)
    check_threshold(mask_threshold)
    steps = whole("num_inference_steps", num_inference_steps, 1)
    plain = {
        "num_candidates": whole("num_candidates", num_candidates, 1),
        "num_refinements": whole("num_refinements", num_refinements),
        "num_inference_steps": steps,
        "batch_size": whole("batch_size", batch_size, 1),
        "mask_ratio": real("mask_ratio", mask_ratio),
        "mask_threshold": None if mask_threshold is None else real("mask_threshold", mask_threshold),
        "guidance_scale": None if guidance_scale is None else real("guidance_scale", guidance_scale),
        "true_cfg_scale": real("true_cfg_scale", true_cfg_scale),
        "eta": real("eta", eta),
        "height": None if height is None else whole("height", height, 1),
        "width": None if width is None else whole("width", width, 1),
    }
    config = ResampleConfig.of(steps, noise_step, **resample)
    if plain["num_refinements"]:
        config.check_masked(steps)
    return plain | {name: getattr(config, name) for name in ("noise_step", *resample)}, config


def check_prompt(prompt: str, verifier: Judge | None = None) -> None:
    """TypeError, ValueError for what is no prompt, or none that the verifier can judge."""
    if not isinstance(prompt, str):
        raise TypeError(f"expected one prompt as a string, got {type(prompt).__name__}; call once a prompt")
    if not prompt.strip():
        raise ValueError("expected a prompt, got an empty string")
    if verifier is not None and hasattr(verifier, "check_prompt"):
        verifier.check_prompt(prompt)


def seeds_from(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """Candidate seeds: s, s + 1, ... from one generator, one each from a list, or from a random start.

    They go on from 0 behind 2**64 - 1, the last that a generator takes.
    """
    if generator is None:
        start = int(torch.randint(2**31, ()))
    elif isinstance(generator, torch.Generator):
        start = generator.initial_seed()
    elif not isinstance(generator, (list, tuple)):
        number = isinstance(generator, numbers.Integral)
        raise TypeError(
            f"expected generator to be a torch.Generator or a list of them, got {generator!r}: pass "
            f"torch.Generator().manual_seed({generator if number else 0})"
        )
    else:
        if len(generator) != count or not all(isinstance(g, torch.Generator) for g in generator):
            raise ValueError(f"expected one torch.Generator or a list of {count}, one a candidate, got {generator!r}")
        return [g.initial_seed() for g in generator]
    return [(start + i) % 2**64 for i in range(count)]
