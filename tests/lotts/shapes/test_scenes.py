"""Captions and scenes say the same thing, and what is not in the grammar is refused."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.shapes.scenes import (
    COLOURS,
    GRAMMAR_HELP,
    MAX_COLUMNS,
    MAX_OBJECTS,
    MAX_ROWS,
    MIN_OBJECTS,
    QUALITY_PREFIX,
    SHAPES,
    Item,
    Scene,
    caption,
    parse,
    sample_scene,
)

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=300, deadline=None)
@given(seeds, st.integers(MIN_OBJECTS, MAX_OBJECTS))
def test_parse_reads_every_caption(seed, count):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, count)
    assert parse(caption(scene)) == scene
    for _ in range(3):
        assert parse(caption(scene, rng)) == scene


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("top row: a red ring; bottom row: a blue star", [["ring"], ["star"]]),
        ("bottom row: a red ring; top row: a blue star", [["star"], ["ring"]]),
        (
            "the middle row: a red ring; the top row: a blue star; bottom row: a pink cross",
            [["star"], ["ring"], ["cross"]],
        ),
        ("from top to bottom: a red ring, a blue star, and a pink cross", [["ring"], ["star"], ["cross"]]),
        ("a red ring, a blue star; and a pink cross", [["ring", "star"], ["cross"]]),
    ],
)
def test_rows_are_where_their_names_say(text, rows):
    scene = parse(text)
    assert scene.rows == tuple(map(len, rows))
    assert [item.shape for item in scene.items] == [shape for row in rows for shape in row]


@pytest.mark.parametrize(
    "text",
    [
        "top row: a red ring; a blue star",
        "top row: a red ring; top row: a blue star",
        "scattered: " + "a red ring, " * 8 + "a pink cross",
    ],
)
def test_rows_half_named_and_crowds_without_order_are_refused(text):
    with pytest.raises(ValueError, match=r"name of its own|at most 8 scattered"):
        parse(text)


@settings(max_examples=50, deadline=None)
@given(seeds, st.sampled_from(list(QUALITY_PREFIX)))
def test_quality_templates_change_nothing(seed, quality):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    assert parse(QUALITY_PREFIX[quality].format(caption(scene, rng))) == scene


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_scenes_keep_within_their_bounds(seed):
    scene = sample_scene(np.random.default_rng(seed))
    assert MIN_OBJECTS <= len(scene.items) <= MAX_OBJECTS
    assert all(item.colour in COLOURS and item.shape in SHAPES for item in scene.items)
    assert scene.kind != "rows" or sum(scene.rows) == len(scene.items)
    assert len(scene.rows) <= MAX_ROWS
    assert max(scene.rows, default=0) <= MAX_COLUMNS


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_the_held_out_part_is_apart_from_training(seed):
    rng = np.random.default_rng(seed)
    assert sample_scene(rng, held_out=True).held_out()
    assert not sample_scene(rng).held_out()


def test_one_scene_in_sixteen_is_held_out():
    items = [Item(colour, shape, size) for colour in COLOURS for shape in SHAPES for size in ("small", "large")]
    scenes = [Scene("free", (first, other)) for first in items for other in items[::8]]
    assert np.mean([scene.held_out() for scene in scenes]) == pytest.approx(1 / 16, rel=0.3)


def test_stated_places_of_a_grid():
    scene = parse("a red circle, a blue star; a green heart, a black ring")
    assert scene.rows == (2, 2)
    assert scene.stated_centres() == [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]


def test_stated_places_of_uneven_rows():
    assert parse("red circle; blue star, red ring").stated_centres() == [(0.5, 0.25), (0.25, 0.75), (0.75, 0.75)]


@pytest.mark.parametrize("text", ["scattered: a red ring, a pink star", "a red ring left of a pink star"])
def test_other_scenes_state_no_places(text):
    assert parse(text).stated_centres() == [None, None]


RING_AND_CROSS = (Item("red", "ring"), Item("pink", "cross", "small"))


@pytest.mark.parametrize(
    "text",
    [
        "a red ring, a small pink cross in a row",
        "the red ring and one small pink cross in a row",
        "large red ring, and tiny pink cross in a row",
        "A row of a big red ring,  a tiny pink cross.",
        "From left to right: red ring, small pink cross",
        "An high-quality image of red ring, small pink cross",
    ],
)
def test_articles_sizes_and_phrasings_are_free(text):
    assert parse(text) == Scene("rows", RING_AND_CROSS, rows=(2,))


@pytest.mark.parametrize(
    "text",
    [
        "from top to bottom: a red ring, a small pink cross",
        "a red ring and a small pink cross in a column",
        "a column of a red ring, a small pink cross",
        "a red ring; a small pink cross",
        "top row: a red ring; bottom row: a small pink cross",
    ],
)
def test_columns_are_rows_of_one(text):
    assert parse(text) == Scene("rows", RING_AND_CROSS, rows=(1, 1))


@pytest.mark.parametrize(
    ("phrase", "relation"),
    [
        ("left of", "left"),
        ("to the left of", "left"),
        ("right of", "right"),
        ("to the right of", "right"),
        ("above", "above"),
        ("over", "above"),
        ("below", "below"),
        ("under", "below"),
    ],
)
def test_relations(phrase, relation):
    assert parse(f"a red ring {phrase} a tiny pink cross") == Scene("relation", RING_AND_CROSS, relations=(relation,))


def test_two_relations_hold_for_the_first_object():
    scene = parse("a red ring left of a tiny pink cross and above an orange heart")
    assert scene == Scene("relation", (*RING_AND_CROSS, Item("orange", "heart")), relations=("left", "above"))


def test_the_examples_in_the_help_parse():
    examples = re.findall(r'"([^"]+)"', GRAMMAR_HELP)
    assert len(examples) == 5
    kinds = [parse(example).kind for example in examples]
    assert kinds == ["rows", "rows", "rows", "relation", "free"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a photo of a cat",
        "a red circle, a mauve star",
        "a red circle, a blue hexagon",
        "a red circle, a huge blue star",
        "a circle, a star",
        "a red circle left of",
        "a red circle left of a blue star and right of a red ring",
        "a red circle above a blue star and left of a red ring",
        ", ".join(["red ring"] * 5) + " in a row",
        "; ".join(["red ring"] * 5),
        "scattered: " + ", ".join(["red ring"] * 17),
    ],
)
def test_anything_else_is_refused_with_help(text):
    with pytest.raises(ValueError, match=r"(?s)(expected|cannot read).*Colours:"):
        parse(text)


@pytest.mark.parametrize("count", [1, 17])
def test_too_few_or_too_many_objects_are_refused(count):
    with pytest.raises(ValueError, match="expected 2 to 16 objects"):
        sample_scene(np.random.default_rng(0), count)


def test_small_objects_are_smaller_and_neighbours_do_not_overlap():
    for seed in range(50):
        scene = sample_scene(np.random.default_rng(seed))
        assert scene.radius("small") < scene.radius("large") < scene.pitch / 2
