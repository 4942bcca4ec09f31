"""The exact checker: whether an image shows what its caption says, object by object and pixel by pixel.

It works by analysis and synthesis. Paint is separated from the ground and grouped (``segment``), the renderer's
silhouettes are fitted to the groups (``fit``), groups are matched to the caption's items, and every pixel that the
fitted silhouettes do not explain is damage.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from lotts.shapes.draw import SIDE, Placed, holds, signed_distance
from lotts.shapes.fit import Fit, fit_silhouettes
from lotts.shapes.scenes import COLOURS, Item, Scene
from lotts.shapes.segment import PALETTE, Regions, peak, segment

VERSION = 1  # raised whenever a verdict may come out otherwise
_OFF, _OFF_IF_DAMAGED = 40, 30  # levels a pixel may be off what the silhouettes predict
_EDGE = 0.6  # pixels an outline may be off: the width of one blurred edge
_DOUBT = 0.09  # two shapes whose overlaps differ by less may be the same damaged object; whole shapes differ by 0.13
_WIDEST_RIM = 0.7  # pixels of softness or raggedness all along the outline; autoencoders leave up to 0.6
_BLURRED_RIM = 0.95  # from here on the whole outline is blurred
_LEAST_OVERLAP = 0.6  # below this no silhouette explains the paint
_RELATION_MARGIN = 0.11  # the renderer keeps 0.14 of the side
_NEAR = 0.45  # how far from its stated place an object may be, as a share of the pitch


@dataclass
class ObjectVerdict:
    """What became of one item. ``centre`` (x, y) and ``radius`` are in pixels, None where no object was found.

    ``score`` in [0, 1] grades the object: the overlap with the fitted silhouette times the share of facts that are right.
    """

    present: bool = False
    colour_right: bool = False
    shape_right: bool = False
    size_right: bool = False
    place_right: bool = False
    undamaged: bool = False
    centre: tuple[float, float] | None = None
    radius: float | None = None
    score: float = 0.0

    @property
    def facts(self) -> tuple[bool, ...]:
        return self.present, self.colour_right, self.shape_right, self.size_right, self.place_right, self.undamaged

    @property
    def right(self) -> bool:
        return all(self.facts)


@dataclass
class Verdict:
    """What ``check`` finds.

    ``objects`` one entry an item, in the order of the caption; ``damage`` bool [n, SIDE, SIDE], the faulty pixels of each
    object; ``defects`` bool [SIDE, SIDE], all that is wrong at a place: damage, the footprints of objects that are not
    right, the stated places of missing ones, extra objects; ``foreground`` bool [SIDE, SIDE], everything painted;
    ``extras`` objects that the caption does not ask for.
    """

    objects: list[ObjectVerdict]
    damage: np.ndarray
    defects: np.ndarray
    foreground: np.ndarray
    extras: int

    @property
    def objects_right(self) -> float:
        return float(np.mean([o.right for o in self.objects]))

    @property
    def scene_right(self) -> bool:
        return self.extras == 0 and all(o.right for o in self.objects)


@dataclass(frozen=True)
class _Found:
    colour: np.ndarray
    shares: np.ndarray
    fit: Fit

    def agrees(self, item: Item, scene: Scene) -> tuple[bool, bool, bool]:
        """Whether colour, shape and size are as stated."""
        shape = self.fit.overlap >= _LEAST_OVERLAP and self.fit.shape == item.shape
        small, large = scene.radius("small") * SIDE, scene.radius("large") * SIDE
        radius, middle = self.fit.spot.radius, np.sqrt(small * large)
        size = 0.7 * small < radius < middle if item.size == "small" else middle <= radius < 1.4 * large
        return list(COLOURS)[self.shares.argmax()] == item.colour, shape, bool(size)


def check(image, scene: Scene) -> Verdict:
    """Judge ``image`` (uint8 [SIDE, SIDE, 3] or a PIL image of that size) against ``scene``.

    Raises:
        ValueError: the image is not of this type and size.
    """
    array = np.asarray(image)
    if array.shape != (SIDE, SIDE, 3) or array.dtype != np.uint8:
        raise ValueError(f"expected uint8 [{SIDE}, {SIDE}, 3], got {array.dtype} {list(array.shape)}")
    regions = segment(array, scene)
    fits = fit_silhouettes(regions, scene)
    found = [_Found(*each) for each in zip(regions.colours, regions.shares, fits, strict=True)]
    match = _match(found, scene)
    found = _given_the_doubt(found, match, regions, scene)
    placed_right = _places(match, found, scene)
    faulty, owner, silhouettes = _faults(regions, found)
    n = len(scene.items)
    damage = np.zeros((n, SIDE, SIDE), bool)
    objects = []
    for index, (item, at) in enumerate(zip(scene.items, match, strict=True)):
        if at is None:
            objects.append(ObjectVerdict())
            continue
        damage[index] = faulty & (owner == at)
        fit = found[at].fit
        verdict = ObjectVerdict(
            True,
            *found[at].agrees(item, scene),
            placed_right[index],
            undamaged=bool(fit.rim <= _WIDEST_RIM and damage[index].sum() <= _few(silhouettes[at])),
            centre=(fit.spot.x, fit.spot.y),
            radius=fit.spot.radius,
        )
        verdict.score = fit.overlap * float(np.mean(verdict.facts))
        objects.append(verdict)
    extra = [at for at in range(len(found)) if at not in match]
    defects = faulty.copy()
    for index, (verdict, place) in enumerate(zip(objects, scene.stated_centres(), strict=True)):
        at = match[index]
        if at is not None and not verdict.right:
            defects |= silhouettes[at] | (regions.owner == at)
        if place is not None and not verdict.place_right:
            defects |= _disc(place, scene.radius(scene.items[index].size))
    for at in extra:
        defects |= silhouettes[at] | (regions.owner == at)
    return Verdict(objects, damage, defects, regions.foreground, len(extra))


def _match(found: list[_Found], scene: Scene) -> list[int | None]:
    """For each item the index of the object that stands for it, or None."""
    n = len(scene.items)
    if not found:
        return [None] * n
    agreement = np.array([[sum(np.multiply(f.agrees(item, scene), (4, 4, 1))) for f in found] for item in scene.items])
    match: list[int | None] = [None] * n
    if scene.kind == "rows":
        distance = _distances(found, scene)
        # What stands at the stated place is meant for the item, whatever it is.
        _greedy(match, np.where(distance < _NEAR * scene.pitch * SIDE, 100 - distance, 0))
    elif scene.kind == "relation":
        _relate(match, agreement, found, scene)
    _greedy(match, agreement * (agreement > 1))
    return match


def _given_the_doubt(found: list[_Found], match: list[int | None], regions: Regions, scene: Scene) -> list[_Found]:
    """Fit damaged objects as the stated shape where that explains them nearly as well as the best shape does.

    A circle with a hole looks like a ring: what the caption says decides which it is.
    """
    stated = {at: item.shape for item, at in zip(scene.items, match, strict=True) if at is not None}
    doubtful = {at: shape for at, shape in stated.items() if found[at].fit.shape != shape}
    out = list(found)
    for at, fit in zip(doubtful, fit_silhouettes(regions, scene, doubtful), strict=True):
        if fit.overlap > found[at].fit.overlap - _DOUBT:
            out[at] = replace(found[at], fit=fit)
    return out


def _greedy(match: list[int | None], gain: np.ndarray) -> None:
    """Fill the empty places of ``match`` in order of falling ``gain`` [items, found]; nothing at a gain of 0."""
    for flat in np.argsort(-gain, axis=None, kind="stable"):
        item, at = divmod(int(flat), gain.shape[1])
        if gain[item, at] <= 0:
            return
        if match[item] is None and at not in match:
            match[item] = at


def _relate(match: list[int | None], agreement: np.ndarray, found: list[_Found], scene: Scene) -> None:
    """Match two or three items at once so that attributes first, then relations, come out as well as they can."""
    n = len(scene.items)
    if len(found) < n:
        return
    # Only the objects that resemble some item can be meant; this bounds the permutations.
    likely = np.argsort(-agreement.max(0), kind="stable")[:6].tolist()

    def gain(choice: tuple[int, ...]) -> float:
        spots = [found[at].fit.spot for at in choice]
        kept = sum(holds(r, spots[0], spots[i + 1], _RELATION_MARGIN) for i, r in enumerate(scene.relations))
        return float(sum(agreement[item, at] for item, at in enumerate(choice)) + 0.5 * kept)

    best = max(itertools.permutations(likely, n), key=gain)
    for item, at in enumerate(best):
        if agreement[item, at] > 1:
            match[item] = at


def _distances(found: list[_Found], scene: Scene) -> np.ndarray:
    places = np.array([c for c in scene.stated_centres() if c]) * SIDE
    spots = np.array([(f.fit.spot.x, f.fit.spot.y) for f in found])
    return np.hypot(*np.moveaxis(places[:, None] - spots, -1, 0))


def _places(match: list[int | None], found: list[_Found], scene: Scene) -> list[bool]:
    """Whether each item is where the caption says; items of a relation that fails are both out of place."""
    right = [at is not None for at in match]
    if scene.kind == "rows" and found:
        distance = _distances(found, scene)
        return [at is not None and bool(distance[i, at] < _NEAR * scene.pitch * SIDE) for i, at in enumerate(match)]
    spots = [None if at is None else found[at].fit.spot for at in match]
    for index, relation in enumerate(scene.relations):
        first, other = spots[0], spots[index + 1]
        if first is None or other is None or not holds(relation, first, other, _RELATION_MARGIN):
            right[0] = right[index + 1] = False
    return right


def _faults(regions: Regions, found: list[_Found]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Pixels that the fitted objects do not explain, the object nearest to each pixel, and the silhouettes."""
    nearest = np.full((SIDE, SIDE), np.inf, np.float32)
    second = nearest.copy()
    owner = np.full((SIDE, SIDE), -1)
    silhouettes, patches = [], []
    for index, each in enumerate(found):
        box = _box(each.fit.spot)
        distance = signed_distance(each.fit.shape, each.fit.spot, box)
        patches.append((box, distance))
        silhouettes.append(np.zeros((SIDE, SIDE), bool))
        silhouettes[-1][box] = distance < 0
        owner[box] = np.where(distance < nearest[box], index, owner[box])
        second[box] = np.minimum(second[box], np.maximum(distance, nearest[box]))
        nearest[box] = np.minimum(nearest[box], distance)
    faulty = peak(np.abs(regions.image - regions.ground)) > _OFF
    for index, (each, (box, distance)) in enumerate(zip(found, patches, strict=True)):
        mine = owner[box] == index
        wrong = _unexplained(regions, each, box, distance, _EDGE) > _OFF
        if each.fit.rim > _WIDEST_RIM or (mine & wrong).sum() > _few(silhouettes[index]):
            # An object that is damaged for certain earns no more patience.
            edge = 0 if each.fit.rim > _BLURRED_RIM else _EDGE / 2
            wrong = _unexplained(regions, each, box, distance, edge) > _OFF_IF_DAMAGED
        faulty[box] = np.where(mine, wrong, faulty[box])
    # Where two outlines meet, a pixel may mix both paints.
    faulty &= second > 1.5
    if found and (lost := faulty & (owner < 0)).any():
        y, x = np.nonzero(lost)
        spots = np.array([(f.fit.spot.x, f.fit.spot.y, f.fit.spot.radius) for f in found])
        owner[y, x] = (np.hypot(x[:, None] + 0.5 - spots[:, 0], y[:, None] + 0.5 - spots[:, 1]) - spots[:, 2]).argmin(
            -1
        )
    return faulty, owner, silhouettes


