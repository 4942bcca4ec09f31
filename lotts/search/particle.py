"""Particle sampling: Feynman-Kac steering of k copies under a stochastic sampler.

Source: Singhal et al., "A General Framework for Inference-time Scaling and Steering of Diffusion Models".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lotts.checks import real, truth, whole
from lotts.kernels import blend_step
from lotts.output import LoTTSOutput
from lotts.resample import Trajectory, derive_seed, shown
from lotts.search.budget import UNBOUNDED
from lotts.search.pool import Pool

POTENTIALS = ("diff", "max", "add", "rt")
RESAMPLERS = ("systematic", "multinomial")


class Weights:
    """Log-weights of k particles between resamplings, and of their lineages since the start.

    Args:
        potential: log w is ``strength`` times: the reward's change (``diff``), its largest value so far (``max``), its sum so
            far (``add``), or itself (``rt``).
        strength: lambda; it has to fit the range of the rewards.
    """

    def __init__(self, count: int, potential: str, strength: float) -> None:
        self.potential, self.strength = potential, strength
        start = -torch.inf if potential == "max" else 0.0
        self.state = torch.full((count,), start, dtype=torch.float64)
        self.pending = torch.zeros(count, dtype=torch.float64)
        self.lineage = torch.zeros(count, dtype=torch.float64)

    def update(self, rewards: torch.Tensor, last: bool = False) -> None:
        """Weigh by new rewards. ``last``: all but ``diff`` are divided by the product of the lineage's past weights."""
        if self.potential == "diff":
            value, self.state = rewards - self.state, rewards
        elif self.potential == "max":
            value = self.state = torch.maximum(rewards, self.state)
        elif self.potential == "add":
            value = self.state = rewards + self.state
        else:
            value = self.state = rewards
        log_weight = self.strength * value
        if last and self.potential != "diff":
            log_weight = log_weight - self.lineage
        self.lineage = self.lineage + log_weight
        self.pending = self.pending + log_weight

    @property
    def normalised(self) -> torch.Tensor:
        return self.pending.softmax(0)

    @property
    def effective_size(self) -> float:
        """1 / sum w^2: k when all weigh alike, 1 when one has all."""
        return float(1 / self.normalised.square().sum())

    def take(self, indices: torch.Tensor) -> None:
        """Particles were resampled: state and lineage move with them, and they weigh alike again."""
        self.state, self.lineage = self.state[indices], self.lineage[indices]
        self.pending = torch.zeros_like(self.pending)


def systematic(weights: torch.Tensor, offset: float) -> torch.Tensor:
    """Indices [k] of particles kept: one at each (offset + i) / k of the cumulative weights [k]; offset in [0, 1)."""
    k = len(weights)
    places = (torch.arange(k, dtype=torch.float64) + offset) / k
    return torch.searchsorted(weights.double().cumsum(0), places, right=True).clamp(max=k - 1)


def particle(
    pool: Pool,
    *,
    potential: str = "diff",
    strength: float = 2.0,
    resample_at: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 0.99),
    resampler: str = "systematic",
    adaptive: bool = True,
    particles: int | None = None,
) -> LoTTSOutput:
    """Denoise particles together; now and then copy the promising ones over the others.

    At each share of the steps in ``resample_at`` the predicted pictures are decoded and judged. The last of them counts as the last
    step of the steering. The best final particle is returned. With no such share it is Best-of-N under the stochastic sampler.

    Args:
        potential, strength: see ``Weights``.
        particles: so many at a time, over and over until the budget is spent; by default as many as it allows, of seconds 4.
        resampler: "systematic" or "multinomial".
        adaptive: resample only where the effective sample size is under half the particles; until then weights add up.

    Raises:
        ValueError: an option is out of range, or the sampler has no stochastic form.
    """
    backbone, steps = pool.request.backbone, pool.request.steps
    _check(potential, strength, resample_at, resampler, particles, adaptive)
    update = backbone.linear_update(0, eta=backbone.eta or 1.0)
    if update is None or not update.noise:
        raise ValueError(
            "expected two steps or more of a sampler with a stochastic form (DDIM, Euler, flow matching), got "
            f"{steps} of {type(backbone.scheduler).__name__}"
        )
    if particles is None and pool.budget.unit == "seconds":
        particles = 4
    looks = sorted({min(int(share * steps), steps - 1) for share in resample_at})
    lineage: list[int] = []
    while count := min(pool.affords(steps), particles or UNBOUNDED):
        first, weights = len(pool), Weights(count, potential, strength)
        lineage += [first + parent for parent in _steered(pool, weights, count, looks, resampler, adaptive)]
    return pool.output(particles=particles, lineage=lineage)


