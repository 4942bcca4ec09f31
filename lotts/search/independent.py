"""LoTTS as the paper spends its budget: candidates, and independent refinements of each."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from lotts.checks import whole
from lotts.localize import check_ratio, check_threshold
from lotts.output import LoTTSOutput
from lotts.resample_config import ResampleConfig
from lotts.search.pool import Pool

#: What methods that refine take beside options of their own.
RESAMPLE: dict[str, Any] = {f.name: f.default for f in fields(ResampleConfig) if f.name != "noise_step"} | {
    "global_steps": None
}


def lotts(
    pool: Pool,
    *,
    num_refinements: int = 2,
    num_candidates: int | None = None,
    mask_ratio: float = 0.5,
    mask_threshold: float | None = None,
    noise_step: int | None = None,
    **resample: Any,
) -> LoTTSOutput:
    """``num_candidates`` pictures and ``num_refinements`` of each (the paper's 3 and 2 make its N = 9).

    ``num_candidates``: by default as many as the budget gives ``num_refinements`` to. What is left of it goes to more
    refinements, so that with a number of candidates the budget alone says how many each gets.
    ``mask_threshold``: see ``lotts.LoTTS``; where nothing is above it in any picture, another one is drawn.
    ``resample``: the rest of ``ResampleConfig``, with the defaults of ``lotts.LoTTS``.
    """
    config = resample_config(pool.request.steps, noise_step, **resample)
    check_ratio(mask_ratio)
    check_threshold(mask_threshold)
    num_refinements = whole("num_refinements", num_refinements, 1)  # without any it is best_of_n
    if num_candidates is None:
        num_candidates = _candidates_for(pool, num_refinements, config)
    num_candidates = whole("num_candidates", num_candidates, 1)
    parents = pool.candidates(num_candidates)
    while True:
        # One refinement of each in turn, so that a budget that ends early leaves all alike.
        masks = {parent: pool.mask(parent, mask_ratio, mask_threshold) for parent in parents}
        wrong = [parent for parent in parents if masks[parent].any()]
        if not wrong:
            drawn = pool.candidates(1)
            parents += drawn
        else:
            drawn = pool.refine(wrong, torch.cat([masks[parent] for parent in wrong]), config, localise=False)
        if len(drawn) < max(1, len(wrong)):
            break
    return pool.output(num_candidates=num_candidates, **resolved(config))


def resample_config(steps: int, noise_step: int | None, **rest: Any) -> ResampleConfig:
    """The refinement's setting with the defaults of ``lotts.LoTTS``, checked against the schedule."""
    config = ResampleConfig.of(steps, noise_step, **rest)
    if config.sparse == "trace":
        raise ValueError("expected sparse 'dense' or 'stale' in a search: its candidates' runs are not traced")
    config.check_masked(steps)
    return config


def resolved(config: ResampleConfig) -> dict[str, int]:
    """What a run's settings say of the steps, where the caller left them to us."""
    return {"noise_step": config.noise_step, "global_steps": config.global_steps}


def _candidates_for(pool: Pool, num_refinements: int, config: ResampleConfig) -> int:
    """How many candidates fit together with their refinements; at least one."""
    budget, (height, width) = pool.budget, pool.request.size
    if budget.unit == "seconds":
        return 3
    if budget.unit == "samples":
        return max(1, int(budget.amount // (1 + num_refinements)))
    rows = budget.amount / (height * width) if budget.unit == "tokens" else budget.amount
    steps = pool.request.steps
    refinement = pool.rows(steps - config.noise_step, localise=False)
    return max(1, int(rows // (pool.rows(steps) + num_refinements * refinement)))