def _few(silhouette: np.ndarray) -> float:
    """How many faulty pixels pass for noise on an object."""
    return 1.5 + 0.006 * float(silhouette.sum())


def _unexplained(
    regions: Regions, each: _Found, box: tuple[slice, slice], distance: np.ndarray, edge: float
) -> np.ndarray:
    """Levels by which pixels are off every mix of ground and paint that an outline up to ``edge`` pixels off allows.

    With an ``edge`` above 0 the outline may also be as soft as an autoencoder leaves it, and the paint a little off.
    """
    off = regions.image[box] - regions.ground[box]
    span = (each.colour if edge > 0 else PALETTE[each.shares.argmax()]) - regions.ground[box]
    least, most = np.clip(0.5 - distance - edge, 0, 1), np.clip(0.5 - distance + edge, 0, 1)
    if edge > 0:
        least, most = np.minimum(least, _softened(least)), np.maximum(most, _softened(most))
    mix = (off * span).sum(-1) / np.maximum((span**2).sum(-1), 1)
    return peak(np.abs(off - np.clip(mix, least, most)[..., None] * span))


def _softened(cover: np.ndarray) -> np.ndarray:
    """``cover`` [h, w] after a slight blur (standard deviation about 0.8 pixels), as autoencoders leave it."""
    padded = np.pad(cover, 1, mode="edge")
    rows = 0.3 * (padded[:-2] + padded[2:]) + 0.4 * padded[1:-1]
    return 0.3 * (rows[:, :-2] + rows[:, 2:]) + 0.4 * rows[:, 1:-1]


def _box(spot: Placed) -> tuple[slice, slice]:
    reach = 1.5 * spot.radius
    x, y = float(np.clip(spot.x, 0, SIDE - 1)), float(np.clip(spot.y, 0, SIDE - 1))
    return (
        slice(max(0, int(y - reach)), min(SIDE, int(y + reach) + 1)),
        slice(max(0, int(x - reach)), min(SIDE, int(x + reach) + 1)),
    )


def _disc(centre: tuple[float, float], radius: float) -> np.ndarray:
    line = (np.arange(SIDE) + 0.5) / SIDE
    return np.hypot(line[None, :] - centre[0], line[:, None] - centre[1]) < radius
