"""Figures of a study as PNG: scaling curves, and the paper's forms for ablations (figure 7) and sweeps (figure 8)."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from lotts.compare.curves import AXES, CurvePoint
from lotts.compare.study import Study
from lotts.compare.table import ALL, COST, SEARCHED, Row, metrics_of
from lotts.files import write_whole
from lotts.report.axes import ACCENT, COLOURS, GREY, INK, pyplot

#: Where p of the difference to the reference is below it, a curve is drawn thick.
LEVEL = 0.05
UNITS = {"samples": "samples", "nfe": "network rows (NFE)", "seconds": "seconds"}


def draw(study: Study, rows: Sequence[Row], curves: Sequence[CurvePoint], out: Path, form: str) -> list[Path]:
    """Draw a study's figure, "scaling", "ablation" or "sweep"; returns the files, none where matplotlib is missing."""
    if not rows:
        return []
    try:
        plt = pyplot()
    except ImportError:
        print("no plots: they need matplotlib, pip install 'lotts[plots]'", file=sys.stderr)
        return []
    figure = FORMS[form](plt, study, rows, curves)
    path = out / f"{form}.png"
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    write_whole(path, drawn.getvalue())
    return [path]


def _metrics(study: Study) -> list[str]:
    return [metric for metric, kind in metrics_of(study).items() if kind != COST]


def _title(study: Study, metric: str) -> str:
    return f"{metric} (searched with)" if metrics_of(study)[metric] == SEARCHED else metric.replace("_", " ")


def _scaling(plt: Any, study: Study, rows: Sequence[Row], curves: Sequence[CurvePoint]) -> Any:
    """What runs of the largest budget led with on their way, thick where that differs from the reference; where runs ended."""
    metrics, ended = _metrics(study), {(row.budget, row.variant, row.metric): row for row in rows if row.group == ALL}
    units, amounts = zip(*(budget.split("=") for budget in study.budgets), strict=True)
    last = study.budgets[-1] if len(set(units)) > 1 else study.budgets[int(np.argmax([float(n) for n in amounts]))]
    figure, axes = plt.subplots(
        len(metrics), len(AXES), figsize=(4.2 * len(AXES), 3 * len(metrics)), squeeze=False, sharey="row"
    )
    for line, metric in zip(axes, metrics, strict=True):
        line[0].set_ylabel(_title(study, metric))
        for axis, unit in zip(line, AXES, strict=True):
            axis.grid(axis="y", color=GREY, lw=0.4)
            axis.set_xlabel(UNITS[unit])
            axis.xaxis.get_major_locator().set_params(integer=unit != "seconds")
            for index, variant in enumerate(study.variants):
                colour = COLOURS[index % len(COLOURS)]
                shown = [
                    p for p in curves if (p.budget, p.variant, p.axis, p.metric) == (last, variant.name, unit, metric)
                ]
                x, y = [p.x for p in shown], [p.mean for p in shown]
                axis.plot(x, y, color=colour, lw=1.4, drawstyle="steps-post", label=variant.name)
                sure = [p.mean if p.p < LEVEL else nan for p in shown]
                axis.plot(x, sure, color=colour, lw=3.4, drawstyle="steps-post", solid_capstyle="butt")
                low, high = ([p.mean + sign * p.error for p in shown] for sign in (-1, 1))
                axis.fill_between(x, low, high, step="post", color=colour, alpha=0.12, lw=0)
                for budget in study.budgets if unit != "seconds" else ():
                    at, end = ended.get((budget, variant.name, unit)), ended.get((budget, variant.name, metric))
                    if at is not None and end is not None:
                        axis.errorbar(at.mean, end.mean, end.error, color=colour, marker="o", ms=4, capsize=2)
    _legend(figure, axes[0][0], len(study.variants))
    return figure


