"""Drawings show what their scene states, and damage stays where the masks say."""

import itertools

import numpy as np
import pytest

from lotts.shapes.draw import DAMAGES, SIDE, Placed, draw, holds, place, signed_distance
from lotts.shapes.scenes import SHAPES, Item, Scene, sample_scene

EVERYWHERE = (slice(0, SIDE), slice(0, SIDE))
VISIBLE = 28


def scenes(count, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, **kwargs) for _ in range(count)]


def test_a_seed_fixes_the_drawing():
    for scene in scenes(5):
        first, second = (draw(scene, np.random.default_rng(7), damaged=True) for _ in range(2))
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.damage, second.damage)
        assert first.placed == second.placed


def test_damage_leaves_the_layout_alone():
    for seed, scene in enumerate(scenes(10)):
        clean = draw(scene, np.random.default_rng(seed))
        broken = draw(scene, np.random.default_rng(seed), damaged=True)
        assert clean.placed == broken.placed
        assert np.array_equal(clean.objects, broken.objects)


def test_clean_drawings_have_no_damage():
    assert not any(draw(scene, np.random.default_rng(0)).damage.any() for scene in scenes(10))


def test_damage_is_local():
    for seed, scene in enumerate(scenes(60)):
        clean = draw(scene, np.random.default_rng(seed)).image.astype(int)
        broken = draw(scene, np.random.default_rng(seed), damaged=True)
        changed = np.abs(broken.image - clean).max(-1)
        assert changed[~broken.damage.any(0)].max() <= VISIBLE + 1  # images are rounded, masks are not


