"""Markdown table and plots from what ``python -m bench gpu`` measured (needs the ``bench`` extra).

python -m bench render bench/results/gpu.json
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from bench.record import write_atomically

PROVIDERS = {
    "ours": "#e4572e",
    "sdpa_flash": "#2e86ab",
    "sdpa_cudnn": "#8e6bbf",
    "portable": "#3a9d5d",
    "compiled": "#f2a541",
    "eager": "#b8bcc8",
}
INK = "#2b2d42"


def markdown(report: dict[str, Any], images: list[str]) -> str:
    """The whole page: what was measured on, the targets, and every case."""
    facts, roofline = report["environment"], report["roofline"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    changed = {True: " with uncommitted changes", False: "", None: ""}[facts["dirty"]]
    lines = [
        "# The kernels on a GPU",
        "",
        f"{facts['gpu']} ({facts['architecture']}), driver {facts['driver']}, Python {facts['python']}, {versions}; commit "
        f"{facts['commit'] or 'unknown'}{changed}, {facts['date']}. A large copy moves "
        f"{roofline['copy_bytes_per_second'] * 1e-9:.0f} GB/s and a bfloat16 product makes "
        f"{roofline['matmul_flops_per_second'] * 1e-12:.0f} TFLOP/s on it. Written by `python -m bench render`; what the columns mean "
        "is in [kernels.md](kernels.md).",
        "",
        "## Targets",
        "",
        "| case | target | bound | measured | met |",
        "|---|---|---|--:|---|",
    ]
    for row in report["targets"]:
        value = "not measured" if row["value"] is None else f"{row['value']:.3g}"
        lines.append(
            f"| {row['case']} | {row['target']} | {row['bound']} | {value} | {'yes' if row['met'] else '**no**'} |"
        )
    for image in images:
        lines += ["", f"![{Path(image).stem}]({image})"]
    lines += ["", "## Every case", ""]
    lines += ["| case | provider | device us (p20, p50, p80) | elapsed us | GB/s | TFLOP/s | extra MiB |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|"]
    for case in report["cases"]:
        lines += _case_rows(case)
    return "\n".join(lines) + "\n"


def _case_rows(case: dict[str, Any]) -> list[str]:
    if not case["correct"]:
        return [f"| {case['name']} | ours | wrong: no speed | | | | |"]
    rows = []
    for name, numbers in case.get("providers", {}).items():
        device = ", ".join(f"{seconds * 1e6:.1f}" for seconds in numbers["device_seconds"].values())
        rates = f"{numbers['gb_per_second']:.0f} | {numbers['tflop_per_second']:.1f}"
        elapsed = f"{numbers['wall_seconds']['p50'] * 1e6:.1f}"
        memory = f"{numbers['extra_bytes'] / 2**20:.2f}"
        rows.append(f"| {case['name']} | {name} | {device} | {elapsed} | {rates} | {memory} |")
    rows += [
        f"| {case['name']} | {name} | cannot run: {why} | | | | |" for name, why in case.get("skipped", {}).items()
    ]
    return rows


def plots(report: dict[str, Any], folder: Path) -> list[Path]:
    """A picture an op: device time of each provider at each case, on a logarithmic axis, p20 to p80 as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for op in dict.fromkeys(case["op"] for case in report["cases"]):
        cases = [case for case in report["cases"] if case["op"] == op and case.get("providers")]
        if not cases:
            continue
        figure, axis = plt.subplots(figsize=(8, 1.2 + 0.55 * len(cases)))
        for index, (name, colour) in enumerate(PROVIDERS.items()):
            places = [i + (index - 2.5) * 0.13 for i, case in enumerate(cases) if name in case["providers"]]
            times = [c["providers"][name]["device_seconds"] for c in cases if name in c["providers"]]
            middle = [t["p50"] * 1e6 for t in times]
            whiskers = [[(t["p50"] - t["p20"]) * 1e6 for t in times], [(t["p80"] - t["p50"]) * 1e6 for t in times]]
            if times:
                axis.barh(places, middle, 0.12, xerr=whiskers, color=colour, ecolor=INK, label=name)
        labels = [case["name"].removeprefix(f"{op} ") for case in cases]
        axis.set(
            yticks=range(len(cases)), yticklabels=labels, xscale="log", xlabel="device time, microseconds", title=op
        )
        axis.tick_params(axis="y", labelsize=7)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
        path = folder / f"gpu_{op}.png"
        figure.savefig(path, dpi=130, bbox_inches="tight")
        plt.close(figure)
        written.append(path)
    return written


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench render", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", default=Path("bench/results/gpu.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/gpu.md"), help="default docs/gpu.md")
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="default docs/images")
    arguments = parser.parse_args(argv)
    if not arguments.results.exists():
        parser.error(f"expected results of `python -m bench gpu`, found no {arguments.results}")
    report = json.loads(arguments.results.read_text(encoding="utf-8"))
    pictures = plots(report, arguments.images)
    links = [Path(os.path.relpath(picture, arguments.out.parent)).as_posix() for picture in pictures]
    write_atomically(arguments.out, markdown(report, links))
    for path in (arguments.out, *pictures):
        print(path)
    return 0
