"""Samples of ``shapes-sd`` for the reward model to learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lotts.shapes.sampling import on_all_cores, sample_images
from lotts.shapes.scenes import caption, sample_scene

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
