"""The checker agrees with the renderer: on clean and damaged drawings, and on captions that say something else."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lotts.shapes.checker import check
from lotts.shapes.draw import SIDE, Placed, draw, signed_distance
from lotts.shapes.errors import error_report
from lotts.shapes.scenes import COLOURS, SHAPES, parse, sample_scene
from lotts.shapes.segment import components, estimate_ground

EVERYWHERE = (slice(0, SIDE), slice(0, SIDE))


def softened(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stand-in for an autoencoder's round trip: blur of 0.65 pixels, noise of 4 levels, colours off by up to 2 %."""
    kernel = np.exp(-0.5 * (np.arange(-2, 3) / 0.65) ** 2)
    kernel /= kernel.sum()
    out = np.pad(images.astype(np.float32), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    out = sum(weight * out[:, at : at + SIDE] for at, weight in enumerate(kernel))
    out = sum(weight * out[:, :, at : at + SIDE] for at, weight in enumerate(kernel))
    out = out * rng.uniform(0.98, 1.02, (len(images), 1, 1, 3)) + rng.normal(0, 4, out.shape)
    return np.rint(np.clip(out, 0, 255)).astype(np.uint8)


def paint(objects: list[tuple[str, str, float, float, float]], ground=(240, 236, 228)) -> np.ndarray:
    """Draw (colour, shape, x, y, radius) on a plain ground."""
    image = np.full((SIDE, SIDE, 3), ground, np.float32)
    for colour, shape, x, y, radius in objects:
        cover = np.clip(0.5 - signed_distance(shape, Placed(x, y, radius), EVERYWHERE), 0, 1)[..., None]
        image = image * (1 - cover) + np.array(COLOURS[colour], np.float32) * cover
    return np.rint(image).astype(np.uint8)


def wrong(verdict) -> set[int]:
    return {index for index, each in enumerate(verdict.objects) if not each.right}


@pytest.fixture(scope="module")
def clean():
    rng = np.random.default_rng(11)
    return [(scene, draw(scene, rng)) for scene in (sample_scene(rng) for _ in range(50))]


def test_drawings_are_judged_as_their_truth():
    report = error_report(40, 0)
    assert report["clean_objects_right"] >= 0.995
    assert report["clean_scenes_right"] >= 0.98
    assert report["damaged_objects_caught"] >= 0.97
    assert report["whole_objects_accused"] <= 0.01
    assert report["damage_recall"] >= 0.75
    assert report["damage_precision"] >= 0.8
    assert set(report["by_objects"]) <= set(range(2, 17))


@pytest.mark.parametrize("ground", [(211, 212, 211), (196, 200, 190), (180, 168, 175)])
def test_grounds_darker_than_any_drawn_are_still_ground(ground):
    objects = [("red", "circle", 40.0, 64.0, 14.0), ("black", "star", 90.0, 64.0, 14.0)]
    verdict = check(paint(objects, ground), parse("a red circle, a black star in a row"))
    assert verdict.scene_right
    assert verdict.foreground.mean() < 0.08


def test_drawings_are_judged_through_an_autoencoder():
    rng = np.random.default_rng(1)
    report = error_report(40, 1, lambda images: softened(images, rng))
    assert report["clean_objects_right"] >= 0.985
    assert report["damaged_objects_caught"] >= 0.95
    assert report["whole_objects_accused"] <= 0.015
    assert report["damage_recall"] >= 0.7


def test_centres_and_radii_are_those_of_the_drawing(clean):
    for scene, drawing in clean[:40]:
        if scene.kind != "rows":
            continue
        for each, spot in zip(check(drawing.image, scene).objects, drawing.placed, strict=True):
            assert np.hypot(each.centre[0] - spot.x, each.centre[1] - spot.y) < 0.3
            assert abs(each.radius - spot.radius) < 0.6


def test_clean_drawings_have_no_defects(clean):
    for scene, drawing in clean[:40]:
        verdict = check(drawing.image, scene)
        assert verdict.scene_right
        assert verdict.defects.sum() <= 3
        missed = drawing.objects.any(0) & ~verdict.foreground
        assert missed.sum() <= 0.02 * drawing.objects.sum()
        assert all(0.85 < each.score <= 1 for each in verdict.objects)


@pytest.mark.parametrize("what", ["colour", "shape", "size"])
def test_a_wrong_word_makes_only_its_object_wrong(clean, what):
    rng = np.random.default_rng(2)
    for scene, drawing in clean[:40]:
        index = int(rng.integers(len(scene.items)))
        item = scene.items[index]
        values = {"colour": list(COLOURS), "shape": list(SHAPES), "size": ["small", "large"]}[what]
        other = replace(item, **{what: str(rng.choice([v for v in values if v != getattr(item, what)]))})
        items = (*scene.items[:index], other, *scene.items[index + 1 :])
        verdict = check(drawing.image, replace(scene, items=items))
        assert verdict.extras == 0
        if scene.kind == "rows":
            assert wrong(verdict) == {index}
            assert not getattr(verdict.objects[index], f"{what}_right")
        else:
            # Where places are open, which of two like objects is the wrong one is open too.
            assert len(wrong(verdict)) == 1


def test_two_objects_in_each_others_places_are_wrong(clean):
    rng = np.random.default_rng(3)
    for scene, drawing in clean:
        first, other = rng.choice(len(scene.items), 2, replace=False).tolist()
        items = list(scene.items)
        if scene.kind != "rows" or items[first] == items[other]:
            continue
        items[first], items[other] = items[other], items[first]
        assert wrong(check(drawing.image, replace(scene, items=tuple(items)))) == {first, other}


def test_a_broken_relation_makes_both_objects_wrong():
    image = paint([("red", "circle", 30, 64, 20), ("blue", "star", 95, 64, 20)])
    assert check(image, parse("red circle left of blue star")).scene_right
    for text in ("red circle right of blue star", "red circle above blue star"):
        verdict = check(image, parse(text))
        assert [each.place_right for each in verdict.objects] == [False, False]
        assert all(each.shape_right and each.colour_right for each in verdict.objects)


def test_like_objects_are_told_apart_by_their_relations():
    image = paint([("red", "ring", 30, 40, 20), ("red", "ring", 95, 40, 20), ("red", "ring", 95, 100, 20)])
    assert check(image, parse("red ring right of red ring and above red ring")).scene_right
    assert not check(image, parse("red ring left of red ring and below red ring")).scene_right


def test_free_objects_are_right_anywhere():
    scene = parse("scattered: a red heart, a red heart, a small blue cross")
    objects = [("blue", "cross", 30, 30, 10.6), ("red", "heart", 90, 35, 16.6), ("red", "heart", 60, 95, 16.6)]
    assert check(paint(objects), scene).scene_right
    moved = [(colour, shape, SIDE - x, y, radius) for colour, shape, x, y, radius in objects]
    assert check(paint(moved), scene).scene_right


def test_a_missing_object_is_a_defect_at_its_place():
    scene = parse("red circle, blue star")
    verdict = check(paint([("red", "circle", 32, 64, 22)]), scene)
    assert [each.right for each in verdict.objects] == [True, False]
    assert not verdict.objects[1].present
    assert verdict.objects[1].centre is None
    assert verdict.defects[64, 96]
    assert not verdict.defects[64, 32]


def test_a_misplaced_object_is_present_but_wrong():
    verdict = check(
        paint([("red", "circle", 32, 64, 22), ("blue", "star", 96, 112, 14)]), parse("red circle, blue star")
    )
    assert verdict.objects[1].present
    assert not verdict.objects[1].place_right
    assert verdict.defects[112, 96]
    assert verdict.defects[64, 96]


def test_an_extra_object_is_counted_and_marked():
    objects = [("red", "circle", 30, 30, 22), ("blue", "star", 95, 30, 22), ("green", "ring", 64, 95, 22)]
    verdict = check(paint(objects), parse("scattered: red circle, blue star"))
    assert verdict.objects_right == 1
    assert verdict.extras == 1
    assert not verdict.scene_right
    assert verdict.defects[95, 64 + 15]
    assert not verdict.defects[:60].any()


def test_a_filled_ring_is_no_ring():
    image = paint([("red", "ring", 32, 64, 22), ("red", "circle", 32, 64, 18), ("blue", "star", 96, 64, 22)])
    assert wrong(check(image, parse("red ring, blue star"))) == {0}


def test_a_hole_leaves_the_shape_but_not_the_object_right():
    image = paint([("red", "heart", 32, 64, 22), ("blue", "star", 96, 64, 22)])
    hole = np.hypot(*(np.mgrid[0:SIDE, 0:SIDE] - np.array([60, 38])[:, None, None])) < 6
    image[hole] = (240, 236, 228)
    verdict = check(image, parse("red heart, blue star"))
    assert verdict.objects[0].shape_right
    assert not verdict.objects[0].undamaged
    assert wrong(verdict) == {0}
    assert (verdict.damage[0] & hole).sum() > 0.75 * hole.sum()
    assert (verdict.damage[0] & ~hole).sum() < 0.35 * hole.sum()
    assert not verdict.damage[1].any()


def test_free_objects_that_touch_are_told_apart():
    image = paint([("red", "triangle", 40, 50, 17), ("red", "heart", 68.5, 64, 11), ("blue", "ring", 90, 100, 17)])
    verdict = check(image, parse("scattered: a red triangle, a small red heart, a blue ring, a pink star"))
    assert wrong(verdict) == {3}
    assert verdict.extras == 0


def test_touching_neighbours_of_one_colour_are_told_apart():
    scene = parse("red square, red square, red square, red square; red star, red ring, red heart, red cross")
    places = [(x * SIDE, y * SIDE) for x, y in scene.stated_centres()]
    radii = [19.4] * 4 + [12.5] * 4  # squares 0.82 * 19.4 wide to each side touch at a pitch of 32
    objects = [
        ("red", item.shape, x, y, radius) for item, (x, y), radius in zip(scene.items, places, radii, strict=True)
    ]
    verdict = check(paint(objects), scene)
    assert all(each.present and each.shape_right for each in verdict.objects)
    assert verdict.extras == 0


@pytest.mark.parametrize(
    "text", ["red circle, blue star", "scattered: red circle, blue star", "red ring over red ring"]
)
@pytest.mark.parametrize("fill", ["white", "black", "red", "noise"])
def test_images_of_nothing_are_judged_too(text, fill):
    images = {"white": 255, "black": 0, "red": COLOURS["red"]}
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    image = noise if fill == "noise" else np.full((SIDE, SIDE, 3), images[fill], np.uint8)
    assert check(image, parse(text)).objects_right == 0


def test_pil_images_are_taken(clean):
    scene, drawing = clean[0]
    assert check(Image.fromarray(drawing.image), scene).objects == check(drawing.image, scene).objects


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64, 3), np.uint8), np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE, 3), np.float32)]
)
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match=r"expected uint8 \[128, 128, 3\], got"):
        check(image, parse("red circle, blue star"))


def test_components_follow_winding_paths():
    mask = np.zeros((9, 9), bool)
    mask[1, 1:8] = mask[1:8, 7] = mask[7, 3:8] = mask[3:8, 3] = mask[3, 3:6] = True
    mask[5, 5] = mask[0, 0] = True
    labels = components(mask)
    assert labels[1, 1] == labels[3, 5] > 0
    assert len(np.unique(labels[mask])) == 3
    assert not labels[~mask].any()
    assert not components(np.zeros((4, 4), bool)).any()


def test_the_ground_is_seen_through_the_objects(clean):
    empty = np.linspace(225, 245, SIDE, dtype=np.float32)[None, :, None] * np.ones((SIDE, 1, 3), np.float32)
    for _, drawing in clean[:5]:
        image = np.where(drawing.objects.any(0)[..., None], drawing.image, empty)
        assert np.abs(estimate_ground(image.astype(np.float32)) - empty).max() < 8
