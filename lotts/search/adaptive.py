"""Our own searches, beyond the paper: refine the best so far, and spend each unit of compute where it is likeliest to pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any, NamedTuple

import torch

from lotts.checks import real, whole
from lotts.localize import check_ratio, check_threshold
from lotts.output import LoTTSOutput
from lotts.resample import grow
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


#: How many outcomes the beliefs to begin with are worth.
WEIGHT = 2.0
#: How often a refinement was seen to raise a picture that has flaws: where its source is sure, and elsewhere (docs/search.md).
SURE, WEAKEST = 0.75, 0.4
#: Before this share of all steps what a picture will become cannot be told.
EARLIEST_LOOK = 0.6
#: Every so many looks the refinement is finished whatever it looks like, so that what looks are worth stays known.
FINISHED_ANYWAY = 4


@dataclass
class Place:
    """Where refinements resample, and how often they raised the best score.

    The weakest ``ratio`` of the picture; with a ``threshold`` only what is above it, and a cell around.
    """

    ratio: float
    threshold: float | None = None
    prior: float = WEAKEST
    tries: int = 0
    successes: int = 0

    def chance(self, stuck: int) -> float:
        """That one more raises the best score, held by a picture that ``stuck`` refinements did not surpass."""
        share = (WEIGHT * self.prior + self.successes) / (WEIGHT + self.tries)
        return share * WEIGHT / (WEIGHT + stuck)

    def mask(self, pool: Pool, index: int) -> torch.Tensor:
        """bool [1, h, w], empty where there is nothing to resample."""
        mask = pool.mask(index, self.ratio, self.threshold)
        return mask if self.threshold is None else grow(mask, 1)


class Action(NamedTuple):
    """A unit of compute: a refinement of the best picture, or another picture where there is no ``place``."""

    chance: float
    price: float
    place: Place | None = None
    config: ResampleConfig | None = None


def lotts_adaptive(
    pool: Pool,
    *,
    num_candidates: int = 1,
    mask_ratios: Sequence[float] = (0.2, 0.5),
    mask_threshold: float | None = None,
    noise_shares: Sequence[float] = (0.4, 0.6, 0.2),
    stop_at: float | None = 0.5,
    least_chance: float = 0.0,
    **resample: Any,
) -> LoTTSOutput:
    """Spend each unit of compute on the action that is most likely to raise the best score for what it costs.

    After ``num_candidates`` pictures the actions are: another picture, or a refinement of the best so far, itself a refinement
    or not, in one of several places. Any of n pictures is as likely the highest as the others, so another one has a chance of
    1 / (n + 1); refinements that succeeded count among the n. A refinement's chance is the share of successes in its place on this
    prompt, beside a belief to begin with, and falls with each refinement that the best picture has withstood. On its way it is
    looked at once: where the picture that it is predicted to become scores below the best, it ends there.

    Args:
        mask_ratios: places: the weakest shares of the picture.
        mask_threshold: one more place: where the defect map is above it, half of the picture at most, and a cell around.
            None: the source's own, where its map has a scale (that of ``verifier``: 0.5).
        noise_shares: where refinements of one picture start, in turn, as shares of the steps counted from pure noise. With
            a budget of samples, of which each costs one, the earliest comes first.
        stop_at: after which share of its own steps a refinement is looked at, in (0, 1), but not before 0.6 of all; None:
            never, nor with a budget of samples, of which a refinement that is given up takes none.
        least_chance: the search ends with the budget, or where no action is as likely as this to raise the best score.
        resample: the rest of ``ResampleConfig``, with the defaults of ``lotts.LoTTS``.
    """
    steps, by_samples = pool.request.steps, pool.budget.unit == "samples"
    shares = _shares("noise_shares", noise_shares)
    configs = _configs(steps, sorted(shares) if by_samples else shares, **resample)
    places = _places(pool, mask_ratios, mask_threshold)
    if not 0 <= real("least_chance", least_chance) <= 1:
        raise ValueError(f"expected least_chance in [0, 1], got {least_chance}")
    if stop_at is not None and not 0 < real("stop_at", stop_at) < 1:
        raise ValueError(f"expected stop_at in (0, 1) or None, got {stop_at}")
    looks = _Looks(pool, None if by_samples else stop_at)
    looks.check(configs)
    drawn = pool.candidates(whole("num_candidates", num_candidates, 1))
    pictures, given_up, withstood = len(drawn), 0, dict[int, int]()
    while True:
        best = pool.best
        actions = _actions(pool, places, configs, pictures, withstood.get(best, 0))
        chosen = max(actions, key=lambda action: action.chance / action.price, default=None)
        if chosen is None or max(action.chance for action in actions) < least_chance:
            break
        if chosen.place is None or chosen.config is None:
            drawn = pool.candidates(1)
            pictures += 1
        else:
            before, place = pool.drawn[best].score, chosen.place
            go_on = looks.begin(chosen.config)
            drawn = pool.refine([best], place.mask(pool, best), chosen.config, look_at=go_on.step, go_on=go_on)
            given_up += not drawn
            if drawn:
                looks.learn(go_on.predicted, pool.drawn[drawn[0]].score)
            place.tries += 1
            place.successes += bool(drawn) and pool.drawn[drawn[0]].score > before
            withstood[best] = withstood.get(best, 0) + 1
            drawn = drawn or ([best] if go_on.predicted is not None else [])
        if not drawn:  # the time ran out since the action was chosen
            break
    thresholds = [place.threshold for place in places if place.threshold is not None]
    return pool.output(
        mask_ratios=list(mask_ratios), mask_threshold=thresholds[0] if thresholds else None, noise_shares=shares, given_up=given_up
    )  # fmt: skip


def _places(pool: Pool, ratios: Sequence[float], threshold: float | None) -> list[Place]:
    """Where refinements may resample: at least one place."""
    check_threshold(threshold)
    threshold = getattr(pool.request.source, "sure", None) if threshold is None else threshold
    sure = [] if threshold is None else [Place(0.5, threshold, SURE)]
    listed = [] if sure and isinstance(ratios, (list, tuple)) and not ratios else _shares("mask_ratios", ratios)
    for ratio in listed:
        check_ratio(ratio)
    return sure + [Place(ratio) for ratio in listed]


def _actions(pool: Pool, places: list[Place], configs: list[ResampleConfig], pictures: int, stuck: int) -> list[Action]:
    """Everything that still fits in the budget; the best picture has withstood ``stuck`` refinements."""
    steps, best = pool.request.steps, pool.best
    config = configs[stuck % len(configs)]
    left, localise = steps - config.noise_step, pool.localises(config)
    found = []
    if pool.affords(left, localise):
        price = pool.price(left, localise)
        found = [Action(p.chance(stuck), price, p, config) for p in places if p.mask(pool, best).any()]
    if pool.affords(steps):
        rivals = pictures + sum(place.successes for place in places)
        found.append(Action(1 / (1 + rivals), pool.price(steps)))
    return found


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


class _Looks:
    """When refinements are looked at on their way, and what looks were worth so far on this prompt."""

    def __init__(self, pool: Pool, share: float | None) -> None:
        self.pool, self.share = pool, share
        self.errors: list[float] = []
        self.taken = 0

    def step(self, config: ResampleConfig) -> int | None:
        """The step after which a refinement is looked at; None where nothing would be saved."""
        steps = self.pool.request.steps
        if self.share is None:
            return None
        own = ceil(round((steps - config.noise_step) * self.share, 9))
        done = max(config.noise_step + own, ceil(round(steps * EARLIEST_LOOK, 9)))
        return done - 1 if done < steps else None

    def check(self, configs: list[ResampleConfig]) -> None:
        """ValueError, before any compute, where the sampler cannot tell what a picture will become."""
        latents = torch.zeros(1, 1, 1, 1)
        for config in configs:
            if (step := self.step(config)) is not None:
                self.pool.request.backbone.clean_estimate(latents, latents, step)

    def begin(self, config: ResampleConfig) -> _Look:
        return _Look(self, self.step(config), max(self.pool.scores))

    def learn(self, predicted: float | None, score: float) -> None:
        """A refinement that was finished scores so; it was predicted to, where it was looked at."""
        if predicted is not None:
            self.errors.append(score - predicted)


class _Look:
    """Whether a refinement is worth finishing. ``predicted``: the score seen at ``step``."""

    def __init__(self, looks: _Looks, step: int | None, best: float) -> None:
        self.looks, self.step, self.best = looks, step, best
        self.predicted: float | None = None

    def __call__(self, predicted: float) -> bool:
        self.predicted = predicted
        self.looks.taken += 1
        if self.looks.taken % FINISHED_ANYWAY == 1:
            return True
        return predicted + median(self.looks.errors) > self.best
