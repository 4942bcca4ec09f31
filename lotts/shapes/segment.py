"""Finding painted regions: the ground behind them, connected components, and components grouped into objects."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from lotts.shapes.draw import SIDE
from lotts.shapes.scenes import COLOURS, Scene

PALETTE = np.array(list(COLOURS.values()), np.float32)
FOREGROUND = 45  # levels (of 255) off the ground, in some channel, from which a pixel counts as paint
_NEAR_PALETTE = 52  # Euclidean distance in levels within which a pixel counts as one of the palette's colours
_COLOURFUL = 0.21  # saturation from which a pixel is paint; grounds stay below 0.16
_DARK = 0.6  # brightness below which no pixel is ground
_BLOCK, _SPECK = 4, 4
_STEEP = 15  # levels over four pixels; the steepest stripes of a ground reach 11
_FRAGMENT = 0.5  # parts smaller than this, in squared large radii, are crumbs of an object and not objects


@dataclass
class Regions:
    """What is painted where.

    ``image`` and ``ground`` float32 [SIDE, SIDE, 3]; ``foreground`` bool [SIDE, SIDE]; ``owner`` int [SIDE, SIDE], the
    group of each painted pixel or -1; ``count`` groups; ``colours`` float32 [count, 3], their mean colour over the pixels
    of the commonest palette colour; ``shares`` float [count, 8], how much of each group has each palette colour.
    """

    image: np.ndarray
    ground: np.ndarray
    foreground: np.ndarray
    owner: np.ndarray
    count: int
    colours: np.ndarray
    shares: np.ndarray


def segment(image: np.ndarray, scene: Scene) -> Regions:
    """Split ``image`` uint8 [SIDE, SIDE, 3] into groups of pixels, each probably one object."""
    pixels = image.astype(np.float32)
    ground = estimate_ground(pixels)
    foreground = peak(np.abs(pixels - ground)) > FOREGROUND
    owner, count = _group(components(foreground), scene)
    colours, shares = _colours(pixels, ground, owner, count)
    return Regions(pixels, ground, foreground, owner, count, colours, shares)


def _colours(pixels: np.ndarray, ground: np.ndarray, owner: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The colour [count, 3] of each group and its shares [count, 8] of the palette's colours."""
    inside = owner >= 0
    group, values = owner[inside], pixels[inside]
    distance = (values**2).sum(-1)[:, None] - 2 * values @ PALETTE.T + (PALETTE**2).sum(-1)
    nearest = distance.argmin(-1)
    near = distance[np.arange(len(nearest)), nearest] < _NEAR_PALETTE**2
    key = group[near] * len(PALETTE) + nearest[near]
    counts = np.bincount(key, minlength=count * len(PALETTE)).reshape(count, len(PALETTE))
    of_best = near & (nearest == counts.argmax(-1)[group])
    totals = np.bincount(group[of_best], minlength=count)
    sums = [np.bincount(group[of_best], weights=values[of_best, channel], minlength=count) for channel in range(3)]
    colours = (np.stack(sums, -1) / np.maximum(totals, 1)[:, None]).astype(np.float32)
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    for faint in np.flatnonzero(totals < 0.15 * np.bincount(group, minlength=count)):
        # Blurred away: the direction from the ground still tells the colour.
        mask = owner == faint
        behind = ground[mask].mean(0)
        span = PALETTE - behind
        best = (span @ (pixels[mask].mean(0) - behind) / np.linalg.norm(span, axis=-1)).argmax()
        colours[faint], shares[faint] = PALETTE[best], np.arange(len(PALETTE)) == best
    return colours, shares


