"""Our own searches, beyond the paper: refine the best so far, and spend each unit of compute where it should pay most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, erfc, exp, pi, sqrt
from statistics import fmean, pstdev
from typing import Any

import torch

from lotts.checks import real, whole
from lotts.localize import check_ratio, check_threshold
from lotts.output import LoTTSOutput
from lotts.resample_config import ResampleConfig
from lotts.search.independent import resample_config, resolved
from lotts.search.pool import Pool


def lotts_chain(
    pool: Pool,
    *,
    num_candidates: int = 3,
    mask_ratio: float = 0.5,
    mask_threshold: float | None = None,
    noise_step: int | None = None,
    **resample: Any,
) -> LoTTSOutput:
    """Draw ``num_candidates`` pictures; from then on refine the best so far, where it is weakest, and keep what is better.

    ``mask_threshold``: see ``lotts.LoTTS``; where nothing is above it in the best picture, another one is drawn.
    ``resample``: the rest of ``ResampleConfig``, with the defaults of ``lotts.LoTTS``.
    """
    config = resample_config(pool.request.steps, noise_step, **resample)
    check_ratio(mask_ratio)
    check_threshold(mask_threshold)
    pool.candidates(whole("num_candidates", num_candidates, 1))
    drawn = [pool.best]
    while drawn:
        mask = pool.mask(pool.best, mask_ratio, mask_threshold)
        drawn = pool.refine([pool.best], mask, config) if mask.any() else pool.candidates(1)
    return pool.output(**resolved(config))


@dataclass
class Gains:
    """What an action has brought so far: its outcomes, and beliefs to begin with as good as ``weight`` outcomes."""

    mean: float
    std: float
    weight: float = 2.0
    seen: list[float] = field(default_factory=list)

    def belief(self) -> tuple[float, float]:
        """Mean and standard deviation of the next outcome."""
        n, w = len(self.seen), self.weight
        if not n:
            return self.mean, self.std
        mean = (w * self.mean + n * fmean(self.seen)) / (w + n)
        spread = n * pstdev(self.seen) ** 2 + n * (fmean(self.seen) - mean) ** 2
        variance = (w * (self.std**2 + (self.mean - mean) ** 2) + spread) / (w + n)
        return mean, sqrt(variance)


def expected_improvement(mean: float, std: float, best: float) -> float:
    """E[max(0, X - best)] of a normal X: by how much one more outcome should raise the best."""
    if std <= 0:
        return max(0.0, mean - best)
    z = (mean - best) / std
    # erfc keeps its digits far below; the two terms still cancel there, and rounding may leave less than nothing.
    return max(0.0, std * (z * 0.5 * erfc(-z / sqrt(2)) + exp(-0.5 * z * z) / sqrt(2 * pi)))


def lotts_adaptive(
    pool: Pool,
    *,
    num_candidates: int = 2,
    mask_ratios: Sequence[float] = (0.25, 0.5),
    mask_threshold: float | None = None,
    noise_shares: Sequence[float] = (0.4, 0.6, 0.8),
    stop_at: float | None = 0.5,
    least_gain: float = 0.0,
    **resample: Any,
) -> LoTTSOutput:
    """Spend each unit of compute on the action that is expected to raise the best score most for what it costs.

    After ``num_candidates`` pictures the actions are: another picture, or a refinement of one of the two best so far
    (refinements included) with one of the mask ratios at one of the noise steps. An action's outcomes (a picture's score; a
    refinement's change of its parent's score) are taken as normal, with the mean and spread that it has shown so far beside a
    weak belief to begin with: that refinements change nothing on average, half as widely as pictures differ.
    Its value is the expected improvement over the best score for what it costs in the budget's unit. On its way a refinement is looked at
    once: when finishing it is worth less than starting the best action anew, by the score of the picture that it is predicted to
    become and by how such predictions erred so far, it ends there. The search ends with the budget, or when no action is
    expected to bring ``least_gain``.

    Args:
        least_gain: in score for a unit of the budget (a network row, where that is seconds).
        mask_threshold: see ``lotts.LoTTS``; a leader in which nothing is above it is not refined.
        noise_shares: where refinements may start, as shares of the steps counted from pure noise.
        stop_at: after which share of its own steps a refinement is looked at, in (0, 1); None: never, nor with a budget of samples,
            of which a refinement that is given up takes none.
        resample: the rest of ``ResampleConfig``, with the defaults of ``lotts.LoTTS``.
    """
    steps = pool.request.steps
    ratios, shares = _shares("mask_ratios", mask_ratios), _shares("noise_shares", noise_shares)
    for ratio in ratios:
        check_ratio(ratio)
    configs = _configs(steps, shares, **resample)
    settings = [(ratio, config) for ratio in ratios for config in configs]
    check_threshold(mask_threshold)
    if stop_at is not None and not 0 < real("stop_at", stop_at) < 1:
        raise ValueError(f"expected stop_at in (0, 1) or None, got {stop_at}")
    share = None if pool.budget.unit == "samples" else stop_at
    _check_looks(pool, configs, share)
    pool.candidates(whole("num_candidates", num_candidates, 1))
    spread = max(pstdev(pool.scores), 1e-6 + 0.05 * abs(fmean(pool.scores)))
    pictures = Gains(fmean(pool.scores), spread, seen=pool.scores)
    changes = [Gains(0.0, 0.5 * spread) for _ in settings]
    errors = Gains(0.0, 0.5 * spread)  # of predicted scores
    given_up = 0
    while True:
        actions = _actions(pool, settings, mask_threshold, pictures, changes)
        value, action = max(actions, key=lambda pair: pair[0], default=(0.0, None))
        if action is None or value <= least_gain:
            break
        if action == NEW:
            pictures.seen += [pool.drawn[i].score for i in pool.candidates(1)]
            continue
        parent, chosen = action
        ratio, config = settings[chosen]
        look = _Look(pool, config, share, value, errors)
        mask = pool.mask(parent, ratio, mask_threshold)
        drawn = pool.refine([parent], mask, config, look_at=look.step, go_on=look.go_on)
        if not drawn and look.predicted is None:  # the time ran out since the action was chosen
            break
        given_up += not drawn
        outcome = pool.drawn[drawn[0]].score if drawn else look.expected
        if drawn and look.predicted is not None:
            errors.seen.append(outcome - look.predicted)
        changes[chosen].seen.append(outcome - pool.drawn[parent].score)
    return pool.output(mask_ratios=ratios, noise_shares=shares, given_up=given_up)


def _configs(steps: int, shares: Sequence[float], global_steps: int | None = None, **rest: Any) -> list[ResampleConfig]:
    """A refinement's setting for each share, all different: at the latest, one starts with one masked step left."""
    last = max(0, steps - 1 - (2 if global_steps is None else whole("global_steps", global_steps)))
    starts = dict.fromkeys(min(int(share * steps), last) for share in shares)
    return [resample_config(steps, start, global_steps=global_steps, **rest) for start in starts]