def test_one_to_a_third_of_the_objects_are_damaged():
    for scene in scenes(40):
        victims = draw(scene, np.random.default_rng(1), damaged=True).damage.any((1, 2)).sum()
        assert 1 <= victims <= max(1, len(scene.items) // 3)


def test_each_object_is_flawed_by_the_chance_that_is_asked_for():
    flaws = [
        draw(scene, np.random.default_rng(seed), flaws=0.3).damage.any((1, 2)) for seed, scene in enumerate(scenes(80))
    ]
    assert 0.25 < np.concatenate(flaws).mean() < 0.35  # of some 700 objects, two standard errors either way
    assert not any(draw(scene, np.random.default_rng(0), flaws=1e-9).damage.any() for scene in scenes(5))


def test_free_scenes_are_drawn_in_reading_order():
    found = [scene for scene in scenes(200) if scene.kind == "free"]
    assert len(found) > 10
    for seed, scene in enumerate(found):
        spots, end = place(scene, np.random.default_rng(seed)), 0
        rows = []
        for length in scene.reading_rows:
            rows.append(spots[end : (end := end + length)])
        assert end == len(spots)
        for row in rows:
            assert [spot.x for spot in row] == sorted(spot.x for spot in row)
        for upper, lower in itertools.pairwise(rows):
            assert max(spot.y for spot in upper) < min(spot.y for spot in lower)


def test_no_object_is_larger_than_those_of_a_three_by_three_grid():
    largest = Scene("rows", (), rows=(3, 3, 3)).radius("large")
    for seed in range(40):
        rng = np.random.default_rng(seed)
        assert all(spot.radius <= 1.07 * largest * SIDE for spot in draw(sample_scene(rng), rng).placed)


def test_damage_is_large_enough_to_see():
    for seed, scene in enumerate(scenes(40)):
        drawing = draw(scene, np.random.default_rng(seed), damaged=True)
        for damage, pixels in zip(drawing.damage, drawing.objects, strict=True):
            assert not damage.any() or damage.sum() >= 0.06 * pixels.sum() + 6


def test_objects_lie_inside_the_canvas():
    for seed, scene in enumerate(scenes(100)):
        drawing = draw(scene, np.random.default_rng(seed))
        for item, spot, pixels in zip(scene.items, drawing.placed, drawing.objects, strict=True):
            assert pixels.any()
            rim = np.concatenate([pixels[[0, -1]], pixels[:, [0, -1]].T])
            assert not rim.any(), (item, spot)


def test_objects_hardly_touch():
    for seed, scene in enumerate(scenes(100)):
        drawing = draw(scene, np.random.default_rng(seed))
        overlap = drawing.objects.sum(0) - drawing.objects.any(0)
        assert overlap.sum() <= 4, scene


def test_rows_stand_at_their_stated_places():
    for scene in scenes(60):
        for spot, stated in zip(place(scene, np.random.default_rng(2)), scene.stated_centres(), strict=True):
            if stated is not None:
                assert np.hypot(spot.x / SIDE - stated[0], spot.y / SIDE - stated[1]) <= 0.1 * scene.pitch


def test_radii_follow_the_sizes():
    for scene in scenes(60):
        for item, spot in zip(scene.items, place(scene, np.random.default_rng(3)), strict=True):
            assert spot.radius == pytest.approx(scene.radius(item.size) * SIDE, rel=0.061)


def test_relations_hold():
    found = [scene for scene in scenes(150, num_objects=2) + scenes(150, seed=1, num_objects=3) if scene.relations]
    assert len(found) > 50
    for scene in found:
        spots = place(scene, np.random.default_rng(4))
        assert all(holds(relation, spots[0], other) for relation, other in zip(scene.relations, spots[1:], strict=True))


def test_what_one_relation_names_lies_level():
    for relation in ("left", "below"):
        scene = Scene("relation", (Item("red", "star"), Item("blue", "ring")), relations=(relation,))
        first, other = place(scene, np.random.default_rng(5))
        across = abs(first.y - other.y) if relation == "left" else abs(first.x - other.x)
        assert across <= 0.14 * SIDE


@pytest.mark.parametrize(
    ("relation", "x", "y"), [("left", 90, 64), ("right", 38, 64), ("above", 64, 90), ("below", 64, 38)]
)
def test_holds_reads_relations_from_the_first_to_the_other(relation, x, y):
    first, other = Placed(64, 64, 8), Placed(x, y, 8)
    assert holds(relation, first, other)
    assert not holds(relation, other, first)
    assert not holds(relation, first, first)


@pytest.mark.parametrize("radius", [8, 22])
def test_shapes_are_distinct(radius):
    masks = {shape: signed_distance(shape, Placed(64, 64, radius), EVERYWHERE) < 0 for shape in SHAPES}
    for one, other in itertools.combinations(SHAPES, 2):
        union, both = (masks[one] | masks[other]).sum(), (masks[one] & masks[other]).sum()
        assert both < 0.88 * union, (one, other)


def test_signed_distance_is_in_pixels():
    distance = signed_distance("circle", Placed(64, 64, 20), EVERYWHERE)
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    exact = np.hypot(x - 64, y - 64) - 0.92 * 20
    near = np.abs(exact) < 10
    assert np.abs(distance - exact)[near].max() < 0.05


def test_rings_are_open():
    scene = Scene("rows", (Item("red", "ring"), Item("blue", "ring")), rows=(2,))
    drawing = draw(scene, np.random.default_rng(0))
    for spot, pixels in zip(drawing.placed, drawing.objects, strict=True):
        assert not pixels[int(spot.y), int(spot.x)]


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_kind_of_damage_shows_on_its_object(kind, monkeypatch):
    monkeypatch.setattr("lotts.shapes.draw.DAMAGES", (kind,))
    for seed, scene in enumerate(scenes(5)):
        drawing = draw(scene, np.random.default_rng(seed), damaged=True)
        for index in np.flatnonzero(drawing.damage.any((1, 2))):
            y, x = np.nonzero(drawing.damage[index])
            spot = drawing.placed[index]
            assert np.hypot(x + 0.5 - spot.x, y + 0.5 - spot.y).min() < 1.2 * spot.radius
