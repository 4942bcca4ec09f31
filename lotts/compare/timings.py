"""What the runs of a study took: seconds by stage and memory. Unlike the table, no two runs agree on it."""

from __future__ import annotations

import csv
import io

import numpy as np

from lotts.compare.study import Study
from lotts.compare.table import Done
from lotts.cost import STAGES


def timings_csv(study: Study, done: Done) -> str:
    """CSV: mean seconds of a run, in all and by stage, and the largest peak of memory, by budget and variant."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["budget", "variant", "runs", "seconds", *STAGES, "peak_mib"])
    for budget in study.budgets:
        for variant in study.variants:
            runs = [r["timings"] for item, r in done if (item.budget, item.variant.name) == (budget, variant.name)]
            if runs:
                seconds = [float(np.mean([run["seconds"] for run in runs]))]
                seconds += [float(np.mean([run["stages"].get(stage, 0.0) for run in runs])) for stage in STAGES]
                peaks = [run["peak_bytes"] / 2**20 for run in runs if run["peak_bytes"] is not None]
                told = [f"{value:.4g}" for value in seconds] + [f"{max(peaks):.1f}" if peaks else ""]
                writer.writerow([budget, variant.name, len(runs), *told])
    return text.getvalue()
