"""Comparing methods: every prompt, variant, budget and seed as an item of its own, and what came of them all in a table.

>>> study = Study(load_prompts("shapes:64"), [Variant.parse("best_of_n"), Variant.parse("lotts")], ["samples=9"], 3,
...               "shapes-sd", "shapes", ["checker"], settings={"num_inference_steps": 20, "guidance_scale": 2.0})
>>> compare(study, Path("comparison"))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lotts.compare.curves import AXES, curves_of
from lotts.compare.plots import FORMS
from lotts.compare.records import read_failure, read_record, sweep_up, unasked
from lotts.compare.runner import Runner, missing_items, run_here
from lotts.compare.study import Study, Variant
from lotts.compare.table import Row, as_csv, as_json, as_markdown, rows_of
from lotts.compare.timings import timings_csv
from lotts.files import write_whole

__all__ = ["Outcome", "Study", "Variant", "compare"]


@dataclass(frozen=True)
class Outcome:
    """What a run of a study came to.

    Attributes:
        made, kept, failed: items made now, done before, and not made because of an error (``failures/`` says which).
        rows: the table.
        text: the table as Markdown.
        plots: the files drawn; empty without matplotlib.
        error: what went wrong with one of those that failed.
    """

    made: int
    kept: int
    failed: int
    rows: list[Row]
    text: str
    plots: list[Path]
    error: str | None = None


def compare(
    study: Study, out: str | Path, *, workers: int = 0, gpus_per_worker: float | None = None, form: str = "scaling"
) -> Outcome:
    """Make what is missing of a study in ``out``, then write its tables, curves, timings and plots there.

    Every item has a folder of its own that appears whole or not at all, so a run that was killed goes on where it stopped,
    and its table.csv is the same byte for byte. What fails is recorded and tried again by the next run.

    Args:
        workers: processes over Ray (the extra ``ray``), each with a pipeline of its own; 0: in this process.
        gpus_per_worker: what share of a GPU each has; default: a whole one where there are GPUs.
        form: what the plot shows: "scaling" (score against compute), "ablation" or "sweep".

    Raises:
        ValueError, FileNotFoundError, ImportError: something does not fit; raised before any compute.
    """
    if form not in FORMS:
        raise ValueError(f"expected a plot out of {', '.join(FORMS)}, got {form!r}")
    if workers:
        from lotts.compare.fleet import check_workers, run_on_ray

        check_workers(workers)
    out = Path(out)
    runner = Runner(study, out)
    runner.check()
    left = missing_items(study, out)
    # A model that cannot be loaded, or an option that no item can be made with, is no failure of an item.
    runner.check_options([item for item in left if read_record(out, item) is None])
    total = len({item.key for item in study.items()})
    if workers:
        runner.release()  # the device is the workers'
        failed = run_on_ray(study, out, left, workers, gpus_per_worker)
    else:
        failed = run_here(runner, left)
    if not failed:
        sweep_up(out)
    rows, text, plots = write_results(study, out, form)
    error = next((told for item in left if (told := read_failure(out, item))), None)
    return Outcome(len(left) - failed, total - len(left), failed, rows, text, plots, error)


def write_results(study: Study, out: Path, form: str = "scaling") -> tuple[list[Row], str, list[Path]]:
    """Tables, curves, timings and plots of what is done; all but the timings are the same whenever the items are."""
    from lotts.compare.plots import draw

    done = [(item, record) for item in study.items() if (record := read_record(out, item)) is not None]
    done = [(item, record) for item, record in done if not unasked(study, record)]
    rows, curves = rows_of(study, done), curves_of(study, done)
    text = as_markdown(study, rows)
    timed = [point for point in curves if point.axis == AXES[-1]]
    out.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "table.csv": as_csv(rows),
        "table.md": text,
        "table.json": as_json(study, rows),
        "curves.csv": as_csv([point for point in curves if point.axis != AXES[-1]]),
        "timings.csv": timings_csv(study, done),
        "timings-curves.csv": as_csv(timed),
    }.items():
        write_whole(out / name, content.encode())
    return rows, text, draw(study, rows, curves, out, form)
