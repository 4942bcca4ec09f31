"""Our own searches, beyond the paper: refine the best so far, and spend each unit of compute where it should pay most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import erf, exp, pi, sqrt
from statistics import fmean, pstdev

from lotts.localize import check_ratio, check_threshold
from lotts.output import LoTTSOutput
from lotts.resample_config import ResampleConfig
from lotts.search.independent import resample_config
from lotts.search.pool import Pool


def lotts_chain(
    pool: Pool,
    *,
    num_candidates: int = 3,
    mask_ratio: float = 0.5,
    mask_threshold: float | None = None,
    noise_step: int | None = None,
    background: str = "replay",
    global_steps: int = 2,
    dilate: int = 0,
    sparse: str = "dense",
    refresh_every: int | None = None,
    sparse_offload: bool = False,
) -> LoTTSOutput:
    """Draw ``num_candidates`` pictures; from then on refine the best so far, where it is weakest, and keep what is better.

    ``mask_threshold``: see ``lotts.LoTTS``; where nothing is above it in the best picture, another one is drawn.
    ``background``, ``global_steps``, ``dilate``, ``sparse``, ``refresh_every``, ``sparse_offload``: see ``ResampleConfig``.
    """
    steps, rest = pool.request.steps, (background, global_steps, dilate, sparse, refresh_every, sparse_offload)
    config = resample_config(steps, noise_step, *rest)
    check_ratio(mask_ratio)
    check_threshold(mask_threshold)
    pool.candidates(num_candidates)
    drawn = [pool.best]
    while drawn:
        mask = pool.mask(pool.best, mask_ratio, mask_threshold)
        drawn = pool.refine([pool.best], mask, config) if mask.any() else pool.candidates(1)
    return pool.output(
        method="lotts_chain",
        num_candidates=num_candidates,
        mask_ratio=mask_ratio,
        mask_threshold=mask_threshold,
        noise_step=config.noise_step,
    )


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
    return std * (z * 0.5 * (1 + erf(z / sqrt(2))) + exp(-0.5 * z * z) / sqrt(2 * pi))


def lotts_adaptive(
    pool: Pool,
    *,
    num_candidates: int = 2,
    mask_ratios: Sequence[float] = (0.25, 0.5),
    mask_threshold: float | None = None,
    noise_shares: Sequence[float] = (0.4, 0.6, 0.8),
    background: str = "replay",
    global_steps: int = 2,
    dilate: int = 0,
    least_gain: float = 0.0,
    sparse: str = "dense",
    refresh_every: int | None = None,
    sparse_offload: bool = False,
) -> LoTTSOutput:
    """Spend each unit of compute on the action that is expected to raise the best score most for what it costs.

    After ``num_candidates`` pictures the actions are: another picture, or a refinement of one of the two best so far
    (refinements included) with one of the mask ratios at one of the noise steps. An action's outcomes (a picture's score; a
    refinement's change of its parent's score) are taken as normal, with the mean and spread that it has shown so far beside a
    weak belief to begin with: that refinements change nothing on average, half as widely as pictures differ.
    Its value is the expected improvement over the best score, divided by its network rows. The search ends with the budget, or when
    no action is expected to bring ``least_gain``.

    Args:
        mask_threshold: see ``lotts.LoTTS``; a leader in which nothing is above it is not refined.
        noise_shares: where refinements may start, as shares of the steps counted from pure noise.
        background, global_steps, dilate, sparse, refresh_every, sparse_offload: see ``ResampleConfig``.
    """
    steps, rest = pool.request.steps, (background, global_steps, dilate, sparse, refresh_every, sparse_offload)
    settings = [
        (ratio, resample_config(steps, min(int(share * steps), steps - global_steps), *rest))
        for ratio in mask_ratios
        for share in noise_shares
    ]
    for ratio in mask_ratios:
        check_ratio(ratio)
    check_threshold(mask_threshold)
    if num_candidates < 1 or not settings:
        raise ValueError("expected num_candidates from 1, and at least one mask ratio and one noise share")
    pool.candidates(num_candidates)
    spread = max(pstdev(pool.scores), 1e-6 + 0.05 * abs(fmean(pool.scores)))
    pictures = Gains(fmean(pool.scores), spread, seen=pool.scores)
    changes = [Gains(0.0, 0.5 * spread) for _ in settings]
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
        (index,) = pool.refine([parent], pool.mask(parent, ratio, mask_threshold), config)
        changes[chosen].seen.append(pool.drawn[index].score - pool.drawn[parent].score)
    return pool.output(method="lotts_adaptive", num_candidates=num_candidates, mask_threshold=mask_threshold)


#: The action of drawing another picture, beside (parent, setting) pairs.
NEW = (-1, -1)


def _actions(
    pool: Pool,
    settings: list[tuple[float, ResampleConfig]],
    threshold: float | None,
    pictures: Gains,
    changes: list[Gains],
) -> list[tuple[float, tuple[int, int]]]:
    """(expected improvement for a network row, action) of everything that still fits in the budget."""
    steps, best = pool.request.steps, max(pool.scores)
    found = []
    if pool.affords(steps):
        found.append((expected_improvement(*pictures.belief(), best) / pool.rows(steps), NEW))
    leaders = sorted(range(len(pool)), key=lambda i: (-pool.drawn[i].score, i))[:2]
    leaders = [leader for leader in leaders if pool.mask(leader, 1.0, threshold).any()]
    for chosen, (_, config) in enumerate(settings):
        left, localise = steps - config.noise_step, config.sparse == "dense"
        if not pool.affords(left, localise):
            continue
        mean, std = changes[chosen].belief()
        for parent in leaders:
            gain = expected_improvement(pool.drawn[parent].score + mean, std, best)
            found.append((gain / pool.rows(left, localise), (parent, chosen)))
    return found
