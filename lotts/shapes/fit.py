"""Fitting the renderer's silhouettes to painted regions: which shape, where, how large."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from lotts.shapes.draw import SIDE, Placed, signed_distance
from lotts.shapes.scenes import SHAPES, Scene
from lotts.shapes.segment import Regions, peak

_STEPS, _REACH = 320, 1.6  # distance tables cover [-_REACH, _REACH]^2 in units of the radius
_OFF_COLOUR = (
    50  # levels off the line from ground to paint from which a pixel is neither, and tells nothing of the outline
)
_PLAIN = 0.10  # a misfit below this leaves no doubt about the shape


@dataclass(frozen=True)
class Fit:
    """A silhouette in the image: ``overlap`` in [0, 1] is its soft intersection over union with the paint.

    ``rim`` is what is not overlapped as the width, in pixels, of a seam along the whole outline.
    """

    shape: str
    spot: Placed
    overlap: float
    rim: float


@dataclass
class _Windows:
    """Square patches around the groups: ``cover`` and ``weight`` [n, w, w]; ``y``, ``x`` [n, w] pixel centres."""

    cover: np.ndarray
    weight: np.ndarray
    y: np.ndarray
    x: np.ndarray
    pixel: float

    def halved(self) -> _Windows:
        """The same patches at half the resolution."""
        n, w, _ = self.cover.shape
        blocks = (n, w // 2, 2, w // 2, 2)
        mass = self.weight.reshape(blocks).sum((2, 4))
        cover = (self.cover * self.weight).reshape(blocks).sum((2, 4)) / np.maximum(mass, 1e-6)
        y, x = self.y.reshape(n, -1, 2).mean(-1), self.x.reshape(n, -1, 2).mean(-1)
        return _Windows(cover, mass / 4, y, x, 2 * self.pixel)

    def take(self, index: np.ndarray) -> _Windows:
        return _Windows(self.cover[index], self.weight[index], self.y[index], self.x[index], self.pixel)


def fit_silhouettes(regions: Regions, scene: Scene, wanted: dict[int, str] | None = None) -> list[Fit]:
    """The best silhouette for each group of ``regions``, robust to local damage.

    With ``wanted`` (a shape for each of some groups) only these groups are fitted, each with its shape.
    """
    groups = np.arange(regions.count) if wanted is None else np.array(list(wanted))
    if len(groups) == 0:
        return []
    large = scene.radius("large") * SIDE
    windows = _windows(regions, groups, large)
    coarse = windows.halved()
    starts, misfit = _starts(coarse, large)
    if wanted is None:
        owner, shape = np.nonzero(_plausible(misfit))
    else:
        owner, shape = np.arange(len(groups)), np.array([SHAPES.index(name) for name in wanted.values()])
    spots = starts[owner, shape]
    for _ in range(4):
        spots = _refined(coarse.take(owner), shape, spots, large)
    misfit = _misfit(coarse.take(owner), shape, spots)
    order = np.lexsort((misfit, owner))
    best = order[np.flatnonzero(np.diff(owner[order], prepend=-1))]
    shape, spots = shape[best], spots[best]
    for _ in range(2):
        spots = _refined(windows, shape, spots, large)
    misfit = _misfit(windows, shape, spots)
    rim = misfit * spots[:, 2] * _shape_facts().area_by_outline[shape]
    return [
        Fit(SHAPES[s], Placed(*map(float, spot)), 1 - float(m), float(r))
        for s, spot, m, r in zip(shape, spots, misfit, rim, strict=True)
    ]


def _windows(regions: Regions, groups: np.ndarray, large: float) -> _Windows:
    """How much each pixel around each of ``groups`` is covered by its paint, and which pixels can tell."""
    y, x = np.nonzero(regions.owner >= 0)
    group = regions.owner[y, x]
    boxes = []
    for line in (y, x):
        low, high = np.full(regions.count, SIDE), np.zeros(regions.count, int)
        np.minimum.at(low, group, line)
        np.maximum.at(high, group, line)
        boxes.append((low + high + 1) // 2)
    half = 2 * int(np.ceil((1.3 * large + 4) / 2))
    offsets = np.arange(-half, half)
    rows, columns = boxes[0][groups, None] + offsets, boxes[1][groups, None] + offsets
    at = np.clip(rows, 0, SIDE - 1)[:, :, None], np.clip(columns, 0, SIDE - 1)[:, None, :]
    ground, owner = regions.ground[at], regions.owner[at]
    span = regions.colours[groups, None, None, :] - ground
    off = regions.image[at] - ground
    cover = (off * span).sum(-1) / np.maximum((span**2).sum(-1), 1)
    clipped = np.clip(cover, 0, 1)
    strange = peak(np.abs(off - clipped[..., None] * span)) > _OFF_COLOUR
    others = (owner != groups[:, None, None]) & regions.foreground[at]
    outside = ((rows < 0) | (rows >= SIDE))[:, :, None] | ((columns < 0) | (columns >= SIDE))[:, None, :]
    weight = np.where(strange | others | outside, 0, 1).astype(np.float32)
    return _Windows(clipped.astype(np.float32), weight, rows + 0.5, columns + 0.5, 1.0)


def _starts(windows: _Windows, large: float) -> tuple[np.ndarray, np.ndarray]:
    """Rough (x, y, radius) [n, 8, 3] of each shape in each window, and their misfits [n, 8]."""
    facts = _shape_facts()
    area, centroid, low, high = facts.area, facts.centroid, facts.low, facts.high
    n = len(windows.cover)
    paint = windows.cover * windows.weight
    mass = np.maximum(paint.sum((1, 2)), 1e-3)
    mean_x, mean_y = (paint.sum(1) * windows.x).sum(-1) / mass, (paint.sum(2) * windows.y).sum(-1) / mass
    # By area and centroid: exact for whole objects.
    radius = np.sqrt(mass[:, None] * windows.pixel**2 / area)
    by_mass = np.stack(
        [mean_x[:, None] - centroid[:, 0] * radius, mean_y[:, None] - centroid[:, 1] * radius, radius], -1
    )
    # By bounding box: exact for objects with holes.
    solid = paint > 0.5
    ends = []
    for axis, line in ((1, windows.x), (2, windows.y)):
        hit = solid.any(axis)
        ends.append(
            (
                np.where(hit, line, 1e9).min(-1) - windows.pixel / 2,
                np.where(hit, line, -1e9).max(-1) + windows.pixel / 2,
            )
        )
    spans = np.stack([high_ - low_ for low_, high_ in ends], -1)
    middles = np.stack([(high_ + low_) / 2 for low_, high_ in ends], -1)
    radius = np.where(spans > 0, spans, 1)[:, None, :].max(-1) / (high - low).max(-1)
    middles = np.where(spans > 0, middles, np.stack([mean_x, mean_y], -1))
    by_box = np.concatenate([middles[:, None] - (high + low) / 2 * radius[..., None], radius[..., None]], -1)
    spots = np.stack([by_mass, by_box], 2)
    spots[..., 2] = np.clip(spots[..., 2], 0.3 * large, 1.5 * large)
    owner, shape, _ = (i.ravel() for i in np.indices((n, len(SHAPES), 2)))
    spots = spots.reshape(-1, 3)
    misfit = _misfit(windows.take(owner), shape, spots).reshape(n, len(SHAPES), 2)
    spots = np.take_along_axis(spots.reshape(n, len(SHAPES), 2, 3), misfit.argmin(-1)[..., None, None], 2)[:, :, 0]
    return spots, misfit.min(-1)


def _plausible(misfit: np.ndarray) -> np.ndarray:
    """Which shapes are worth refining, bool [n, 8]."""
    rank = misfit.argsort(-1).argsort(-1)
    least = misfit.min(-1, keepdims=True)
    return (rank == 0) | (rank < 4) & (misfit < least + 0.25) & ((least > _PLAIN) | (misfit < 2 * _PLAIN))


def _refined(windows: _Windows, shape: np.ndarray, spots: np.ndarray, large: float) -> np.ndarray:
    """One damped, robust Gauss-Newton step of (x, y, radius) [m, 3] on the difference of cover."""
    distance, (u, v), at = _lookup(windows, shape, spots)
    slope_u, slope_v = (table.take(at) for table in _slopes())
    width = 2 * windows.pixel
    error = windows.cover - np.clip(0.5 - distance / width, 0, 1)
    # Errors deep inside or far outside are damage: they pull with a bounded force.
    weight = windows.weight * (np.abs(distance) < 0.5 * width + 1) / np.maximum(np.abs(error), 0.15)
    along_r = distance / spots[:, 2, None, None] - u[:, None, :] * slope_u - v[:, :, None] * slope_v
    jacobian = np.stack([slope_u, slope_v, -along_r]).reshape(3, len(shape), -1) / width
    weighted = jacobian * weight.reshape(len(shape), -1)
    normal = np.einsum("amp,bmp->mab", weighted, jacobian)
    pull = np.einsum("amp,mp->ma", weighted, error.reshape(len(shape), -1))
    normal += (1e-3 + 0.02 * np.trace(normal, axis1=1, axis2=2)[:, None, None]) * np.eye(3) / 3
    step = np.linalg.solve(normal, pull[..., None])[..., 0]
    moved = spots + np.clip(step, -0.25 * large, 0.25 * large)
    moved[:, 2] = np.clip(moved[:, 2], 0.3 * large, 1.5 * large)
    return moved


def _misfit(windows: _Windows, shape: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """One minus the soft intersection over union of silhouettes and paint, [m] in [0, 1]."""
    distance, _, _ = _lookup(windows, shape, spots)
    model = np.clip(0.5 - distance / windows.pixel, 0, 1)
    either = (np.maximum(model, windows.cover) * windows.weight).sum((1, 2))
    both = (np.minimum(model, windows.cover) * windows.weight).sum((1, 2))
    return 1 - both / np.maximum(either, 1e-3)


def _lookup(windows: _Windows, shape: np.ndarray, spots: np.ndarray):
    """Signed distances [m, w, w] in pixels, the axes (u [m, w], v [m, w]) in radii, and the table's flat indices."""
    u = (windows.x - spots[:, :1]) / spots[:, 2:]
    v = (windows.y - spots[:, 1:2]) / spots[:, 2:]
    i, j = (np.clip((axis + _REACH) * (_STEPS / (2 * _REACH)), 0, _STEPS - 1).astype(np.int32) for axis in (v, u))
    at = (shape[:, None].astype(np.int32) * _STEPS + i)[:, :, None] * _STEPS + j[:, None, :]
    return (
        _tables().take(at) * spots[:, 2, None, None].astype(np.float32),
        (u.astype(np.float32), v.astype(np.float32)),
        at,
    )


