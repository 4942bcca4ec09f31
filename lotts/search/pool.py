"""What every search works with: samples drawn and refined within a budget, each decoded, judged and charged once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lotts.localize import quality_mask
from lotts.manifest import made_with
from lotts.output import LoTTSOutput, Sample, as_output_type
from lotts.request import Request
from lotts.resample import Look, Trajectory, denoise, derive_seed, grow, refine, renoise
from lotts.resample_config import ResampleConfig
from lotts.search.budget import Budget
from lotts.sources import Heatmaps, LateWatch, NothingSeen


@dataclass
class Drawn:
    """A sample of the pool: how it came about, and what it is worth. ``maps`` fp32 [h, w] by name, where it was localised."""

    trajectory: Trajectory
    image: np.ndarray
    score: float
    kind: str
    parent: int | None = None
    refinement: int | None = None
    mask: torch.Tensor | None = None
    maps: Heatmaps | None = None
    nfe: int = 0
    seconds: float = 0.0


class Pool:
    """The samples of one search.

    Seeds of candidates are the request's: s, s + 1, ... A sample depends on its seed and its lineage alone, never on the batch
    that it was drawn in.
    """

    def __init__(self, request: Request, budget: Budget, localise: bool) -> None:
        self.request, self.budget, self.localise = request, budget, localise
        self.drawn: list[Drawn] = []
        self._children: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.drawn)

    @property
    def scores(self) -> list[float]:
        return [drawn.score for drawn in self.drawn]

    @property
    def best(self) -> int:
        """The highest score; ties go to the earliest."""
        return max(range(len(self)), key=lambda i: (self.drawn[i].score, -i))

    # --- what it costs

    def rows(self, steps: int, localise: bool = True) -> int:
        """Network rows of one sample over so many steps, localisation included where it is localised."""
        request = self.request
        rows = request.rows(1, steps)
        if localise and self.localise:
            rows += request.source.rows(request.backbone, request.steps, request.steps - steps)
        return rows

    def price(self, steps: int, localise: bool = True) -> float:
        """What that costs in the unit of the budget; a row, where that is a second."""
        rows, (height, width) = self.rows(steps, localise), self.request.size
        return {"samples": 1, "tokens": rows * height * width}.get(self.budget.unit, rows)

    def localises(self, config: ResampleConfig) -> bool:
        """Whether refinements get defect maps of their own: not from a source that reads steps which are sparse."""
        return self.localise and (config.sparse == "dense" or not self.request.source.reads_steps)

    def affords(self, steps: int, localise: bool = True) -> int:
        """How many more samples of so many steps fit in the budget."""
        height, width = self.request.size
        return self.budget.affords(
            self.request.meter.read(), len(self), rows=self.rows(steps, localise), cells=height * width
        )

    # --- drawing

    def candidates(self, count: int, latents: Sequence[torch.Tensor] | None = None) -> list[int]:
        """Draw up to ``count`` whole pictures, as many as fit; returns their indices.

        ``latents``: initial noise [C, h, w] of each instead of what their seeds give.
        """
        request, out = self.request, list[int]()
        wanted = range(count)
        for batch in request.batches(wanted):
            batch = batch[: self.affords(request.steps)]
            if not batch:
                break
            first, began = sum(drawn.kind == "candidate" for drawn in self.drawn), request.cost.nfe
            seeds = [self.seed(first + k) for k in range(len(batch))]
            start = None if latents is None else torch.stack([latents[i] for i in batch])
            with request.watch(seeds) if self.localise else _Unwatched() as watch:
                with request.meter.stage("denoise"):
                    done = denoise(
                        request.backbone,
                        request.text,
                        seeds,
                        request.size,
                        request.steps,
                        latents=start,
                        watch=watch.step if self.localise else None,
                        on_step=request.on_step("candidate"),
                    )
                maps = self._maps_of(watch, done) if self.localise else None
            request.charge(len(batch), request.steps, watch)
            out += self._keep("candidate", began, done, [None] * len(done), [None] * len(done), maps)
        return out

    def refine(
        self,
        parents: Sequence[int],
        masks: torch.Tensor,
        config: ResampleConfig,
        *,
        localise: bool = True,
        look_at: int | None = None,
        go_on: Callable[[float], bool] | None = None,
    ) -> list[int]:
        """Resample ``masks`` (bool [n, h, w]) of ``parents``, as many as fit; returns the new indices.

        ``localise`` gives them defect maps, without which they cannot be refined in turn. Where ``localises`` says that they
        get none of their own, they inherit their parents'. ``go_on`` (of one parent alone) is given the score of the picture
        that step ``look_at`` predicts; if it says no, the refinement ends there, charged for the steps it took, and is no
        sample.
        """
        request, out, mapped = self.request, list[int](), localise and self.localise
        steps, localise = request.steps - config.noise_step, mapped and self.localises(config)
        look = None
        if look_at is not None and go_on is not None:
            look = Look(look_at, lambda clean: go_on(self.judge(list(clean))[1][0]))
        for batch in request.batches(range(len(parents))):
            batch = batch[: self.affords(steps, localise)]
            if not batch:
                break
            chosen, began = [parents[i] for i in batch], request.cost.nfe
            numbers = [self._number(parent) for parent in chosen]
            befores = [self.drawn[parent].trajectory for parent in chosen]
            seeds = [self._refined_seed(parent, number) for parent, number in zip(chosen, numbers, strict=True)]
            with request.watch(seeds) if localise else _Unwatched() as watch:
                with request.meter.stage("refine"):
                    refined = refine(
                        request.backbone,
                        request.text,
                        [Trajectory(self._lineage_seed(p), t.latents) for p, t in zip(chosen, befores, strict=True)],
                        masks[batch],
                        numbers,
                        config,
                        request.steps,
                        watch=watch.step if localise else None,
                        on_step=request.on_step("refinement"),
                        look=look,
                        cost=request.cost,
                    )
                if look is not None and not refined:
                    request.charge(len(batch), look.step + 1 - config.noise_step, watch)
                    continue
                maps = self._maps_of(watch, refined, chosen) if mapped else None
            # Before it began its past is its parent's: that is what a refinement of it replays.
            done = [
                Trajectory(before.seed, [*before.latents[: config.noise_step], *after.latents[config.noise_step :]])
                for before, after in zip(befores, refined, strict=True)
            ]
            request.charge(len(batch), steps, watch)
            grown = grow(masks[batch], config.dilate)
            out += self._keep("refinement", began, done, chosen, numbers, maps, list(grown))
        return out

    def mask(self, index: int, ratio: float, threshold: float | None = None) -> torch.Tensor:
        """The weakest ``ratio`` of a sample by its defect map, above ``threshold`` alone; bool [1, h, w]."""
        maps = self.drawn[index].maps
        if maps is None:
            raise RuntimeError(f"sample {index} was not localised")
        found, redrawn = maps["P"][None], getattr(self.request.source, "redrawn", None)
        if redrawn is not None:  # chance is not to try the same place over and over
            found = redrawn([self._refined_seed(index, self._children.get(index, 0))], found.shape[1:]).to(found)
        return quality_mask(found, ratio, threshold)

    def seed(self, number: int) -> int:
        """The seed of a candidate, by its number: the request's, then the next after the first that are not among them."""
        seeds = self.request.seeds
        if number < len(seeds):
            return seeds[number]
        others = (seed for k in itertools.count(1) if (seed := (seeds[0] + k) % 2**64) not in seeds)
        return next(itertools.islice(others, number - len(seeds), None))

    def output(self, best: int | None = None, **settings: Any) -> LoTTSOutput:
        """The pool as a run's output; ``best`` where it is not the verifier's choice, ``settings`` what the search decided."""
        request = self.request
        samples = [
            Sample(
                as_output_type(drawn.image, request.output_type),
                drawn.score,
                drawn.kind,
                drawn.trajectory.seed,
                drawn.parent,
                drawn.refinement,
                None if drawn.mask is None else drawn.mask.cpu(),
                {name: maps.cpu() for name, maps in (drawn.maps or {}).items()},
                drawn.nfe,
                drawn.seconds,
            )
            for drawn in self.drawn
        ]
        chosen = self.best if best is None else best
        made = made_with(request.backbone.scheduler, request.verifier)
        return LoTTSOutput(request.prompt, samples, chosen, request.meter.read(), settings, made)

    def add(
        self, kind: str, trajectories: list[Trajectory], images: list[np.ndarray], scores: list[float]
    ) -> list[int]:
        """Samples that a search made by itself, already judged."""
        first, cost = len(self), self.request.meter.read()
        for trajectory, image, value in zip(trajectories, images, scores, strict=True):
            self.drawn.append(Drawn(trajectory, image, value, kind, nfe=cost.nfe, seconds=cost.seconds))
        return list(range(first, len(self)))

    def judge(self, latents: Sequence[torch.Tensor]) -> tuple[list[np.ndarray], list[float]]:
        """Decode latents [C, h, w] and score the pictures."""
        images = self.request.pictures(latents)
        return images, self.request.judge(images)

    def _keep(self, kind, began, trajectories, parents, numbers, maps, masks=None) -> list[int]:
        """Judge and add a batch; its samples share alike what it has cost beyond the ``began`` rows it began at."""
        indices = self.add(kind, trajectories, *self.judge([t.result for t in trajectories]))
        rows = self.request.cost.nfe - began
        for i, index in enumerate(indices):
            drawn = self.drawn[index]
            # As if drawn one by one: scaling curves do not depend on the batch size.
            drawn.nfe = began + rows * (i + 1) // len(indices)
            drawn.parent, drawn.refinement = parents[i], numbers[i]
            drawn.mask = None if masks is None else masks[i]
            drawn.maps = None if maps is None else {name: values[i] for name, values in maps.items()}
        return indices

    def _maps_of(self, watch: Any, done: list[Trajectory], parents: Sequence[int] = ()) -> Heatmaps:
        """Heatmaps of a batch; those of its parents where too few steps were left to see anything."""
        try:
            with self.request.meter.stage("localise"):
                return watch.maps(functools.partial(_latents_at, self.request, done))
        except NothingSeen:
            if not parents:
                raise
            inherited = [self.drawn[parent].maps or {} for parent in parents]
            return {name: torch.stack([maps[name] for maps in inherited]) for name in inherited[0]}

    def _number(self, parent: int) -> int:
        """Which refinement of its parent the next one is."""
        number = self._children.get(parent, 0)
        self._children[parent] = number + 1
        return number

    def _lineage_seed(self, index: int) -> int:
        """A seed for a sample's refinements: a candidate's own; below it, one of its place in the lineage."""
        drawn = self.drawn[index]
        if drawn.parent is None:
            return drawn.trajectory.seed
        return self._refined_seed(drawn.parent, drawn.refinement or 0)

    def _refined_seed(self, parent: int, number: int) -> int:
        return derive_seed(self._lineage_seed(parent), "refined", number)


class _Unwatched(LateWatch):
    """Stands where nothing is localised."""

    def maps(self, latents_at: Any) -> Heatmaps:
        raise NothingSeen("nothing was localised")


def _latents_at(request: Request, batch: list[Trajectory], step: int) -> torch.Tensor:
    """Latents [B, C, h, w] of a step; of a picture that did not come by it, its result under that step's noise."""
    found = [
        entry
        if (entry := t.latents[step]) is not None
        else renoise(request.backbone, t.result[None], step, [derive_seed(t.seed, "localise")])[0]
        for t in batch
    ]
    return torch.stack(found)
