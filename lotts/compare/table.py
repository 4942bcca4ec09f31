"""The table of a study: means, standard errors and paired differences, as CSV, Markdown and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

import numpy as np

from lotts.compare.judges import columns_of
from lotts.compare.statistics import mean_and_error, sign_flip_test
from lotts.compare.study import Item, Study

ALL = "all"
SEARCHED, HELD_OUT, COST = "searched", "held out", "cost"
#: What a run cost, in the columns of the table.
COSTS = ("samples", "nfe", "tokens", "verifier_calls")

Done = list[tuple[Item, dict[str, Any]]]


@dataclass(frozen=True)
class Row:
    """A number of the table.

    Attributes:
        group: of the prompts, "all" for all of them.
        kind: "searched" for the verifier's own score, "held out" for a metric that the search did not see, or "cost".
        prompts, runs: how many the mean is over; runs of a prompt are averaged first.
        error: standard error of the mean over prompts.
        difference, difference_error, p: against the reference at the same budget, paired by prompt and seed; p of the
            sign-flip test. NaN for the reference itself and where no pair exists.
    """

    group: str
    budget: str
    variant: str
    metric: str
    kind: str
    prompts: int
    runs: int
    mean: float
    error: float
    difference: float = nan
    difference_error: float = nan
    p: float = nan


def metrics_of(study: Study) -> dict[str, str]:
    """The metrics of a study and the kind of each, in the table's order."""
    held_out = [column for name in study.metrics for column in columns_of(name)]
    return {study.verifier: SEARCHED, **dict.fromkeys(held_out, HELD_OUT), **dict.fromkeys(COSTS, COST)}


def values_of(study: Study, record: dict[str, Any], point: dict[str, int]) -> dict[str, float]:
    """What the picture that a run led with at a point is worth, by metric."""
    values = {study.verifier: record["samples"][point["sample"]]["score"]}
    for name in study.metrics:
        values |= zip(columns_of(name), record["metrics"][name][str(point["sample"])], strict=True)
    return values


def rows_of(study: Study, done: Done) -> list[Row]:
    """All numbers of the table, for the groups of prompts that there are and for all of them."""
    found: dict[tuple[str, str, str], dict[tuple[str, int], float]] = {}
    for item, record in done:
        costs = {"samples": len(record["samples"]), **{name: record["cost"][name] for name in COSTS[1:]}}
        for metric, value in {**values_of(study, record, record["points"][-1]), **costs}.items():
            runs = found.setdefault((item.budget, item.variant.name, metric), {})
            runs[item.prompt.text, item.seed] = float(value)
    rows = []
    for group in groups_of(study):
        texts = {prompt.text for prompt in study.prompts if group in (ALL, prompt.group)}
        for budget in study.budgets:
            for variant in study.variants:
                for metric, kind in metrics_of(study).items():
                    mine, other = (
                        {run: v for run, v in found.get((budget, name, metric), {}).items() if run[0] in texts}
                        for name in (variant.name, study.reference)
                    )
                    if not mine:
                        continue
                    compared = nan, nan, nan
                    if variant.name != study.reference and kind != COST:
                        differences = by_prompt({run: mine[run] - other[run] for run in mine if run in other})
                        compared = (*mean_and_error(differences), sign_flip_test(differences))
                    values = by_prompt(mine)
                    rows.append(
                        Row(
                            group,
                            budget,
                            variant.name,
                            metric,
                            kind,
                            len(values),
                            len(mine),
                            *mean_and_error(values),
                            *compared,
                        )
                    )
    return rows


def groups_of(study: Study) -> list[str]:
    named = list(dict.fromkeys(prompt.group for prompt in study.prompts if prompt.group not in (None, "", ALL)))
    return [ALL, *named] if len(named) > 1 else [ALL]


def by_prompt(runs: dict[tuple[str, int], float]) -> np.ndarray:
    """The mean over seeds of each prompt, in the order the prompts came."""
    seeds: dict[str, list[float]] = {}
    for (text, _), value in runs.items():
        seeds.setdefault(text, []).append(value)
    return np.array([np.mean(values) for values in seeds.values()])


def as_csv(rows: Sequence[Any]) -> str:
    """Dataclass instances as CSV, numbers to six figures; what is not there stays empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = list(asdict(rows[0])) if rows else []
    writer.writerow(columns)
    writer.writerows([_cell(getattr(row, name)) for name in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if isnan(value) else f"{value:.6g}"
    return str(value)


def as_json(study: Study, rows: Sequence[Row]) -> str:
    data = {"study": study.as_dict(), "rows": [{k: _plain(v) for k, v in asdict(row).items()} for row in rows]}
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return None if isnan(value) else float(f"{value:.6g}")


def as_markdown(study: Study, rows: Sequence[Row]) -> str:
    """One table a group and budget: the verifier that was searched with, the held-out metrics, what it cost."""
    groups = dict.fromkeys(row.group for row in rows)
    parts = [_explained(study)]
    for group in groups:
        for budget in study.budgets:
            chosen = [row for row in rows if (row.group, row.budget) == (group, budget)]
            if chosen:
                prompts = max(row.prompts for row in chosen)
                title = budget if group == ALL else f"{budget}, {group}"
                parts.append(f"### {title}: prompts {prompts}, seeds {study.seeds}\n\n{_table(study, chosen)}")
    return "\n\n".join(parts) + "\n"


def _explained(study: Study) -> str:
    told = ", ".join(metric for metric, kind in metrics_of(study).items() if kind == HELD_OUT)
    held_out = f" Held out from the search: {told}." if told else ""
    return (
        f"{study.model}; searched with the verifier `{study.verifier}`.{held_out} Means over prompts (of the mean over seeds) "
        f"± standard error; in brackets the paired difference to `{study.reference}` and p of its sign-flip test, "
        "not corrected for the number of comparisons."
    )


def _table(study: Study, rows: Sequence[Row]) -> str:
    cells = {(row.variant, row.metric): row for row in rows}
    kinds = metrics_of(study)
    shown = [metric for metric in kinds if metric not in ("tokens", "verifier_calls")]
    heads = [f"{metric} (searched)" if kinds[metric] == SEARCHED else metric for metric in shown]
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(shown)]
    for name in dict.fromkeys(row.variant for row in rows):
        told = [_told(cells[name, metric]) if (name, metric) in cells else "" for metric in shown]
        lines.append(f"| {name} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def _told(row: Row) -> str:
    if row.kind == COST:
        return f"{row.mean:.4g}"
    text = f"{row.mean:.4g}" + ("" if isnan(row.error) else f" ± {row.error:.2g}")
    if isnan(row.difference):
        return text
    return f"{text} ({row.difference:+.2g}, p {'< 0.001' if row.p < 0.001 else f'= {row.p:.2g}'})"
