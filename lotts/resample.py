"""Localised resampling: noise injection, masked refinement, global integration (paper, "Consistency maintenance")."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lotts.backbones import Backbone, Conditioning, LinearUpdate
from lotts.cost import Cost
from lotts.kernels import blend_step, inject_noise
from lotts.resample_config import ResampleConfig
from lotts.sparse import Trace, plan


@dataclass
class Trajectory:
    """One sample's way through the sampler.

    ``latents[i]`` [C, h, w] enter step i; the last entry is the result. Steps before ``first`` were not kept (None).
    ``trace``: what its run left of the network's keys and values, where that was recorded, and its row there.
    """

    seed: int
    latents: list[torch.Tensor | None]
    trace: tuple[Trace, int] | None = None

    def at(self, step: int) -> torch.Tensor:
        """The latents that enter a step that was kept."""
        kept = self.latents[step]
        assert kept is not None
        return kept

    @property
    def result(self) -> torch.Tensor:
        return self.at(-1)


@dataclass(frozen=True)
class Look:
    """A look at refinements on their way: ``go_on`` sees what ``step`` predicts will become of them [B, C, h, w]."""

    step: int
    go_on: Callable[[torch.Tensor], bool]


Watch = Callable[[int, torch.Tensor], AbstractContextManager[None]]
OnStep = Callable[[int, torch.Tensor], torch.Tensor | None]


def derive_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose of one sample: depends on nothing else."""
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def denoise(
    backbone: Backbone,
    text: Conditioning,
    seeds: list[int],
    size: tuple[int, int],
    num_inference_steps: int,
    *,
    latents: torch.Tensor | None = None,
    watch: Watch | None = None,
    on_step: OnStep | None = None,
    trace: Trace | None = None,
) -> list[Trajectory]:
    """Denoise one candidate a seed (one batch) and keep the latents of every step.

    Args:
        text: conditioning of one prompt, [1, L, E].
        latents: initial noise [B, C, h, w] instead of what the seeds give.
        watch: context entered around the prediction of step i from its latents (attention capture).
        on_step: called with (step, latents) after each step; may return replacement latents.
        trace: records the run for sparse refinements of it.
    """
    # First the schedule: by it Euler says how strong pure noise is.
    backbone.restart(num_inference_steps, 0, size)
    if latents is None:
        latents = torch.cat([backbone.initial_latents(seed, size) for seed in seeds])
    # A plain run draws its later noise from the generator that drew the initial latents; so do we.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds] if backbone.stochastic else None
    for generator in generators or ():
        torch.randn((1, *latents.shape[1:]), generator=generator, dtype=latents.dtype)
    text, steps = text.repeat(len(seeds)), [latents]
    for step in range(num_inference_steps):
        with watch(step, latents) if watch else nullcontext(), trace.step(step) if trace else nullcontext():
            prediction = backbone.predict(latents, step, text)
        # The scheduler's own arithmetic: candidates are the stock pipeline's pictures bit for bit.
        latents = shown(on_step, step, backbone.step(prediction, step, latents, generators))
        steps.append(latents)
    return [
        Trajectory(seed, [entry[i].clone() for entry in steps], (trace, i) if trace else None)
        for i, seed in enumerate(seeds)
    ]


def refine(
    backbone: Backbone,
    text: Conditioning,
    candidates: list[Trajectory],
    masks: torch.Tensor,
    indices: list[int],
    config: ResampleConfig,
    num_inference_steps: int,
    *,
    watch: Watch | None = None,
    on_step: OnStep | None = None,
    look: Look | None = None,
    cost: Cost | None = None,
) -> list[Trajectory]:
    """Resample ``masks`` (bool [B, h, w]) of B candidates, one batch; ``indices[b]`` tells refinements of one candidate apart.

    A row whose mask is empty comes back as it was. Nothing comes back when ``look`` says not to go on. ``cost`` is told what
    sparse steps spared, and which were dense after all.
    """
    n, t0 = num_inference_steps, config.noise_step
    config.check_schedule(n)
    masks = grow(masks, config.dilate)
    change = _soft_ring(masks, config.soft_ring)
    height, width = candidates[0].result.shape[-2:]
    backbone.restart(n, t0, (height, width))
    behind = _Background(backbone, candidates, indices, config.background)

    # Noise injection inside the mask.
    signal, noise = backbone.signal_and_noise(t0)
    seeds = _seeds(candidates, indices, "inject", behind.x0.device)[:, None]
    injected = masks[:, None].to(torch.float32)
    latents = inject_noise(behind.x0, injected, behind(t0), seeds, signal=signal, noise=noise)[:, 0]
    steps: list[torch.Tensor | None] = [None] * t0 + [latents]

    sparse = plan(
        backbone,
        change >= 0,
        text,
        config.masked_steps(n),
        mode=config.sparse,
        refresh_every=config.refresh_every,
        offload=config.sparse_offload,
        traces=[candidate.trace for candidate in candidates],
        cost=Cost() if cost is None else cost,
    )
    text = text.repeat(len(candidates))
    seeds = _seeds(candidates, indices, "step", latents.device)
    for step in range(t0, n):
        masked = step in config.masked_steps(n)
        partly = sparse.step(step) if sparse is not None and masked else nullcontext()
        with watch(step, latents) if watch else nullcontext(), partly:
            rows = backbone.predict_rows(latents, step, text)
        if look is not None and step == look.step:
            clean = backbone.clean_estimate(latents, text.guide(rows), step)
            if not look.go_on(torch.where(masks[:, None], clean, behind.x0)):
                return []
        blend: dict[str, Any] = {}
        if masked:  # masked refinement; afterwards global integration
            inside = change >= 1 - (step + 1 - t0) / (n - t0)
            blend = {"mask": inside[:, None].to(torch.float32), **behind.parts(step + 1)}
        latents = shown(on_step, step, _advance(backbone, rows, step, latents, text, seeds, blend))
        steps.append(latents)

    empty = ~masks.flatten(1).any(1)
    out = []
    for row, candidate in enumerate(candidates):
        kept = [None if entry is None else entry[row].clone() for entry in steps]
        out.append(Trajectory(candidate.seed, list(candidate.latents) if empty[row] else kept))
    return out