@functools.cache
def _tables() -> np.ndarray:
    """Signed distance [shape, v, u] at unit radius, float32."""
    radius = _STEPS / (2 * _REACH)
    spot = Placed(_STEPS / 2, _STEPS / 2, radius)
    everything = (slice(0, _STEPS), slice(0, _STEPS))
    return np.stack([signed_distance(shape, spot, everything) / radius for shape in SHAPES]).astype(np.float32)


@functools.cache
def _slopes() -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of the distance by u and by v, [shape, v, u]."""
    by_v, by_u = np.gradient(_tables(), 2 * _REACH / _STEPS, axis=(1, 2))
    return by_u, by_v


@dataclass(frozen=True)
class _ShapeFacts:
    """Of each shape at unit radius: area [8], area over outline length [8], centroid and bounding box corners [8, 2]."""

    area: np.ndarray
    area_by_outline: np.ndarray
    centroid: np.ndarray
    low: np.ndarray
    high: np.ndarray


@functools.cache
def _shape_facts() -> _ShapeFacts:
    cell = 2 * _REACH / _STEPS
    axis = (np.arange(_STEPS) + 0.5) * cell - _REACH
    inside = _tables() < 0
    area = inside.sum((1, 2)) * cell**2
    outline = (np.abs(_tables()) < 0.02).sum((1, 2)) * cell**2 / 0.04
    lines = [(inside.any(1), inside.sum(1)), (inside.any(2), inside.sum(2))]
    centroid = np.stack([(count * axis).sum(-1) / count.sum(-1) for _, count in lines], -1)
    low = np.stack([np.where(hit, axis, 9).min(-1) for hit, _ in lines], -1)
    high = np.stack([np.where(hit, axis, -9).max(-1) for hit, _ in lines], -1)
    return _ShapeFacts(area, area / outline, centroid, low, high)
