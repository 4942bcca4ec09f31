"""Samples of the embedded pipelines for the reward model to learn from: drawn, and labelled by the exact checker."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from lotts.models import GUIDANCE, load_pipeline, weights_digest
from lotts.shapes.checker import check
from lotts.shapes.draw import Placed
from lotts.shapes.loop import autocast
from lotts.shapes.reward_data import IGNORE, Picture, hurt_cells
from lotts.shapes.reward_queries import GRID, attributes
from lotts.shapes.sampling import on_all_cores, sample_images
from lotts.shapes.scenes import caption, parse, sample_scene

_SHARD = 64
#: How many samples of each pipeline, for one of shapes-sd. shapes-sdxl draws through the same autoencoder, and errs alike.
SHARES = {"shapes-sd": 1.0, "shapes-flux": 0.375}


def draw_samples(
    runs: Path, count: int, processes: int | None = None, device: str | torch.device | None = None
) -> list[Path]:
    """Samples on training prompts, ``count`` of ``shapes-sd``, drawn once and kept in ``runs``; the .npz files they are in.

    A file's name tells the weights that drew it.
    """
    folder, files = runs / "generated", list[Path]()
    folder.mkdir(parents=True, exist_ok=True)
    for number, (model, share) in enumerate(SHARES.items()):
        name = f"{model}-{(weights_digest(model) or '')[:8]}"
        shards = [(folder / f"{name}-{i:04d}.npz", [17, i, number]) for i in range(-(-int(share * count) // _SHARD))]
        missing = [shard for shard in shards if not shard[0].exists()]
        work = functools.partial(_draw_shards, model=model, device=device)
        on_all_cores(work, missing, chunk=1, processes=processes, device=device)
        files += [path for path, _ in shards]
    return files


def _draw_shards(
    shards: list[tuple[Path, list[int]]], model: str, device: str | torch.device | None = None
) -> list[Path]:
    pipe = load_pipeline(model, device=device)
    for path, seed in shards:
        rng = np.random.default_rng(seed)
        texts = [caption(sample_scene(rng), rng) for _ in range(_SHARD)]
        # Fewer steps and weaker guidance at times: the verifier should know the faults of hasty samplers too.
        steps, scale = int(rng.integers(8, 21)), GUIDANCE[model] * float(rng.uniform(0.7, 1.4))
        seeds = rng.integers(2**31, size=_SHARD).tolist()
        with autocast(pipe.device):
            images = np.stack(list(sample_images(pipe, texts, seeds, steps=steps, guidance_scale=scale)))
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez_compressed(file, images=images, captions=np.array(texts))
        path.with_suffix(".tmp").replace(path)
    return [path for path, _ in shards]


def judged(image: np.ndarray, text: str) -> Picture:
    """A generated sample, labelled by the exact checker."""
    scene = parse(text)
    verdict = check(image, scene)
    right = np.array([o.right for o in verdict.objects], np.int64)
    # What a sample shows where it is not as stated is not known class by class.
    known = np.array([(o.colour_right, o.shape_right, o.size_right) for o in verdict.objects])
    seen = np.where(known, attributes(scene), IGNORE)
    placed = [Placed(*o.centre, o.radius or 0.0) if o.centre else None for o in verdict.objects]
    cells = np.full((3, GRID * GRID), IGNORE)
    cells[2] = hurt_cells(np.asarray(verdict.damage.any(0)))
    return Picture(image, scene, right, int(verdict.extras == 0), seen, placed, cells, exact=True)


def samples(files: Sequence[Path], *seed: int) -> Iterator[Picture]:
    """Generated samples without end, in an order of ``seed``, from .npz files of ``images`` and ``captions``."""
    pairs: list[tuple[np.ndarray, str]] = []
    for file in files:
        with np.load(file) as data:
            pairs += zip(data["images"], map(str, data["captions"]), strict=True)
    known: dict[int, Picture] = {}  # the checker takes as long as a training step
    for turn in itertools.count():
        for index in np.random.default_rng([*seed, turn]).permutation(len(pairs)).tolist():
            if index not in known:
                known[index] = judged(*pairs[index])
            yield known[index]
