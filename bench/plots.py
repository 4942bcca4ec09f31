"""Render the figures of the docs from measured results: ``python -m bench.plots`` (needs the ``bench`` extra)."""

from __future__ import annotations

import json
from pathlib import Path

from lotts.report.axes import ACCENT, COLOURS, GREY, INK, pyplot

plt = pyplot()
RESULTS, IMAGES = Path("bench/results"), Path("docs/images")
#: A mask has the colour of its own in every figure.
MASKS = dict(
    zip(
        (
            "attention",
            "prediction",
            "true defects",
            "foreground",
            "random",
            "whole",
            "verifier",
            "verifier, a fifth",
            "verifier, where sure",
            "attention, quality words",
        ),
        COLOURS,
        strict=False,
    )
)


def loss_curves() -> None:
    """Training loss against pictures seen, one panel a model, from the logs kept in bench/results/training."""
    logs = sorted((RESULTS / "training").glob("*.jsonl"))
    rows = -(-len(logs) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(12.6, 3 * rows), squeeze=False)
    for axis in axes.flat[len(logs) :]:
        axis.set_axis_off()
    for axis, log in zip(axes.flat, logs, strict=False):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        axis.plot([r["images"] / 1000 for r in lines], [r.get("error", r["loss"]) for r in lines], color=ACCENT)
        minutes = lines[-1]["seconds"] / 60
        axis.set(title=f"{log.stem} ({minutes:.0f} minutes)", xlabel="thousand pictures", ylabel="loss", yscale="log")
    save(figure, "training.png")


def single_samples() -> None:
    """Shares of objects and scenes right by the number of objects, one panel an embedded pipeline."""
    reports = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("single_samples*.json"))]
    figure, axes = plt.subplots(1, len(reports), figsize=(1 + 5 * len(reports), 3), sharey=True, squeeze=False)
    for axis, report in zip(axes[0], reports, strict=True):
        rows = report["by_objects"]
        numbers = [int(n) for n in rows]
        for key, colour in (("objects_right", ACCENT), ("scenes_right", "#2e86ab")):
            shares = [rows[str(n)][key] for n in numbers]
            axis.plot(numbers, shares, marker="o", color=colour, label=key.replace("_", " "))
        title = f"single samples of {report['model']}, held-out prompts"
        axis.set(xlabel="objects in the scene", ylabel="share right", ylim=(0, 1.02), title=title)
    axes[0][0].legend(frameon=False)
    save(figure, "single_samples.png")


def localization() -> None:
    every = ("localization", "localization_drawings", "localization_sdxl", "localization_flux")
    names = [name for name in every if (RESULTS / f"{name}.json").exists()]
    rows = -(-len(names) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(13, 4.2 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        report = json.loads((RESULTS / f"{name}.json").read_text())
        chosen = {label: report["auc"][key] for label, key in report["shown"].items()}
        places = range(len(chosen))
        axis.barh(places, [r["object_cells"] for r in chosen.values()], 0.38, color=ACCENT, label="object cells only")
        axis.barh(
            [p + 0.4 for p in places], [r["all_cells"] for r in chosen.values()], 0.38, color=GREY, label="all cells"
        )
        axis.axvline(0.5, color=INK, lw=0.8, ls=":")
        axis.set(
            yticks=[p + 0.2 for p in places],
            yticklabels=list(chosen),
            xlim=(0.3, 1),
            xlabel="ROC-AUC against true defects",
        )
        axis.set_title(f"{report['model']}, {report['pictures']} ({report['with_defects']} with defects)")
        axis.invert_yaxis()
    axes[-1][0].legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2)
    save(figure, "localization.png")


def refinement() -> None:
    """Change of the share of objects right by mask and noise step, a row a study."""
    reports = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("refinement*.json"))]
    figure, axes = plt.subplots(len(reports), 2, figsize=(12, 3.6 * len(reports)), squeeze=False)
    for row, report in zip(axes, reports, strict=True):
        arms = report["by_objects"]["all"]["arms"]
        masks = list(dict.fromkeys(arm.split(" @ ")[0] for arm in arms))
        steps = sorted({int(arm.split(" @ ")[1]) for arm in arms})
        width = 0.8 / len(masks)
        for axis, column in zip(row, ("objects change", "objects change, verifier keeps the better"), strict=True):
            for index, mask in enumerate(masks):
                values = [arms[f"{mask} @ {step}"][column] for step in steps]
                x = [i + (index - (len(masks) - 1) / 2) * width for i in range(len(steps))]
                means, errors = zip(*values, strict=True)
                axis.bar(x, means, 0.9 * width, yerr=errors, color=MASKS[mask], ecolor=INK, label=mask)
            axis.axhline(0, color=INK, lw=0.8)
            axis.set(
                xticks=range(len(steps)),
                xticklabels=[f"t0 = {s} of {report['steps']}" for s in steps],
                title=f"{report.get('model', 'shapes-sd')}, guidance {report['guidance_scale']:g}: {column}",
                ylabel="share of objects right",
            )
    # The row with most masks names them all.
    handles = max((row[0].get_legend_handles_labels() for row in axes), key=lambda pair: len(pair[1]))
    figure.legend(*handles, frameon=False, ncol=4, loc="upper center", bbox_to_anchor=(0.5, 0.02))
    save(figure, "refinement.png")


def sparse() -> None:
    """A sparse step's time over a dense one's by masked share, beside the FLOP model, a panel a network."""
    report = json.loads((RESULTS / "sparse.json").read_text())
    measured = {name: entry for name, entry in report["models"].items() if "ratios" in entry}
    figure, axes = plt.subplots(1, len(measured), figsize=(1 + 5 * len(measured), 3.4), sharey=True, squeeze=False)
    for axis, (name, entry) in zip(axes[0], measured.items(), strict=True):
        shares = [100 * float(ratio) for ratio in entry["ratios"]]
        for key, look in (("model", {"color": GREY, "ls": "--"}), ("measured", {"color": ACCENT, "marker": "o"})):
            label = "FLOP model" if key == "model" else key
            axis.plot(shares, [found[key] for found in entry["ratios"].values()], label=label, **look)
        axis.plot([0, 100], [0, 1], color=INK, lw=0.8, ls=":", label="the mask's own share")
        axis.set(xlabel="masked, % of the picture", xlim=(0, 100), ylabel="time over a dense step")
        axis.set_ylim(bottom=0)
        axis.set_title(f"{name}, {entry['pixels']} px, {report['environment'].get('gpu') or 'CPU'}")
    axes[0][0].legend(frameon=False)
    save(figure, "sparse.png")


def save(figure, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(IMAGES / name)
    print(IMAGES / name)


if __name__ == "__main__":
    for draw in (loss_curves, single_samples, localization, refinement, sparse):
        try:
            draw()
        except FileNotFoundError as missing:
            print(f"{draw.__name__}: {missing.filename} has not been measured")