def estimate_ground(pixels: np.ndarray) -> np.ndarray:
    """The smooth pastel ground of ``pixels`` float32 [SIDE, SIDE, 3], continued under the objects."""
    high, low = peak(pixels), -peak(-pixels)
    colourful = high - low > _COLOURFUL * high
    # A sampler's ground may be a little darker than the renderer's darkest; black paint is far below either.
    light = high[~colourful & (high > _DARK * 255)]
    darkest = min(0.84 * 255, 0.95 * float(np.median(light))) if light.size else 0.84 * 255
    paint = colourful | (high < darkest)
    # The rim of paint, and the halo of blurred paint, is a mix of paint and ground: it is steeper than any ground.
    smooth = _box_mean(pixels)
    paint[2:-2] |= peak(np.abs(smooth[4:] - smooth[:-4])) > _STEEP
    paint[:, 2:-2] |= peak(np.abs(smooth[:, 4:] - smooth[:, :-4])) > _STEEP
    paint = _dilate(paint)
    weight = (~paint).astype(np.float32)
    grid = SIDE // _BLOCK
    levels = [(_pool(pixels * weight[..., None], _BLOCK), _pool(weight[..., None], _BLOCK))]
    while grid > 1:
        grid //= 2
        levels.append(tuple(_pool(part, 2) for part in levels[-1]))  # type: ignore[arg-type]
    total, mass = levels[-1]
    filled = total / mass if mass.min() > 0 else np.full((1, 1, 3), 240, np.float32)
    for total, mass in reversed(levels[:-1]):
        coarse = _enlarge(filled, 2)
        # A little of the coarse level everywhere keeps blocks with few clean pixels from being noisy.
        prior = 0.02
        filled = (total + prior * coarse) / (mass + prior)
    return _enlarge(filled, _BLOCK)


def peak(values: np.ndarray) -> np.ndarray:
    """The greatest of three channels, [..., 3] -> [...]; NumPy's own reduction is slow over so short an axis."""
    return np.maximum(np.maximum(values[..., 0], values[..., 1]), values[..., 2])


def components(mask: np.ndarray) -> np.ndarray:
    """4-connected components of bool [H, W] as int [H, W]: 0 outside, else 1, 2, ... in no special order."""
    labels = np.zeros(mask.shape, np.int64)
    y, x = np.nonzero(mask)
    if len(y) == 0:
        return labels
    by_column = np.lexsort((y, x))
    row_starts = _run_starts(y, x)
    column_starts = _run_starts(x[by_column], y[by_column])
    row_lengths = np.diff(np.append(row_starts, len(y)))
    column_lengths = np.diff(np.append(column_starts, len(y)))
    value = np.arange(len(y))
    while True:
        # The largest number in a run spreads over the run, first along rows, then along columns.
        spread = np.repeat(np.maximum.reduceat(value, row_starts), row_lengths)
        spread[by_column] = np.repeat(np.maximum.reduceat(spread[by_column], column_starts), column_lengths)
        if np.array_equal(spread, value):
            break
        value = spread
    labels[y, x] = np.unique(value, return_inverse=True)[1] + 1
    return labels


def _run_starts(line: np.ndarray, along: np.ndarray) -> np.ndarray:
    new = np.ones(len(line), bool)
    new[1:] = (np.diff(line) != 0) | (np.diff(along) != 1)
    return np.flatnonzero(new)


