"""Pictures for the reward model, with labels that are known because of how each picture was made.

A ``Picture`` is a drawing (clean, damaged, with an object missing, moved or too many) or a generated sample that the
checker has judged. ``misquote`` then changes its caption: what no longer agrees is wrong by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lotts.shapes.draw import SIDE, Drawing, Placed, draw, holds, place
from lotts.shapes.reward_queries import GRID, attributes
from lotts.shapes.scenes import COLOURS, MAX_FREE, SHAPES, SIZES, Item, Scene, sample_scene

RELATION_CLEAR, RELATION_FAILS = 0.13, 0.07  # shares of the side; what lies between is nobody's fault
_AWAY = 0.5  # a moved object is this share of the pitch off its place, or more
_COLOURS, _SHAPES = list(COLOURS), list(SHAPES)
IGNORE = -100


@dataclass
class Picture:
    """A picture and what is true of it under ``scene``.

    ``image`` uint8 [SIDE, SIDE, 3]; ``right`` [n] is 1, 0 or ``IGNORE`` an item; ``tidy`` is 1, 0 or ``IGNORE``: nothing
    painted that the caption does not ask for; ``seen`` int [n, 3], the colour, shape and size of the object that stands
    for each item (the number of classes: there is none); ``placed`` where it is; ``cells`` int [3, GRID * GRID], colour,
    shape and damage a token. ``IGNORE`` where unknown. ``exact``: the labels hold for these very pixels, so that softening
    or noise would make them wrong.
    """

    image: np.ndarray
    scene: Scene
    right: np.ndarray
    tidy: int
    seen: np.ndarray
    placed: list[Placed | None]
    cells: np.ndarray = field(default_factory=lambda: np.full((3, GRID * GRID), IGNORE))
    exact: bool = False


@dataclass(frozen=True)
class _Layout(Scene):
    """A scene whose places are given rather than stated, so that what is drawn can differ from what the caption says."""

    centres: tuple[tuple[float, float], ...] = ()
    radii: tuple[tuple[str, float], ...] = ()

    @property
    def pitch(self) -> float:
        return 0.0  # no slack: each object is drawn exactly at its centre

    def radius(self, size: str) -> float:
        return dict(self.radii)[size]

    def stated_centres(self) -> list[tuple[float, float] | None]:
        return list(self.centres)


def sample_picture(rng: np.random.Generator, *, held_out: bool = False) -> Picture:
    """Draw a scene: clean, damaged, or with one object missing, moved or too many."""
    chance = rng.random()
    # Relations and free placement are the hardest to read and the rarest in the grammar's own mixture.
    count = int(rng.integers(2, 4)) if chance < 0.2 else int(rng.integers(4, MAX_FREE + 1)) if chance < 0.45 else None
    scene = sample_scene(rng, count, held_out=held_out)
    damaged = bool(rng.random() < 0.5)
    fault = str(rng.choice(["none", "missing", "extra", "moved", "stray"], p=[0.6, 0.1, 0.1, 0.1, 0.1]))
    return _make(scene, rng, damaged, fault)


def _make(scene: Scene, rng: np.random.Generator, damaged: bool, fault: str) -> Picture:
    n = len(scene.items)
    spots, items, drawn = place(scene, rng), list(scene.items), list(range(n))
    victim = int(rng.integers(n))
    wrong: set[int] = set()
    moved = _elsewhere(scene, spots, victim, rng) if fault == "moved" else None
    if moved is not None:
        spots[victim] = moved
        wrong = {victim} if scene.kind == "rows" else set()
    elif fault in ("missing", "moved"):
        del spots[victim], items[victim], drawn[victim]
        wrong = {victim}
    extra = _free_spot(scene, spots, rng) if fault == "extra" else None
    if extra is not None:
        spots.append(extra)
        items.append(Item(str(rng.choice(_COLOURS)), str(rng.choice(_SHAPES)), "small"))
    layout = _Layout(
        "rows",
        tuple(items),
        rows=(len(items),),
        centres=tuple((s.x / SIDE, s.y / SIDE) for s in spots),
        radii=tuple((size, scene.radius(size)) for size in SIZES),
    )
    drawing = draw(layout, rng, damaged=damaged)
    image = drawing.image
    stray = _stray(image, np.asarray(drawing.objects.any(0)), rng) if fault == "stray" else None
    hurt = np.asarray(drawing.damage.any((1, 2)))
    # Damage to one object may reach over another, which is then neither whole nor a victim.
    touched = (drawing.objects & drawing.damage.any(0)).any((1, 2)) & ~hurt
    right = np.zeros(n, np.int64)
    seen = np.tile([len(COLOURS), len(SHAPES), len(SIZES)], (n, 1))
    placed: list[Placed | None] = [None] * n
    for at, item in enumerate(drawn):
        right[item] = 0 if hurt[at] or item in wrong else IGNORE if touched[at] else 1
        placed[item] = drawing.placed[at]
    seen[drawn] = attributes(scene)[drawn]
    right = _both(right, _relations(scene, placed))
    tidy = int(extra is None and stray is None)
    return Picture(image, scene, right, tidy, seen, placed, _cells(layout, drawing, stray))


def _both(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The labels of "first and second": 0 where either is, else IGNORE where either is, else 1."""
    return np.where((first == 0) | (second == 0), 0, np.minimum(first, second))


