"""Searches that draw whole pictures."""

from __future__ import annotations

import itertools
from math import sqrt

import torch

from lotts.output import LoTTSOutput
from lotts.resample import derive_seed
from lotts.search.pool import Pool


def resampling(pool: Pool) -> LoTTSOutput:
    """Draw as often as the budget allows and return the last: what drawing again gives to one who does not compare."""
    _draw_all(pool)
    return pool.output(best=len(pool) - 1, method="resampling")


def best_of_n(pool: Pool) -> LoTTSOutput:
    """Draw as often as the budget allows and return the best."""
    _draw_all(pool)
    return pool.output(method="best_of_n")


def zero_order(pool: Pool, *, starts: int = 3, neighbours: int = 3, distance: float = 0.3) -> LoTTSOutput:
    """Search around the best initial noise.

    First ``starts`` pictures from noises of their own; then, again and again, ``neighbours`` from noises at ``distance`` from
    the best one's so far: ``sqrt(1 - d^2) z + d e`` with fresh e, which is as normal as z is.

    Source: Ma et al., "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps", zero-order search.
    """
    if starts < 1 or neighbours < 1 or not 0 < distance <= 1:
        raise ValueError(
            f"expected starts and neighbours from 1 and distance in (0, 1], got {starts}, {neighbours} and {distance}"
        )
    pool.candidates(starts)
    for turn in itertools.count():
        pivot = pool.drawn[pool.best].trajectory.latents[0]
        assert pivot is not None
        # Samplers that work on unscaled noise start from it times init_noise_sigma, which cancels.
        around = [_neighbour(pool, pivot, turn, k, distance) for k in range(neighbours)]
        if len(pool.candidates(neighbours, around)) < neighbours:
            return pool.output(method="zero_order", starts=starts, neighbours=neighbours, distance=distance)
    raise AssertionError("unreachable")


def _draw_all(pool: Pool) -> None:
    while pool.candidates(pool.request.batch_size):
        pass


def _neighbour(pool: Pool, pivot: torch.Tensor, turn: int, index: int, distance: float) -> torch.Tensor:
    backbone, request = pool.request.backbone, pool.request
    seed = derive_seed(request.seeds[0], "neighbour", turn, index)
    fresh = backbone.initial_latents(seed, request.size)[0]
    return sqrt(1 - distance**2) * pivot + distance * fresh
