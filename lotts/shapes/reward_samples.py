"""Samples of ``shapes-sd`` for the reward model to learn from: drawn, and labelled by the exact checker."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lotts.shapes.checker import check
from lotts.shapes.draw import Placed
from lotts.shapes.reward_data import IGNORE, Picture, hurt_cells
from lotts.shapes.reward_queries import GRID, attributes
from lotts.shapes.sampling import on_all_cores, sample_images
from lotts.shapes.scenes import caption, parse, sample_scene

_SHARD = 64


def draw_samples(runs: Path, count: int, processes: int | None = None) -> Path:
    """Samples on training prompts, drawn once and kept in ``runs``; the folder of the .npz files."""
    folder = runs / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    shards = [(folder / f"{i:04d}.npz", i) for i in range(-(-count // _SHARD))]
    on_all_cores(_draw_shards, [(path, i) for path, i in shards if not path.exists()], chunk=1, processes=processes)
    return folder


def _draw_shards(shards: list[tuple[Path, int]]) -> list[Path]:
    from lotts.models import load_pipeline

    pipe = load_pipeline("shapes-sd")
    for path, index in shards:
        rng = np.random.default_rng([17, index])
        texts = [caption(sample_scene(rng), rng) for _ in range(_SHARD)]
        # Fewer steps and weaker guidance at times: the verifier should know the faults of hasty samplers too.
        steps, scale = int(rng.integers(8, 21)), float(rng.uniform(1.5, 4.0))
        seeds = rng.integers(2**31, size=_SHARD).tolist()
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


def samples(folder: Path, seed: int) -> Iterator[Picture]:
    """Generated samples without end, in a shuffled order. ``folder`` holds .npz files of ``images`` and ``captions``.

    Raises:
        FileNotFoundError: no .npz file in ``folder``.
    """
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise FileNotFoundError(f"expected .npz files with images and captions in {folder}, found none")
    pairs: list[tuple[np.ndarray, str]] = []
    for file in files:
        with np.load(file) as data:
            pairs += zip(data["images"], map(str, data["captions"]), strict=True)
    known: dict[int, Picture] = {}  # the checker takes as long as a training step
    for turn in itertools.count():
        for index in np.random.default_rng([seed, turn]).permutation(len(pairs)).tolist():
            if index not in known:
                known[index] = judged(*pairs[index])
            yield known[index]
