"""Scaling curves: what a search would have returned, had it ended earlier, against samples, network rows and seconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lotts.compare.statistics import mean_and_error
from lotts.compare.study import Study
from lotts.compare.table import COST, Done, by_prompt, metrics_of, values_of

AXES = ("samples", "nfe", "seconds")
POINTS = 40


@dataclass(frozen=True)
class CurvePoint:
    """Mean and standard error over prompts of what runs led with at ``x`` of an axis; runs that are over count as they ended."""

    budget: str
    variant: str
    axis: str
    x: float
    metric: str
    prompts: int
    mean: float
    error: float


def curves_of(study: Study, done: Done, axes: tuple[str, ...] = AXES) -> list[CurvePoint]:
    """The curves of every variant and budget, from where all of its runs have a picture to where the last one ends."""
    points = []
    for budget in study.budgets:
        for variant in study.variants:
            runs = [
                (item, record) for item, record in done if (item.budget, item.variant.name) == (budget, variant.name)
            ]
            for axis in axes if runs else ():
                places = [_places(record, axis) for _, record in runs]
                values = [[values_of(study, record, point) for point in record["points"]] for _, record in runs]
                for x in _grid(places):
                    reached = [int(np.searchsorted(place, x, side="right")) - 1 for place in places]
                    for metric in (name for name, kind in metrics_of(study).items() if kind != COST):
                        each = by_prompt(
                            {
                                (item.prompt.text, item.seed): value[at][metric]
                                for (item, _), value, at in zip(runs, values, reached, strict=True)
                            }
                        )
                        points.append(
                            CurvePoint(budget, variant.name, axis, float(x), metric, len(each), *mean_and_error(each))
                        )
    return points


def _places(record: dict, axis: str) -> np.ndarray:
    if axis == "seconds":
        return np.array(record["timings"]["at"])
    return np.array([point[axis] for point in record["points"]])


def _grid(places: list[np.ndarray]) -> np.ndarray:
    """Where something changes in any of the runs, once all of them have begun; thinned out to ``POINTS``."""
    start = max(place[0] for place in places)
    grid = np.unique(np.concatenate([[start], *(place[place > start] for place in places)]))
    return grid[np.unique(np.linspace(0, len(grid) - 1, POINTS).round().astype(int))]
