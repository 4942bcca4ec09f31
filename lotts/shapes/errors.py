"""How far the checker can be trusted: its error rates on drawings whose truth is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from lotts.shapes.checker import check
from lotts.shapes.draw import Drawing, draw
from lotts.shapes.scenes import Scene, sample_scene

_BATCH = 32


def error_report(drawings: int, seed: int, transform: Callable[[np.ndarray], np.ndarray] | None = None) -> dict:
    """Check ``drawings`` random scenes, each drawn clean and damaged, and count what the checker gets right.

    ``transform`` maps a batch of images, uint8 [b, SIDE, SIDE, 3], to another before they are checked (a round trip
    through an autoencoder, say). Returns shares in [0, 1], None where nothing was counted:

    - ``clean_objects_right``, ``clean_scenes_right``: whole drawings that pass;
    - ``damaged_objects_caught``: damaged objects called not right;
    - ``whole_objects_accused``: untouched objects of damaged drawings called not right;
    - ``damaged_scenes_caught``: damaged drawings called not right;
    - ``damage_recall``, ``damage_precision``: of the damaged pixels;
    - ``by_objects``: the same by number of objects; and ``drawings``.
    """
    rng = np.random.default_rng(seed)
    counts: dict[int, dict[str, np.ndarray]] = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))
    for start in range(0, drawings, _BATCH):
        scenes = [sample_scene(rng) for _ in range(min(_BATCH, drawings - start))]
        for damaged in (False, True):
            made = [draw(scene, rng, damaged=damaged) for scene in scenes]
            images = np.stack([drawing.image for drawing in made])
            if transform is not None:
                images = transform(images)
            for scene, drawing, image in zip(scenes, made, images, strict=True):
                _count(counts[len(scene.items)], scene, drawing, image, damaged)
    overall: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for part in counts.values():
        for name, count in part.items():
            overall[name] += count
    by_objects = {n: _shares(counts[n]) for n in sorted(counts)}
    return {"drawings": drawings, **_shares(overall), "by_objects": by_objects}


def _count(counts: dict[str, np.ndarray], scene: Scene, drawing: Drawing, image: np.ndarray, damaged: bool) -> None:
    """Add (hits, cases) of one image to ``counts``."""
    verdict = check(image, scene)
    right = np.array([each.right for each in verdict.objects])
    if not damaged:
        counts["clean_objects_right"] += right.sum(), len(right)
        counts["clean_scenes_right"] += verdict.scene_right, 1
        return
    truth, seen = drawing.damage.any(0), verdict.damage.any(0)
    victim = drawing.damage.any((1, 2))
    # Damage to one object may reach over another, which is then no longer whole.
    whole = ~(drawing.objects & truth).any((1, 2)) & ~victim
    counts["damaged_objects_caught"] += (victim & ~right).sum(), victim.sum()
    counts["whole_objects_accused"] += (whole & ~right).sum(), whole.sum()
    counts["damaged_scenes_caught"] += not verdict.scene_right, 1
    counts["damage_recall"] += (truth & seen).sum(), truth.sum()
    counts["damage_precision"] += (truth & seen).sum(), seen.sum()


def _shares(counts: dict[str, np.ndarray]) -> dict[str, float | None]:
    return {name: float(hits / cases) if cases else None for name, (hits, cases) in counts.items()}