def _relations(scene: Scene, placed: Sequence[Placed | None]) -> np.ndarray:
    """[n]: 1 where every relation of an item holds, 0 where one fails or its other end is missing, IGNORE between."""
    out = np.ones(len(scene.items), np.int64)
    for index, relation in enumerate(scene.relations):
        ends = [0, index + 1]
        first, other = placed[0], placed[index + 1]
        if first is None or other is None or not holds(relation, first, other, RELATION_FAILS):
            out[ends] = 0
        elif not holds(relation, first, other, RELATION_CLEAR):
            out[ends] = np.where(out[ends] == 0, 0, IGNORE)
    return out


def _cells(scene: Scene, drawing: Drawing, stray: tuple[np.ndarray, int] | None) -> np.ndarray:
    size = SIDE // GRID
    objects, damage = drawing.objects, drawing.damage.any(0)
    kinds = [*attributes(scene).tolist()]
    if stray is not None:
        objects, damage = np.concatenate([objects, stray[0][None]]), damage | stray[0]
        kinds.append([stray[1], IGNORE, 0])
    cover = objects.reshape(-1, GRID, size, GRID, size).mean((2, 4)).reshape(len(objects), -1)
    owner = np.where(cover.max(0) > 0.25, cover.argmax(0), len(objects))
    colour, shape, _ = np.array([*kinds, [len(COLOURS), len(SHAPES), 0]])[owner].T
    return np.stack([colour, shape, hurt_cells(np.asarray(damage))])


def hurt_cells(damage: np.ndarray) -> np.ndarray:
    """Which tokens show damage, bool [GRID * GRID], by damaged pixels [SIDE, SIDE]."""
    size = SIDE // GRID
    return damage.reshape(GRID, size, GRID, size).sum((1, 3)).reshape(-1) > 2


def _free_spot(scene: Scene, spots: list[Placed], rng: np.random.Generator, size: str = "small") -> Placed | None:
    radius = scene.radius(size) * SIDE
    for _ in range(60):
        x, y = rng.uniform(radius + 2, SIDE - radius - 2, 2)
        if all(np.hypot(x - s.x, y - s.y) > 1.1 * (radius + s.radius) + 4 for s in spots):
            return Placed(x, y, radius)
    return None


def _elsewhere(scene: Scene, spots: list[Placed], victim: int, rng: np.random.Generator) -> Placed | None:
    """A free spot at which the object ``victim`` breaks what the caption states; None where none was found."""
    centre = scene.stated_centres()[victim]
    if scene.kind == "free":
        return None
    for _ in range(20):
        others = spots[:victim] + spots[victim + 1 :]
        spot = _free_spot(scene, others, rng, scene.items[victim].size)
        if spot is None:
            return None
        if centre is not None:
            if np.hypot(spot.x / SIDE - centre[0], spot.y / SIDE - centre[1]) > _AWAY * scene.pitch:
                return spot
        elif (_relations(scene, [*spots[:victim], spot, *spots[victim + 1 :]]) == 0).any():
            return spot
    return None