def _steered(
    pool: Pool, weights: Weights, count: int, looks: Sequence[int], resampler: str, adaptive: bool
) -> list[int]:
    """Draw ``count`` particles into the pool; returns whose noise each began with."""
    request, backbone, steps = pool.request, pool.request.backbone, pool.request.steps
    seeds = [pool.seed(len(pool) + k) for k in range(count)]
    lineage = list(range(count))
    latents = torch.cat([backbone.initial_latents(seed, request.size) for seed in seeds])
    history: list[torch.Tensor] = [latents]
    keys = torch.tensor([derive_seed(seed, "particle") for seed in seeds], device=latents.device)
    backbone.restart(steps, 0, request.size)
    on_step = request.on_step("particle")
    for step in range(steps):
        with request.meter.stage("denoise"):
            latents, clean = _advance(pool, latents, step, keys, step in looks)
        latents = shown(on_step, step, latents)
        history.append(latents)
        if step not in looks:
            continue
        weights.update(torch.tensor(pool.judge(list(clean))[1], dtype=torch.float64), last=step == looks[-1])
        if adaptive and weights.effective_size >= count / 2:
            continue
        kept = _resampled(weights.normalised, resampler, derive_seed(seeds[0], "resample", step))
        weights.take(kept)
        lineage = [lineage[i] for i in kept.tolist()]
        # The past moves with the particle, so that each one's trajectory is its own.
        history = [entry[kept.to(entry.device)] for entry in history]
        latents = history[-1]
    request.charge(count, steps)
    done = [Trajectory(seeds[lineage[k]], [entry[k].clone() for entry in history]) for k in range(count)]
    images, scores = pool.judge([t.result for t in done])
    pool.add("particle", done, images, scores)
    return lineage


def _advance(
    pool: Pool, latents: torch.Tensor, step: int, keys: torch.Tensor, look: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """One stochastic step of all particles, ``batch_size`` at a time, and their predicted x0 where it is looked at."""
    request, backbone = pool.request, pool.request.backbone
    update = backbone.linear_update(step, eta=backbone.eta or 1.0)
    assert update is not None
    moved, clean = [], []
    for batch in request.batches(range(len(latents))):
        rows, text = latents[batch], request.text.repeat(len(batch))
        prediction = backbone.predict(rows, step, text)
        noise = {"noise_factor": update.noise, "seeds": keys[batch], "stream": step} if update.noise else {}
        moved.append(
            blend_step(rows, prediction, latents_factor=update.latents, prediction_factor=update.prediction, **noise)
        )
        if look:
            clean.append(backbone.clean_estimate(rows, prediction, step))
    return torch.cat(moved), torch.cat(clean) if look else latents


def _resampled(weights: torch.Tensor, resampler: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if resampler == "systematic":
        return systematic(weights, float(torch.rand((), generator=generator, dtype=torch.float64)))
    return torch.multinomial(weights, len(weights), replacement=True, generator=generator)


def _check(
    potential: str,
    strength: float,
    resample_at: Sequence[float],
    resampler: str,
    particles: int | None,
    adaptive: bool,
) -> None:
    if potential not in POTENTIALS:
        raise ValueError(f"expected potential to be one of {', '.join(POTENTIALS)}, got {potential!r}")
    if resampler not in RESAMPLERS:
        raise ValueError(f"expected resampler to be one of {', '.join(RESAMPLERS)}, got {resampler!r}")
    if not real("strength", strength) > 0:
        raise ValueError(f"expected strength above 0, got {strength}")
    if not isinstance(resample_at, (list, tuple)) or not all(0 <= real("resample_at", s) < 1 for s in resample_at):
        raise ValueError(f"expected resample_at as shares of the steps in [0, 1), got {resample_at}")
    truth("adaptive", adaptive)
    if particles is not None:
        whole("particles", particles, 1)
