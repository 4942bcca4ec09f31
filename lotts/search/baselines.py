"""Searches that draw whole pictures."""

from __future__ import annotations

import itertools
from math import sqrt

import torch

from lotts.checks import real, whole
from lotts.output import LoTTSOutput
from lotts.resample import derive_seed
from lotts.search.pool import Pool


def resampling(pool: Pool) -> LoTTSOutput:
    """Draw as often as the budget allows and return the last: what drawing again gives to one who does not compare."""
    _draw_all(pool)
    return pool.output(best=len(pool) - 1)


def best_of_n(pool: Pool) -> LoTTSOutput:
    """Draw as often as the budget allows and return the best."""
    _draw_all(pool)
    return pool.output()


def zero_order(pool: Pool, *, starts: int = 3, neighbours: int = 3, distance: float = 0.3) -> LoTTSOutput:
    """Search around the best initial noise.

    First ``starts`` pictures from noises of their own; then, again and again, ``neighbours`` from noises at ``distance`` from
    the best one's so far: ``sqrt(1 - d^2) z + d e`` with fresh e, which is as normal as z is.

    Source: Ma et al., "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps", zero-order search.
    """
    starts, neighbours = whole("starts", starts, 1), whole("neighbours", neighbours, 1)
    if not 0 < real("distance", distance) <= 1:
        raise ValueError(f"expected distance in (0, 1], got {distance}")
    pool.candidates(starts)
    for turn in itertools.count():
        pivot = pool.drawn[pool.best].trajectory.at(0)
        # Samplers that work on unscaled noise start from it times init_noise_sigma, which cancels.
        around = [_neighbour(pool, pivot, turn, k, distance) for k in range(neighbours)]
        if len(pool.candidates(neighbours, around)) < neighbours:
            return pool.output()
    raise AssertionError("unreachable")


def _draw_all(pool: Pool) -> None:
    while pool.candidates(pool.request.batch_size):
        pass


def _neighbour(pool: Pool, pivot: torch.Tensor, turn: int, index: int, distance: float) -> torch.Tensor:
    backbone, request = pool.request.backbone, pool.request
    seed = derive_seed(request.seeds[0], "neighbour", turn, index)
    fresh = backbone.initial_latents(seed, request.size)[0]
    return sqrt(1 - distance**2) * pivot + distance * fresh