def _ablation(plt: Any, study: Study, rows: Sequence[Row], curves: Sequence[CurvePoint]) -> Any:
    """A panel a metric, a bar a variant."""
    metrics, names = _metrics(study), [variant.name for variant in study.variants]
    figure, axes = plt.subplots(1, len(metrics), figsize=(4.4 * len(metrics), 3.4), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        axis.set_title(_title(study, metric))
        cells = _cells(study, rows, metric)
        low = _zoom(axis, list(cells.values()))
        for place, name in enumerate(names):
            if name in cells:
                reference = name == study.reference
                colour = ACCENT if reference else COLOURS[1:][place % (len(COLOURS) - 1)]
                _bar(axis, place, cells[name], low, colour, label=name, edgecolor=INK if reference else colour)
        axis.set_xticks([])
    _legend(figure, axes[0][0], 4)
    return figure


def _sweep(plt: Any, study: Study, rows: Sequence[Row], curves: Sequence[CurvePoint]) -> Any:
    """A line of panels a parameter, a column a metric; a star at the best value."""
    metrics = _metrics(study)
    parameters = list(dict.fromkeys(variant.name.partition("=")[0] for variant in study.variants))
    figure, axes = plt.subplots(
        len(parameters), len(metrics), figsize=(4 * len(metrics), 2.8 * len(parameters)), squeeze=False
    )
    for line, parameter in zip(axes, parameters, strict=True):
        names = [variant.name for variant in study.variants if variant.name.partition("=")[0] == parameter]
        for axis, metric in zip(line, metrics, strict=True):
            cells = _cells(study, rows, metric)
            shown = [(place, cells[name]) for place, name in enumerate(names) if name in cells]
            low = _zoom(axis, [row for _, row in shown])
            for place, row in shown:
                _bar(axis, place, row, low, COLOURS[1])
            axis.plot([place for place, _ in shown], [row.mean for _, row in shown], color=INK, lw=1)
            best = max(shown, key=lambda pair: pair[1].mean, default=None)
            if best is not None:
                axis.plot(best[0], best[1].mean, marker="*", ms=13, color=ACCENT, mec=INK, mew=0.6)
            axis.set_xticks(range(len(names)), [name.partition("=")[2] for name in names])
            axis.set(title=f"{_title(study, metric)} by {parameter}", xlabel=parameter)
    figure.tight_layout()
    return figure


FORMS: dict[str, Callable[[Any, Study, Sequence[Row], Sequence[CurvePoint]], Any]] = {
    "scaling": _scaling,
    "ablation": _ablation,
    "sweep": _sweep,
}


def _cells(study: Study, rows: Sequence[Row], metric: str) -> dict[str, Row]:
    """The rows of a metric by variant, over all prompts, at the last budget."""
    key = (ALL, study.budgets[-1], metric)
    return {row.variant: row for row in rows if (row.group, row.budget, row.metric) == key}


def _bar(axis: Any, place: int, row: Row, low: float, colour: str, **options: Any) -> None:
    error = 0.0 if isnan(row.error) else row.error
    axis.bar(place, row.mean - low, 0.75, low, yerr=error, color=colour, ecolor=INK, capsize=2, **options)
    axis.annotate(
        f"{row.mean:.3g}", (place, row.mean + error), (0, 3), textcoords="offset points", ha="center", fontsize=8
    )


def _zoom(axis: Any, rows: Sequence[Row]) -> float:
    """Where bars begin: not at 0, as in the paper's figures, for differences are small beside the values."""
    if not rows:
        return 0.0
    errors = [0.0 if isnan(row.error) else row.error for row in rows]
    low = min(row.mean - error for row, error in zip(rows, errors, strict=True))
    high = max(row.mean + error for row, error in zip(rows, errors, strict=True))
    spread = (high - low) or abs(high) or 1.0
    axis.set_ylim(low - 0.3 * spread, high + 0.3 * spread)
    axis.grid(axis="y", color=GREY, lw=0.4)
    axis.set_axisbelow(True)
    return low - 0.3 * spread


def _legend(figure: Any, axis: Any, columns: int) -> None:
    figure.tight_layout()
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=min(columns, 4), fontsize=9
    )