def _stray(image: np.ndarray, objects: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int] | None:
    """Paint a blob or a stroke on the ground of ``image``, in place. Returns its pixels and the index of its colour."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    index = int(rng.integers(len(COLOURS)))
    colour = np.array(COLOURS[_COLOURS[index]])
    for _ in range(20):
        cx, cy = rng.uniform(4, SIDE - 4, 2)
        radius, stretch, angle = rng.uniform(3, 8), rng.uniform(1, 3), rng.uniform(0, np.pi)
        u, v = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle), (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        wobble = 1 + 0.2 * np.sin(3 * np.arctan2(v, u) + rng.uniform(0, 6))
        distance = np.hypot(u / stretch, v) - radius * wobble
        if not (objects & (distance < 4)).any():
            cover = np.clip(0.5 - distance, 0, 1)[..., None] * rng.uniform(0.6, 1)
            image[:] = np.rint(image * (1 - cover) + colour * cover)
            return distance < 0, index
    return None


def mirror(picture: Picture) -> Picture:
    """The same picture seen in a mirror, its caption with it; as it is where that is a scene kept from training.

    Every shape is its own mirror image, and the checker tells left from right by the caption alone: labels stay what they were.
    """
    scene, order = picture.scene, list(range(len(picture.scene.items)))
    if scene.kind != "relation":
        lengths = scene.reading_rows
        ends = np.cumsum(lengths).tolist()
        order = [i for end, length in zip(ends, lengths, strict=True) for i in reversed(range(end - length, end))]
    turned = {"left": "right", "right": "left"}
    items = tuple(scene.items[i] for i in order)
    mirrored = replace(scene, items=items, relations=tuple(turned.get(r, r) for r in scene.relations))
    if mirrored.held_out():
        return picture
    placed = [None if (spot := picture.placed[i]) is None else replace(spot, x=SIDE - spot.x) for i in order]
    return replace(
        picture,
        image=picture.image[:, ::-1],
        scene=mirrored,
        right=picture.right[order],
        seen=picture.seen[order],
        placed=placed,
        cells=picture.cells.reshape(3, GRID, GRID)[..., ::-1].reshape(3, -1),
    )


def misquote(picture: Picture, rng: np.random.Generator) -> Picture:
    """The same picture under a caption that is wrong about one to three objects that it shows right.

    A relation is turned about, two items trade places, or single items change in colour, shape or size. Where nothing
    is right, or the caption would be one of a scene kept from training, nothing changes.
    """
    changed = _misquoted(picture, rng)
    return picture if changed.scene.held_out() else changed


def _misquoted(picture: Picture, rng: np.random.Generator) -> Picture:
    if not len(able := np.flatnonzero(picture.right == 1)):
        return picture
    chance = rng.random()
    if picture.scene.relations and chance < 0.3:
        return _other_relation(picture, rng)
    if len(able) >= 2 and chance < 0.4 and picture.scene.kind != "free":
        first, second = sorted(rng.choice(able, 2, replace=False).tolist())
        return _trade(picture, first, second)
    items, right = list(picture.scene.items), picture.right.copy()
    for index in rng.choice(able, min(len(able), int(rng.integers(1, 4))), replace=False):
        items[index] = mutate(items[index], rng)
        right[index] = 0
    return replace(picture, scene=replace(picture.scene, items=tuple(items)), right=right)


def mutate(item: Item, rng: np.random.Generator) -> Item:
    """``item`` with another colour (usually), shape or size."""
    kind = str(rng.choice(["colour", "shape", "size"], p=[0.4, 0.4, 0.2]))
    values = {"colour": _COLOURS, "shape": _SHAPES, "size": list(SIZES)}[kind]
    return replace(item, **{kind: str(rng.choice([v for v in values if v != getattr(item, kind)]))})


def _trade(picture: Picture, first: int, second: int) -> Picture:
    """Two items trade places in the caption; ``seen`` stays with the place in rows and goes with the item elsewhere."""
    scene, order = picture.scene, list(range(len(picture.scene.items)))
    order[first], order[second] = second, first
    traded = replace(scene, items=tuple(scene.items[i] for i in order))
    if scene.kind == "rows":
        same = np.array([a == b for a, b in zip(traded.items, scene.items, strict=True)])
        return replace(picture, scene=traded, right=np.where(same, picture.right, 0))
    if traded == scene:
        return picture
    placed = [picture.placed[i] for i in order]
    right = _both(picture.right[order], _relations(traded, placed))
    return replace(picture, scene=traded, right=right, seen=picture.seen[order], placed=placed)


def _other_relation(picture: Picture, rng: np.random.Generator) -> Picture:
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    relations = list(picture.scene.relations)
    index = int(rng.integers(len(relations)))
    relations[index] = opposite[relations[index]]
    scene = replace(picture.scene, relations=tuple(relations))
    return replace(picture, scene=scene, right=_both(picture.right, _relations(scene, picture.placed)))


def wear(picture: Picture, rng: np.random.Generator) -> Picture:
    """A drawing with what a decoder does to it: softness, noise, a shift of colour. A generated sample stays as it is."""
    if picture.exact:
        return picture
    out = picture.image.astype(np.float32)
    if rng.random() < 0.5:
        out = _soften(out, rng.uniform(0.3, 0.8))
    if rng.random() < 0.5:
        out += rng.uniform(1, 5) * rng.standard_normal(out.shape, np.float32)
    if rng.random() < 0.5:
        out = out * rng.uniform(0.97, 1.03) + rng.uniform(-6, 6, 3).astype(np.float32)
    return replace(picture, image=np.rint(out.clip(0, 255)).astype(np.uint8))


def _soften(image: np.ndarray, sigma: float) -> np.ndarray:
    weights = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    rows = np.sum([w * padded[i : i + SIDE] for i, w in enumerate(weights)], axis=0)
    return np.sum([w * rows[:, i : i + SIDE] for i, w in enumerate(weights)], axis=0)
