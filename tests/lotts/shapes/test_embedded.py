"""The pipelines that ship draw what they are asked for."""

import numpy as np
import pytest

from lotts.models import EMBEDDED, load_pipeline
from lotts.shapes.checker import check
from lotts.shapes.sampling import every_held_out_scene, sample_images


@pytest.mark.parametrize("name", EMBEDDED)
def test_most_objects_of_unseen_scenes_are_right(name):
    scenes = every_held_out_scene(11, 6, 13)
    scenes, texts = zip(*(next(scenes) for _ in range(8)), strict=True)
    images = sample_images(load_pipeline(name, device="cpu"), texts, range(8), steps=16)
    right = [check(image, scene).objects_right for image, scene in zip(images, scenes, strict=True)]
    assert np.mean(right) > 0.8, dict(zip(texts, right, strict=True))


def test_all_weights_stay_small():
    folder = EMBEDDED["shapes-sd"][0].parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 60e6
