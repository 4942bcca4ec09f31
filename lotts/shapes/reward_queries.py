"""What a caption of the shapes grammar states, as tensors: one query an item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lotts.shapes.scenes import COLOURS, MAX_OBJECTS, SHAPES, SIZES, Scene

GRID = 16  # tokens a side: each covers 8 x 8 pixels
_KINDS = ("rows", "relation", "free")
_SIDES = ("left", "right", "above", "below")
_WAVES = (1, 2, 4, 8)
QUERY_FEATURES = len(COLOURS) + len(SHAPES) + len(SIZES) + len(_KINDS) + 2 * len(_SIDES) + 4 * len(_WAVES) + 4


@dataclass
class Queries:
    """What captions state, padded to ``MAX_OBJECTS`` items.

    ``features`` [B, 16, QUERY_FEATURES]; ``real`` bool [B, 16], False on padding; ``near`` [B, 16, GRID * GRID], minus
    the squared distance from each token to the stated centre in units of the pitch, and ``placed`` bool [B, 16], whether
    a centre is stated; ``stated`` [B, 16, 3], the indices of colour, shape and size.
    """

    features: torch.Tensor
    real: torch.Tensor
    near: torch.Tensor
    placed: torch.Tensor
    stated: torch.Tensor

    @staticmethod
    def of(scenes: list[Scene], device: torch.device | str = "cpu") -> Queries:
        features = np.zeros((len(scenes), MAX_OBJECTS, QUERY_FEATURES), np.float32)
        near = np.zeros((len(scenes), MAX_OBJECTS, GRID * GRID), np.float32)
        real = np.zeros((len(scenes), MAX_OBJECTS), bool)
        placed = np.zeros((len(scenes), MAX_OBJECTS), bool)
        stated = np.zeros((len(scenes), MAX_OBJECTS, 3), np.int64)
        for row, scene in enumerate(scenes):
            n = len(scene.items)
            real[row, :n] = True
            features[row, :n] = _features(scene)
            stated[row, :n] = attributes(scene)
            for item, centre in enumerate(scene.stated_centres()):
                if centre is not None:
                    placed[row, item] = True
                    near[row, item] = _nearness(centre, scene.pitch)
        return Queries(*(torch.from_numpy(part).to(device) for part in (features, real, near, placed, stated)))


def attributes(scene: Scene) -> np.ndarray:
    """int64 [n, 3]: the indices of each item's colour, shape and size."""
    colours = list(COLOURS)
    return np.array([(colours.index(i.colour), SHAPES.index(i.shape), SIZES.index(i.size)) for i in scene.items])


def _features(scene: Scene) -> np.ndarray:
    n = len(scene.items)
    out = np.zeros((n, QUERY_FEATURES), np.float32)
    rows, start = np.arange(n), 0
    for column, count in enumerate((len(COLOURS), len(SHAPES), len(SIZES))):
        out[rows, start + attributes(scene)[:, column]] = 1
        start += count
    out[:, start + _KINDS.index(scene.kind)] = 1
    start += len(_KINDS)
    for index, relation in enumerate(scene.relations):
        out[0, start + _SIDES.index(relation)] = 1
        out[index + 1, start + len(_SIDES) + _SIDES.index(relation)] = 1
    start += 2 * len(_SIDES)
    for item, centre in enumerate(scene.stated_centres()):
        if centre is not None:
            angles = np.pi * np.outer(centre, _WAVES).ravel()
            out[item, start:-4] = np.concatenate([np.sin(angles), np.cos(angles)])
            out[item, -4] = 1
    out[:, -3] = [8 * scene.radius(item.size) for item in scene.items]
    out[:, -2:] = 2 * scene.pitch, n / MAX_OBJECTS
    return out


def _nearness(centre: tuple[float, float], pitch: float) -> np.ndarray:
    line = (np.arange(GRID) + 0.5) / GRID
    x, y = (line - centre[0]) / pitch, (line - centre[1]) / pitch
    return -(x[None, :] ** 2 + y[:, None] ** 2).reshape(-1).astype(np.float32)
