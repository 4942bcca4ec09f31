"""Shares of damage, and change inside and outside a mask, are what their definitions say."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.metrics import change, damage, mean_change, shapes_damage
from lotts.shapes.draw import SIDE, draw
from lotts.shapes.scenes import caption, sample_scene


def mask(shape, *boxes):
    out = np.zeros(shape, bool)
    for top, bottom, left, right in boxes:
        out[top:bottom, left:right] = True
    return out


def gaussian_similarity(a, b, y, x):
    """Wang's formula at one pixel and channel, from the 11 x 11 pixels around it."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weight = np.outer(line, line) / line.sum() ** 2
    a, b = (each[y - 5 : y + 6, x - 5 : x + 6].astype(np.float64) for each in (a, b))
    mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
    var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
    both = (weight * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


@pytest.fixture
def pair():
    """A picture and another that differs only in a region; the region."""
    pytest.importorskip("skimage")
    rng = np.random.default_rng(0)
    before = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    inside = mask((24, 32), (8, 16, 8, 24))
    after = before.copy()
    after[inside] = rng.integers(0, 256, (inside.sum(), 3))
    return before, after, inside


def test_shares_of_pictures_and_of_pixels():
    masks = [mask((4, 4)), mask((4, 4), (0, 2, 0, 2)), mask((2, 8), (0, 2, 0, 8)), torch.zeros(4, 4, dtype=torch.bool)]
    found = damage(masks)
    assert (found.images, found.count) == (0.5, 4)
    assert found.images_standard_error == pytest.approx(math.sqrt(0.25 / 4))
    assert found.pixels == pytest.approx((0.25 + 1) / 4)
    assert found.pixels_standard_error == pytest.approx(np.std([0, 0.25, 1, 0], ddof=1) / 2)
    large = damage(masks, least_pixels=5)
    assert (large.images, large.pixels) == (0.25, 0.25)  # the second's four pixels count as none
    assert damage(masks[:1]).pixels_standard_error is None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6), st.randoms())
def test_shares_lie_between_none_and_all_and_know_no_order(sizes, random):
    masks = [mask((6, 6), (0, rows, 0, columns)) for rows, columns in sizes]
    found = damage(masks)
    assert 0 <= found.pixels <= found.images <= 1
    random.shuffle(masks)
    assert damage(iter(masks)).pixels == pytest.approx(found.pixels)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([], "got none"),
        ([mask((2, 2)), np.zeros((2, 2))], r"mask 1 as bool \[H, W\], got float64"),
        ([np.zeros((1, 2, 2), bool)], r"mask 0 as bool \[H, W\], got bool \[1, 2, 2\]"),
        ([np.zeros((0, 2), bool)], "mask 0"),
    ],
)
def test_wrong_masks_are_named(masks, message):
    with pytest.raises(ValueError, match=message):
        damage(masks)


def test_least_pixels_is_checked():
    with pytest.raises(ValueError, match="least_pixels"):
        damage([mask((2, 2))], least_pixels=0)


def test_the_exact_checker_tells_damaged_drawings_from_whole_ones():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, 4) for _ in range(6)]
    found = []
    for damaged in (False, True):
        drawings = [draw(scene, rng, damaged=damaged) for scene in scenes]
        masks = [shapes_damage(d.image, caption(scene)) for d, scene in zip(drawings, scenes, strict=True)]
        found.append(damage(masks))
        assert masks[0].shape == (SIDE, SIDE)
    truth = np.mean([drawing.damage.any(0).mean() for drawing in drawings])
    assert (found[0].images, found[0].pixels) == (0, 0)
    assert found[1].images > 0.8
    assert found[1].pixels == pytest.approx(truth, rel=0.5)


def test_outside_nothing_changed(pair):
    before, after, inside = pair
    found = change(before, after, inside)
    assert (found.inside.pixels, found.outside.pixels) == (128, 24 * 32 - 128)
    assert found.outside.mean_absolute == 0
    assert found.outside.psnr == math.inf
    assert found.outside.ssim < 1  # windows at the edge of the mask see what changed
    off = before[inside].astype(float) - after[inside]
    assert found.inside.mean_absolute == pytest.approx(np.abs(off).mean())
    assert found.inside.psnr == pytest.approx(10 * np.log10(255**2 / (off**2).mean()))
    kept = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert kept["outside"]["psnr"] == "inf"
    assert kept["inside"]["psnr"] == pytest.approx(found.inside.psnr)


def test_similarity_is_the_published_formula(pair):
    before, after, _ = pair
    for y, x in ((5, 5), (10, 9), (18, 26)):
        expected = np.mean([gaussian_similarity(before[..., c], after[..., c], y, x) for c in range(3)])
        at = mask((24, 32), (y, y + 1, x, x + 1))
        assert change(before, after, at).inside.ssim == pytest.approx(expected, abs=1e-10)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(11, 20), st.integers(11, 20))
def test_both_sides_together_are_the_whole(seed, height, width):
    pytest.importorskip("skimage")
    rng = np.random.default_rng(seed)
    before, after = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    inside = rng.random((height, width)) < 0.5
    inside[0, :2] = True, False
    part = change(before, after, inside)
    whole = change(before, after, np.ones((height, width), bool))
    back = change(after, before, ~inside)
    assert whole.outside is None
    shares = part.inside.pixels / (height * width), part.outside.pixels / (height * width)
    for name in ("mean_absolute", "ssim"):
        sides = [getattr(side, name) for side in (part.inside, part.outside)]
        assert np.dot(shares, sides) == pytest.approx(getattr(whole.inside, name))
        assert getattr(back.outside, name) == pytest.approx(sides[0])


def test_a_mask_on_the_latent_grid_covers_its_pixels(pair):
    before, after, inside = pair
    coarse = torch.from_numpy(inside[::8, ::8].copy())
    assert change(before, after, coarse) == change(before, after, inside)
    with pytest.raises(ValueError, match="24 x 32 pixels or a grid that divides it, got 5 x 8"):
        change(before, after, np.zeros((5, 8), bool))


def test_means_leave_out_empty_sides(pair):
    before, after, inside = pair
    some, all_of_it = change(before, after, inside), change(before, after, np.ones_like(inside))
    mean = mean_change([some, all_of_it])
    assert mean.outside == some.outside
    assert mean.inside.mean_absolute == (some.inside.mean_absolute + all_of_it.inside.mean_absolute) / 2
    assert mean.inside.pixels == 128 + 24 * 32
    assert mean_change([all_of_it]).outside is None
    with pytest.raises(ValueError, match="got none"):
        mean_change([])


def test_errors_come_before_the_work(pair, monkeypatch):
    before, after, inside = pair
    with pytest.raises(ValueError, match="of one size"):
        change(before, after[:-1], inside)
    with pytest.raises(ValueError, match="11 pixels or more a side, got 8 x 8"):
        change(before[:8, :8], after[:8, :8], inside[:8, :8])
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(ImportError, match=r"pip install 'lotts\[metrics\]'"):
        change(before, after, inside)