def _shares(name: str, values: Sequence[float]) -> list[float]:
    """Numbers in [0, 1], at least one; ValueError otherwise."""
    listed = [real(name, value) for value in values] if isinstance(values, (list, tuple)) else []
    if not listed or not all(0 <= value <= 1 for value in listed):
        raise ValueError(f"expected {name} as a list of one or more shares in [0, 1], got {values!r}")
    return listed


def _look_step(steps: int, config: ResampleConfig, share: float | None) -> int | None:
    """The step after which a refinement has taken ``share`` of its own; None where there is none left, or no share."""
    own = steps - config.noise_step
    taken = own if share is None else ceil(round(own * share, 9))
    return config.noise_step + taken - 1 if taken < own else None


def _check_looks(pool: Pool, configs: list[ResampleConfig], share: float | None) -> None:
    """ValueError, before any compute, where the sampler cannot tell what a picture will become."""
    latents = torch.zeros(1, 1, 1, 1)
    for config in configs:
        if (step := _look_step(pool.request.steps, config, share)) is not None:
            pool.request.backbone.clean_estimate(latents, latents, step)


class _Look:
    """Whether a refinement is worth finishing: ``value`` is what the best action promises for its price.

    ``step``: where it is looked at, None where nothing would be saved; ``predicted``: the score seen there.
    """

    def __init__(self, pool: Pool, config: ResampleConfig, share: float | None, value: float, errors: Gains) -> None:
        steps = pool.request.steps
        self.step = _look_step(steps, config, share)
        left = 0 if self.step is None else steps - 1 - self.step
        self.price, self.best, self.value = pool.price(left, pool.localises(config)), max(pool.scores), value
        self.errors = errors
        self.predicted: float | None = None

    @property
    def expected(self) -> float:
        """The score that it should come to."""
        assert self.predicted is not None
        return self.predicted + self.errors.belief()[0]

    def go_on(self, predicted: float) -> bool:
        self.predicted = predicted
        return expected_improvement(self.expected, self.errors.belief()[1], self.best) / self.price > self.value


#: The action of drawing another picture, beside (parent, setting) pairs.
NEW = (-1, -1)


def _actions(
    pool: Pool,
    settings: list[tuple[float, ResampleConfig]],
    threshold: float | None,
    pictures: Gains,
    changes: list[Gains],
) -> list[tuple[float, tuple[int, int]]]:
    """(expected improvement for its price, action) of everything that still fits in the budget."""
    steps, best = pool.request.steps, max(pool.scores)
    found = []
    if pool.affords(steps):
        found.append((expected_improvement(*pictures.belief(), best) / pool.price(steps), NEW))
    leaders = sorted(range(len(pool)), key=lambda i: (-pool.drawn[i].score, i))[:2]
    leaders = [leader for leader in leaders if pool.mask(leader, 1.0, threshold).any()]
    for chosen, (_, config) in enumerate(settings):
        left, localise = steps - config.noise_step, pool.localises(config)
        if not pool.affords(left, localise):
            continue
        mean, std = changes[chosen].belief()
        for parent in leaders:
            gain = expected_improvement(pool.drawn[parent].score + mean, std, best)
            found.append((gain / pool.price(left, localise), (parent, chosen)))
    return found
