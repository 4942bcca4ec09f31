"""Facts about masks that a method's own are compared with."""

import numpy as np
import pytest
import torch
from watching import maps_of

from lotts.localize import quality_mask


def test_true_defects_are_in_the_smallest_mask(damaged):
    image, prompt, cells = damaged
    mask = quality_mask(maps_of("defects", image, prompt), 0.3)[0].numpy()
    assert mask[cells].mean() > 0.9


def test_the_foreground_is_the_objects(damaged):
    image, prompt, _ = damaged
    p = maps_of("foreground", image, prompt)[0].numpy()
    assert p[4, 4] > p[0, 8]  # the first object's place against the top edge between two
    assert p[12, 12] > p[8, 0]


def test_random_masks_are_a_samples_own():
    p = maps_of("random", np.zeros((128, 128, 3), np.uint8), "a red cat", seeds=(1, 2))
    again = maps_of("random", np.zeros((128, 128, 3), np.uint8), "a red cat", seeds=(2,))
    assert torch.equal(p[1], again[0])
    assert not torch.equal(p[0], p[1])


def test_the_checker_only_knows_scenes():
    with pytest.raises(ValueError, match="cannot read"):
        maps_of("defects", np.zeros((128, 128, 3), np.uint8), "a photo of a cat")
