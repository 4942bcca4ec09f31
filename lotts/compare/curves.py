"""Scaling curves: what a search would have returned, had it ended earlier, against samples, network rows and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np

from lotts.compare.statistics import mean_and_error, sign_flip_tests
from lotts.compare.study import Study
from lotts.compare.table import COST, Done, by_prompt, metrics_of, values_of

AXES = ("samples", "nfe", "seconds")
POINTS = 40


@dataclass(frozen=True)
class CurvePoint:
    """Mean and standard error over prompts of what runs led with at ``x`` of an axis; runs that are over count as they ended.

    difference, difference_error, p: against what the reference led with at the same ``x``, paired by prompt and seed; p of
    the sign-flip test. NaN for the reference itself, where it had nothing yet, and where no pair exists.
    """

    budget: str
    variant: str
    axis: str
    x: float
    metric: str
    prompts: int
    mean: float
    error: float
    difference: float = nan
    difference_error: float = nan
    p: float = nan


class _Runs:
    """The runs of one variant under one budget along an axis."""

    def __init__(self, study: Study, done: Done, budget: str, variant: str, axis: str) -> None:
        runs = [(item, record) for item, record in done if (item.budget, item.variant.name) == (budget, variant)]
        self.keys = [(item.prompt.text, item.seed) for item, _ in runs]
        self.places = [_places(record, axis) for _, record in runs]
        self.values = [[values_of(study, record, point) for point in record["points"]] for _, record in runs]
        #: From here on all runs have a picture.
        self.start = max((place[0] for place in self.places), default=np.inf)

    def grid(self) -> np.ndarray:
        """Where something changes in any of the runs, once all of them have begun; thinned out to ``POINTS``."""
        grid = np.unique(np.concatenate([[self.start], *(place[place > self.start] for place in self.places)]))
        return grid[np.unique(np.linspace(0, len(grid) - 1, POINTS).round().astype(int))]

    def at(self, x: float) -> dict[tuple[str, int], dict[str, float]]:
        """What each run led with at ``x``, by prompt and seed; nothing before all of them have begun."""
        if x < self.start:
            return {}
        reached = [int(np.searchsorted(place, x, side="right")) - 1 for place in self.places]
        return {key: values[i] for key, values, i in zip(self.keys, self.values, reached, strict=True)}


def curves_of(study: Study, done: Done, axes: tuple[str, ...] = AXES) -> list[CurvePoint]:
    """The curves of every variant and budget, from where all of its runs have a picture to where the last one ends."""
    points = []
    for budget in study.budgets:
        for axis in axes:
            reference = _Runs(study, done, budget, study.reference, axis)
            for variant in study.variants:
                runs = _Runs(study, done, budget, variant.name, axis)
                if runs.keys:
                    compared = None if variant.name == study.reference else reference
                    points += _curve(study, budget, variant.name, axis, runs, compared)
    return points


def _curve(
    study: Study, budget: str, variant: str, axis: str, runs: _Runs, reference: _Runs | None
) -> list[CurvePoint]:
    metrics = [name for name, kind in metrics_of(study).items() if kind != COST]
    means, paired = [], []
    for x in runs.grid():
        mine, other = runs.at(x), reference.at(x) if reference else {}
        for metric in metrics:
            each = by_prompt({key: values[metric] for key, values in mine.items()})
            means.append((budget, variant, axis, float(x), metric, len(each), *mean_and_error(each)))
            paired.append(by_prompt({key: mine[key][metric] - other[key][metric] for key in mine if key in other}))
    # The differences of a point are as many as there are pairs, or none where the reference had not begun.
    known = [i for i, differences in enumerate(paired) if len(differences)]
    tested = sign_flip_tests(np.stack([paired[i] for i in known], 1)) if known else ()
    p = dict(zip(known, map(float, tested), strict=True))
    return [
        CurvePoint(*mean, *mean_and_error(paired[i]), p[i]) if i in p else CurvePoint(*mean)
        for i, mean in enumerate(means)
    ]


def _places(record: dict, axis: str) -> np.ndarray:
    if axis == "seconds":
        return np.array(record["timings"]["at"])
    return np.array([point[axis] for point in record["points"]])
