"""Our own searches, beyond the paper: refine the best so far, and spend each unit of compute where it should pay most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, erfc, exp, pi, sqrt
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
    # erfc keeps its digits far below; the two terms still cancel there, and rounding may leave less than nothing.
    return max(0.0, std * (z * 0.5 * erfc(-z / sqrt(2)) + exp(-0.5 * z * z) / sqrt(2 * pi)))


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
    stop_at: float | None = 0.5,
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
    if stop_at is not None and not 0 < stop_at < 1:
        raise ValueError(f"expected stop_at in (0, 1) or None, got {stop_at}")
    if num_candidates < 1 or not settings:
        raise ValueError("expected num_candidates from 1, and at least one mask ratio and one noise share")
    pool.candidates(num_candidates)
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
        look = _Look(pool, config, None if pool.budget.unit == "samples" else stop_at, value, errors)
        mask = pool.mask(parent, ratio, mask_threshold)
        drawn = pool.refine([parent], mask, config, look_at=look.step, go_on=look.go_on)
        given_up += not drawn
        outcome = pool.drawn[drawn[0]].score if drawn else look.expected
        if drawn and look.predicted is not None:
            errors.seen.append(outcome - look.predicted)
        changes[chosen].seen.append(outcome - pool.drawn[parent].score)
    return pool.output(
        method="lotts_adaptive",
        num_candidates=num_candidates,
        mask_ratios=list(mask_ratios),
        noise_shares=list(noise_shares),
        mask_threshold=mask_threshold,
        stop_at=stop_at,
        least_gain=least_gain,
        given_up=given_up,
    )


class _Look:
    """Whether a refinement is worth finishing: ``value`` is what the best action promises for its price.

    ``step``: where it is looked at, None where nothing would be saved; ``predicted``: the score seen there.
    """

    def __init__(self, pool: Pool, config: ResampleConfig, share: float | None, value: float, errors: Gains) -> None:
        steps = pool.request.steps
        own = steps - config.noise_step
        taken = ceil(own * share) if share is not None else own
        self.step = config.noise_step + taken - 1 if taken < own else None
        self.price, self.best, self.value = pool.price(own - taken, config.sparse == "dense"), max(pool.scores), value
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
        left, localise = steps - config.noise_step, config.sparse == "dense"
        if not pool.affords(left, localise):
            continue
        mean, std = changes[chosen].belief()
        for parent in leaders:
            gain = expected_improvement(pool.drawn[parent].score + mean, std, best)
            found.append((gain / pool.price(left, localise), (parent, chosen)))
    return found