def grow(masks: torch.Tensor, cells: int) -> torch.Tensor:
    """Dilate bool masks [B, h, w] by ``cells`` in all eight directions."""
    if not cells:
        return masks
    return F.max_pool2d(masks[:, None].float(), 2 * cells + 1, 1, cells)[:, 0] > 0


def renoise(
    backbone: Backbone, x0: torch.Tensor, step: int, seeds: torch.Tensor | list[int], stream: int = 0
) -> torch.Tensor:
    """x0 [B, C, h, w] with the noise level of ``step``, one Philox noise a sample."""
    signal, noise = backbone.signal_and_noise(step)
    everywhere = torch.ones((x0.shape[0], 1, 1, 1), device=x0.device)
    keys = torch.as_tensor(seeds, device=x0.device)[:, None]
    return inject_noise(x0, everywhere, x0, keys, signal=signal, noise=noise, stream=stream)[:, 0]


def _advance(
    backbone: Backbone,
    rows: torch.Tensor,
    step: int,
    latents: torch.Tensor,
    text: Conditioning,
    seeds: torch.Tensor,
    blend: dict[str, Any],
) -> torch.Tensor:
    """Guidance, the sampler's update and the blend with the background: one launch where the update is linear."""
    update, guidance = backbone.linear_update(step), text.guidance_scale if text.guided else None
    if update is None:
        rows = latents = backbone.step(text.guide(rows), step, latents, None)
        update, guidance = LinearUpdate(1.0, 0.0), None
    # A stochastic sampler's noise depends on the refinement and the step alone, not on the batch.
    fresh: dict[str, Any] = {"noise_factor": update.noise, "seeds": seeds, "stream": step} if update.noise else {}
    return blend_step(
        latents,
        rows,
        latents_factor=update.latents,
        prediction_factor=update.prediction,
        guidance_scale=guidance,
        **fresh,
        **blend,
    )


def shown(on_step: OnStep | None, step: int, latents: torch.Tensor) -> torch.Tensor:
    """The latents after the callback, which may replace them."""
    replaced = on_step(step, latents) if on_step else None
    return latents if replaced is None else latents.copy_(replaced)


def _seeds(candidates: list[Trajectory], indices: list[int], purpose: str, device: torch.device) -> torch.Tensor:
    """One seed [B] for each refinement, whatever else is in the batch."""
    return torch.tensor(
        [derive_seed(c.seed, purpose, k) for c, k in zip(candidates, indices, strict=True)], device=device
    )


def _soft_ring(masks: torch.Tensor, cells: int) -> torch.Tensor:
    """When each cell joins: one of value c is refined during the last share c of the steps, one below 0 never."""
    change = masks.to(torch.float32)
    for ring in range(1, cells + 1):
        change = torch.where((change == 0) & grow(masks, ring), 1 - ring / (cells + 1), change)
    # 2, not 1, inside: rounding must not lock the mask itself out of the first step.
    return torch.where(masks, 2.0, torch.where(change > 0, change, -1.0))


class _Background:
    """What stands outside the mask when a step begins."""

    def __init__(self, backbone: Backbone, candidates: list[Trajectory], indices: list[int], kind: str) -> None:
        self.backbone, self.candidates, self.kind = backbone, candidates, kind
        self.x0 = torch.stack([c.result for c in candidates])
        self.seeds = _seeds(candidates, indices, kind, self.x0.device)

    def parts(self, step: int) -> dict[str, Any]:
        """The background of ``step`` as arguments of ``blend_step``, which adds the noise itself."""
        if self.kind == "replay":
            kept = [entry for entry in (c.latents[step] for c in self.candidates) if entry is not None]
            if len(kept) < len(self.candidates):
                raise ValueError(
                    f"background 'replay' needs the candidate's latents of step {step}; use 'fixed' for a picture from outside"
                )
            return {"background": torch.stack(kept)}
        if self.kind == "clean" or step >= len(self.backbone.scheduler.timesteps):
            return {"background": self.x0}
        signal, noise = self.backbone.signal_and_noise(step)
        return {
            "background": self.x0,
            "background_signal": signal,
            "background_noise": noise,
            "background_seeds": self.seeds,
            "background_stream": step if self.kind == "fresh" else 0,
        }

    def __call__(self, step: int) -> torch.Tensor:
        """[B, C, h, w], with its noise."""
        parts = self.parts(step)
        if "background_seeds" not in parts:
            return parts["background"]
        return renoise(self.backbone, self.x0, step, self.seeds, parts["background_stream"])