def _group(labels: np.ndarray, scene: Scene) -> tuple[np.ndarray, int]:
    """Number the components that are objects, with their fragments; crumbs near an object stay -1."""
    large = scene.radius("large") * SIDE
    # Widest objects: 2.16 radii upright (the diamond), 2.32 on the slant (the square), drawn up to 6 % too large.
    limit = np.array([2.16, 2.16, 2.32, 2.32]) * 1.08 * large + 2
    owner = np.full(labels.shape, -1)
    y, x = np.nonzero(labels)
    if len(y) == 0:
        return owner, 0
    label = labels[y, x] - 1
    low, high = _extents(label, y, x)
    stated = np.array([c for c in scene.stated_centres() if c], float).reshape(-1, 2) * SIDE
    merged = (high - low > 1.1 * limit).any(-1)[label]
    if merged.any():
        if len(stated):
            # Touching neighbours in rows are told apart by the places the caption states.
            part = ((x[:, None] + 0.5 - stated[:, 0]) ** 2 + (y[:, None] + 0.5 - stated[:, 1]) ** 2).argmin(-1)
        else:
            wide = np.zeros(labels.shape, bool)
            wide[y[merged], x[merged]] = True
            part = _parted(wide)[y, x]
        label = np.unique(label * (part.max() + 2) + np.where(merged, part + 1, 0), return_inverse=True)[1]
        low, high = _extents(label, y, x)
    areas = np.bincount(label)
    centres = np.stack([np.bincount(label, weights=v) for v in (x, y)], -1) / areas[:, None]
    group_of = np.full(len(areas), -1)
    groups: list[dict] = []
    for part in np.argsort(-areas, kind="stable"):
        if areas[part] < _SPECK:
            break
        small = areas[part] < _FRAGMENT * large**2
        home = _home(groups, low[part], high[part], centres[part], limit, large) if small else None
        if home is None:
            # A part this small cannot be an object, even a small one with a bite taken out.
            if areas[part] > 0.12 * large**2:
                group_of[part] = len(groups)
                groups.append({"low": low[part], "high": high[part], "centre": centres[part]})
        elif home >= 0:
            group_of[part] = home
            groups[home]["low"] = np.minimum(groups[home]["low"], low[part])
            groups[home]["high"] = np.maximum(groups[home]["high"], high[part])
    owner[y, x] = group_of[label]
    return owner, len(groups)


def _parted(mask: np.ndarray) -> np.ndarray:
    """Label what hangs together only by necks of one or two pixels as separate parts of ``mask``; 0 outside."""
    parts = components(~_dilate(~mask))
    for _ in range(3):
        around = np.pad(parts, 1)
        grown = np.maximum.reduce([around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]])
        parts = np.where((parts == 0) & mask, grown, parts)
    return parts


def _home(groups: list[dict], low, high, centre, limit, large) -> int | None:
    """The group a small part belongs to; -1 if it is a stray blob beside a group; None if it stands alone."""
    best, distance = None, 1.4 * large
    for index, group in enumerate(groups):
        apart = float(np.hypot(*(group["centre"] - centre)))
        if apart < distance:
            fits = (np.maximum(group["high"], high) - np.minimum(group["low"], low) <= limit).all()
            best, distance = (index if fits else -1), apart
    return best


def _extents(label: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest x, y and two diagonal coordinates of each label: two arrays [labels, 4] in pixels."""
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    axes = np.stack([x, y, (x + y) * np.sqrt(0.5), (x - y) * np.sqrt(0.5)], -1)[order].astype(float)
    return np.minimum.reduceat(axes, starts) - 0.5, np.maximum.reduceat(axes, starts) + 0.5


def _dilate(mask: np.ndarray) -> np.ndarray:
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    wide = out.copy()
    wide[:, 1:] |= out[:, :-1]
    wide[:, :-1] |= out[:, 1:]
    return wide


def _box_mean(values: np.ndarray) -> np.ndarray:
    """Mean of 3 x 3 pixels of [H, W, C], the rim repeated."""
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9


def _pool(values: np.ndarray, size: int) -> np.ndarray:
    height, width, channels = values.shape
    return values.reshape(height // size, size, width // size, size, channels).sum((1, 3))


def _enlarge(values: np.ndarray, factor: int) -> np.ndarray:
    length = len(values)
    up = _upsampler(length, factor)
    rows = (up @ values.reshape(length, -1)).reshape(-1, length, 3)
    return up @ rows


@functools.cache
def _upsampler(length: int, factor: int) -> np.ndarray:
    """Linear interpolation from ``length`` cells to ``length * factor`` samples, as a matrix."""
    at = np.clip((np.arange(length * factor) + 0.5) / factor - 0.5, 0, length - 1)
    low = np.minimum(at.astype(int), max(length - 2, 0))
    matrix = np.zeros((length * factor, length), np.float32)
    rows = np.arange(length * factor)
    matrix[rows, low] += 1 - (at - low)
    if length > 1:
        matrix[rows, low + 1] += at - low
    return matrix
