"""Drawing scenes: anti-aliased shapes on soft backgrounds, and local damage at known pixels."""

from __future__ import annotations

import colorsys
import functools
from dataclasses import dataclass

import numpy as np

from lotts.shapes.scenes import COLOURS, SHAPES, Scene

SIDE = 128
DAMAGES = ("hole", "bite", "jagged", "blur", "texture", "blob")
_GRID, _EXTENT = 192, 1.6  # signed-distance tables cover [-_EXTENT, _EXTENT]^2 in units of the radius
_VISIBLE = 28  # a pixel counts as damaged when some channel is off by more than this (of 255)


@dataclass(frozen=True)
class Placed:
    """Where an object was drawn: centre and radius in pixels."""

    x: float
    y: float
    radius: float


@dataclass
class Drawing:
    """A drawn scene.

    ``image`` uint8 [SIDE, SIDE, 3]; ``placed`` one entry an item; ``objects`` bool [n, SIDE, SIDE], the pixels of each
    undamaged object; ``damage`` bool [n, SIDE, SIDE], the pixels of each that differ visibly from the clean drawing.
    """

    image: np.ndarray
    placed: list[Placed]
    objects: np.ndarray
    damage: np.ndarray


def draw(scene: Scene, rng: np.random.Generator, *, damaged: bool = False, flaws: float = 0.0) -> Drawing:
    """Draw a scene; ``damaged`` breaks one to about a third of its objects locally, otherwise each breaks by a chance of ``flaws``."""
    placed = place(scene, rng)
    background = _background(rng)
    clean, broken = background.copy(), background.copy()
    n = len(placed)
    victims: set[int] = set()
    if damaged:
        victims = set(rng.choice(n, size=int(rng.integers(1, max(2, n // 3 + 1))), replace=False).tolist())
    elif flaws:
        victims = set(np.flatnonzero(rng.random(n) < flaws).tolist())
    objects = np.zeros((n, SIDE, SIDE), bool)
    damage = np.zeros((n, SIDE, SIDE), bool)
    for index, (item, spot) in enumerate(zip(scene.items, placed, strict=True)):
        box = _box(spot)
        distance = signed_distance(item.shape, spot, box)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        colour = np.array(COLOURS[item.colour], np.float32)
        whole = clean[box] * (1 - cover) + colour * cover
        objects[index][box] = cover[..., 0] > 0.5
        clean[box] = whole
        broken[box] = broken[box] * (1 - cover) + colour * cover
        if index in victims:
            visible = np.zeros(())
            while visible.sum() < 0.06 * objects[index].sum() + 6:
                patch = _damage(str(rng.choice(DAMAGES)), whole, background[box], distance, colour, spot, box, rng)
                visible = np.abs(patch - whole).max(-1) > _VISIBLE
            # Only what changed: an earlier object's damage may reach into the box.
            broken[box] = np.where((patch != whole).any(-1, keepdims=True), patch, broken[box])
            damage[index][box] = visible
    return Drawing(np.rint(np.clip(broken, 0, 255)).astype(np.uint8), placed, objects, damage)


def place(scene: Scene, rng: np.random.Generator) -> list[Placed]:
    """Centres and radii in pixels that honour what the scene states, objects apart from each other and from the rim."""
    radii = [scene.radius(item.size) * SIDE * rng.uniform(0.94, 1.06) for item in scene.items]
    stated = scene.stated_centres()
    if scene.kind == "rows":
        slack = 0.07 * scene.pitch
        centres = [(x + rng.uniform(-slack, slack), y + rng.uniform(-slack, slack)) for x, y in filter(None, stated)]
        return [Placed(x * SIDE, y * SIDE, r) for (x, y), r in zip(centres, radii, strict=True)]
    # Free scenes are laid out in reading order and relations square, the way one draws what one is told: a caption that did
    # not say which object is where would teach a small model to mix them. The checker takes any order, and any place that
    # honours the relations.
    while True:
        around = _free_centres(scene, rng) if scene.kind == "free" else _related_centres(scene.relations, rng)
        spots = []
        for centre, radius in zip(around, radii, strict=True):
            x, y = (float(np.clip(at * SIDE, radius + 3, SIDE - radius - 3)) for at in centre)
            spots.append(Placed(x, y, radius))
        kept = all(holds(relation, spots[0], spots[i + 1]) for i, relation in enumerate(scene.relations))
        if kept and _apart(spots):
            return spots


def _free_centres(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
    """(x, y) in [0, 1]: one cell an object, and anywhere in the middle two fifths of it."""
    rows = scene.reading_rows
    widths = [1 / length for length in rows for _ in range(length)]
    return [
        (x + rng.uniform(-0.2, 0.2) * width, y + rng.uniform(-0.2, 0.2) / len(rows))
        for (x, y), width in zip(scene.cell_centres(), widths, strict=True)
    ]


def _related_centres(relations: tuple[str, ...], rng: np.random.Generator) -> list[tuple[float, float]]:
    """(x, y) in [0, 1]: the first object, and each other one across from it as its relation says."""
    offset = {"left": (0.44, 0.0), "right": (-0.44, 0.0), "above": (0.0, 0.44), "below": (0.0, -0.44)}
    moves = np.array([(0.0, 0.0), *(offset[relation] for relation in relations)])
    centres = moves - (moves.min(0) + moves.max(0)) / 2 + 0.5
    return [(float(x), float(y)) for x, y in centres + rng.uniform(-0.07, 0.07, moves.shape)]


def _apart(spots: list[Placed]) -> bool:
    return all(np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + 5 for i, a in enumerate(spots) for b in spots[:i])


def holds(relation: str, first: Placed, other: Placed, margin: float = 0.14) -> bool:
    """Whether ``first`` lies left of / right of / above / below ``other`` by at least ``margin`` of the side."""
    dx, dy = other.x - first.x, other.y - first.y
    return {"left": dx, "right": -dx, "above": dy, "below": -dy}[relation] >= margin * SIDE


def signed_distance(shape: str, spot: Placed, box: tuple[slice, slice]) -> np.ndarray:
    """Signed distance in pixels (negative inside) from each pixel centre of ``box`` to the outline of ``shape``."""
    table = _distance_table(shape)
    scale = (_GRID - 1) / (2 * _EXTENT)
    v = ((np.arange(box[0].start, box[0].stop) + 0.5 - spot.y) / spot.radius + _EXTENT) * scale
    u = ((np.arange(box[1].start, box[1].stop) + 0.5 - spot.x) / spot.radius + _EXTENT) * scale
    v, u = np.clip(v, 0, _GRID - 1.001), np.clip(u, 0, _GRID - 1.001)
    i, j = v.astype(int), u.astype(int)
    fv, fu = (v - i)[:, None], (u - j)[None, :]
    top = table[i[:, None], j] * (1 - fu) + table[i[:, None], j + 1] * fu
    bottom = table[i[:, None] + 1, j] * (1 - fu) + table[i[:, None] + 1, j + 1] * fu
    return ((top * (1 - fv) + bottom * fv) * spot.radius).astype(np.float32)


@functools.cache
def _distance_table(shape: str) -> np.ndarray:
    axis = np.linspace(-_EXTENT, _EXTENT, _GRID)
    x, y = np.meshgrid(axis, axis)
    if shape == "circle":
        return np.hypot(x, y) - 0.92
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.69) - 0.27
    return _polygon_distance(_outline(shape), x, y)


def _outline(shape: str) -> np.ndarray:
    if shape == "square":
        return 0.82 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    if shape == "diamond":
        return np.array([(0, -1.08), (0.8, 0), (0, 1.08), (-0.8, 0)])
    if shape == "triangle":
        return np.array([(0, -0.98), (1.02, 0.78), (-1.02, 0.78)])
    if shape == "cross":
        a, b = 0.98, 0.34
        return np.array(
            [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
        )
    if shape == "star":
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.12, 0.47)
        return np.stack([radii * np.cos(angles), radii * np.sin(angles) + 0.06], -1)
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return np.stack([x / 16.5, y / 16.5 - 0.12], -1)
    raise ValueError(f"expected one of {SHAPES}, got {shape!r}")


def _polygon_distance(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - t * ex, y - ay - t * ey))
        crosses = (ay > y) != (by > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, -nearest, nearest)


def _box(spot: Placed) -> tuple[slice, slice]:
    reach = 1.55 * spot.radius + 2
    top, bottom = max(0, int(spot.y - reach)), min(SIDE, int(spot.y + reach) + 1)
    left, right = max(0, int(spot.x - reach)), min(SIDE, int(spot.x + reach) + 1)
    return slice(top, bottom), slice(left, right)


def _background(rng: np.random.Generator) -> np.ndarray:
    """A pastel ground: flat, a gradient, a soft glow or broad stripes. float32 [SIDE, SIDE, 3] in 0..255."""
    hue = rng.random()
    first, second = (_pastel(hue, rng), _pastel(hue + rng.uniform(-0.15, 0.15), rng))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    angle = rng.uniform(0, 2 * np.pi)
    along = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    kind = rng.integers(4)
    if kind == 0:
        t = np.zeros((SIDE, SIDE))
    elif kind == 1:
        t = along * 0.9 + 0.5
    elif kind == 2:
        cx, cy = rng.uniform(0.3, 0.7, 2)
        t = np.hypot(x - cx, y - cy) * 1.3
    else:
        t = 0.5 + 0.4 * np.sin(along * 2 * np.pi * rng.uniform(1.5, 3.5) + rng.uniform(0, 6))
    t = np.clip(t, 0, 1)[..., None]
    return (first * (1 - t) + second * t).astype(np.float32)


def _pastel(hue: float, rng: np.random.Generator) -> np.ndarray:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.02, 0.16), rng.uniform(0.88, 0.99)))


def _damage(kind, whole, ground, distance, colour, spot, box, rng) -> np.ndarray:
    """One local fault in the patch ``whole`` [h, w, 3] of an object."""
    y = np.arange(box[0].start, box[0].stop)[:, None] + 0.5 - spot.y
    x = np.arange(box[1].start, box[1].stop)[None, :] + 0.5 - spot.x
    r = spot.radius
    if kind == "jagged":
        angle = np.arctan2(y, x)
        teeth = np.sin(angle * rng.integers(9, 15) + rng.uniform(0, 6)) * rng.uniform(0.15, 0.24) * r
        side = np.cos(angle - rng.uniform(-np.pi, np.pi)) > rng.uniform(-0.6, 0.1)
        cover = np.clip(0.5 - (distance + np.where(side, teeth + 0.1 * r, 0)), 0, 1)[..., None]
        return ground * (1 - cover) + colour * cover
    if kind == "blur":
        return _blur(whole, rng.uniform(0.28, 0.42) * r)
    around = rng.uniform(0, 2 * np.pi)
    if kind == "texture":
        stripe = np.sin((x * np.cos(around) + y * np.sin(around)) * np.pi / max(2.0, 0.22 * r)) > 0
        other = np.array(list(COLOURS.values())[rng.integers(len(COLOURS))], np.float32)
        half = (x * np.cos(around + 1) + y * np.sin(around + 1)) > rng.uniform(-0.9, 0.1) * r
        cover = (np.clip(0.5 - distance, 0, 1) * (stripe & half))[..., None]
        return whole * (1 - cover) + other * cover
    reach = {"hole": rng.uniform(0, 0.35), "bite": rng.uniform(0.7, 0.9), "blob": rng.uniform(0.6, 1.15)}[kind] * r
    size = {"hole": rng.uniform(0.32, 0.45), "bite": rng.uniform(0.4, 0.6), "blob": rng.uniform(0.22, 0.36)}[kind] * r
    cx, cy = reach * np.cos(around), reach * np.sin(around)
    wobble = 1 + 0.18 * np.sin(np.arctan2(y - cy, x - cx) * rng.integers(3, 6) + rng.uniform(0, 6))
    cover = np.clip(0.5 - (np.hypot(x - cx, y - cy) - size * wobble), 0, 1)[..., None]
    if kind == "blob":
        other = np.array(list(COLOURS.values())[rng.integers(len(COLOURS))], np.float32)
        return whole * (1 - cover) + other * cover
    return whole * (1 - cover) + ground * cover


def _blur(patch: np.ndarray, sigma: float) -> np.ndarray:
    half = int(np.ceil(2.5 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    out = np.pad(patch, ((half, half), (half, half), (0, 0)), mode="edge")
    out = np.apply_along_axis(np.convolve, 0, out, kernel, mode="valid")
    return np.apply_along_axis(np.convolve, 1, out, kernel, mode="valid").astype(np.float32)
