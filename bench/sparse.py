"""A refinement step on part of the picture beside a dense one, of full-size FLUX and SDXL, and what the FLOP model says.

    python -m bench sparse                       the largest configurations that fit the device
    python -m bench sparse --only flux --ratio 0.5 --rounds 3
    python -m bench sparse --quick               tiny networks, to try the command out

Published configurations with random weights, on which speed does not depend; where a network does not fit, it has fewer blocks of the
same width, and the report says how many. A step is the network's forward on the rows that its pipeline runs at once. The
sparse one comes after a dense one was recorded; recording is timed as a kind of its own. Masks are smooth random regions of exactly
the given share. Kinds take turns, and a ratio is the median over rounds of the ratio within a round. Seconds on a GPU are those
of CUDA graphs of the steps, the device's own; the elapsed time of the call from Python, ``wall_seconds``, stands beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.pipeline_models import MODELS, Model, free_bytes, moved, needed_bytes, randomised, release
from bench.record import attempted, earlier_models, environment, with_model, write_json
from bench.timing import GpuTimer, median_ratio, percentiles, rounds_of
from bench.unet_step import sampled
from lotts.capture.patch import attention_modules
from lotts.localize import quality_mask
from lotts.sparse.flops import row_flops
from lotts.sparse.refinement import at_work
from lotts.sparse.region import Region, on_grid
from lotts.sparse.sites import find_sites
from lotts.sparse.store import Store
from lotts.sparse.stretch import Stretch

RATIOS = (0.1, 0.2, 0.35, 0.5, 0.8)
#: Configurations of each model, largest first: what they change of the published one.
SIZES: dict[str, list[dict[str, Any]]] = {
    "flux": [{}, {"num_layers": 4, "num_single_layers": 8}, {"num_layers": 1, "num_single_layers": 2}],
    "sdxl": [{}, {"transformer_layers_per_block": (1, 2, 4)}, {"transformer_layers_per_block": (1, 1, 1)}],
}
#: Networks of ``--quick``, and the pixels of a side.
QUICK: dict[str, dict[str, Any]] = {
    "flux": {
        "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6),
    },
    "sdxl": {
        "block_out_channels": (32, 64, 64), "transformer_layers_per_block": (1, 1, 2), "attention_head_dim": (2, 2, 4),
        "norm_num_groups": 8,
    },
}  # fmt: skip
QUICK_SIDE = 256
#: model -> ratio -> bound on a sparse step over a dense one, on a GPU of the H200 class.
TARGETS = {"flux": {0.5: 0.60, 0.2: 0.33}, "sdxl": {0.5: 0.75, 0.2: 0.50}}
#: On a CPU a ratio is to be the FLOP model's, within this share of it.
CPU_TOLERANCE = 0.15


class Steps:
    """A network's forward, dense, recorded, and on regions of each ratio."""

    def __init__(self, model: Model, side: int, ratios: list[float], device: str) -> None:
        dtype = torch.float32 if device == "cpu" else model.dtype
        self.network = randomised(model.build, dtype, device)
        self.attention = attention_modules(self.network)
        self.inputs = moved(model.inputs(model.rows, side), dtype, device)
        self.size, self.text = (side // model.cell, side // model.cell), model.text
        self.sites, refused = find_sites(self.network, self.size)
        if refused:
            raise RuntimeError(f"expected all of the network to be sparse, got {refused}")
        self.stretches = {ratio: self._stretches(ratio, device) for ratio in ratios}
        self.stores = {ratio: Store(torch.device(device)) for ratio in ratios}

    def dense(self) -> torch.Tensor:
        return self.network(**self.inputs, return_dict=False)[0]

    def recorded(self, ratio: float) -> torch.Tensor:
        put = self.stores[ratio].put
        return self._run(ratio, lambda s: {"write": lambda key, *tensors: put((s.site.name, key), *tensors)})

    def sparse(self, ratio: float) -> torch.Tensor:
        get = self.stores[ratio].get
        return self._run(ratio, lambda s: {"read": lambda key: get((s.site.name, key))})

    def calls(self) -> dict[str, Callable[[], torch.Tensor]]:
        """The step in all its kinds, with something recorded for the sparse ones."""
        for ratio in self.stretches:
            self.recorded(ratio)
        found: dict[str, Callable[[], torch.Tensor]] = {"dense": self.dense}
        found["recorded"] = functools.partial(self.recorded, max(self.stretches))
        return found | {f"{ratio:g}": functools.partial(self.sparse, ratio) for ratio in self.stretches}

    def share(self, ratio: float) -> float:
        """Of a dense step's multiplications and additions, by the FLOP model."""
        computed = {s.site.name: s.region.size for s in self.stretches[ratio]}
        sparse = row_flops(self.network, self.sites, self.size, self.text, computed)
        return sparse / row_flops(self.network, self.sites, self.size, self.text)

    def tokens(self, ratio: float) -> dict[str, int]:
        """Tokens that are computed, by those of the grid."""
        return {str(s.region.tokens): s.region.size for s in self.stretches[ratio]}

    def stored_bytes(self, ratio: float) -> int:
        return sum(tensor.nbytes for tensors in self.stores[ratio].tensors.values() for tensor in tensors)

    def _run(self, ratio: float, ends: Callable[[Stretch], dict[str, Any]]) -> torch.Tensor:
        with at_work(self.attention, self.stretches[ratio], ends):
            return self.dense()

    def _stretches(self, ratio: float, device: str) -> list[Stretch]:
        # As smooth as defect maps are, which come from coarse levels of a network.
        coarse = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        smooth = F.interpolate(coarse, size=self.size, mode="bilinear", align_corners=False)[:, 0]
        mask = quality_mask(smooth, ratio).to(device)
        made = [Stretch(site, Region.of(on_grid(mask, site.grid))) for site in self.sites]
        return [stretch for stretch in made if not stretch.region.whole]


def configured(name: str, quick: bool, smallest: bool, device: str) -> tuple[Model | None, dict[str, Any]]:
    """The largest configuration that fits, with room for what is stored, and what it changes; None where none does."""
    for changes in [QUICK[name]] if quick else SIZES[name][-1:] if smallest else SIZES[name]:
        published = MODELS[name]
        model = dataclasses.replace(published, build=functools.partial(published.build, **changes))
        if quick:
            model = dataclasses.replace(model, side=QUICK_SIDE)
        if 1.5 * needed_bytes(model, device) <= free_bytes(device):
            return model, changes
    return None, {}


def measured(model: Model, side: int, ratios: list[float], rounds: int, device: str) -> dict[str, Any]:
    """Times and ratios of each kind of step."""
    steps = Steps(model, side, ratios, device)
    calls = steps.calls()
    seconds: dict[str, list[float]] = {kind: [] for kind in calls}
    wall: dict[str, list[float]] = {kind: [] for kind in calls}
    timer = GpuTimer() if device == "cuda" else None
    graphs = {} if timer is None else {kind: timer.recorded(call) for kind, call in calls.items()}
    for i_round, kind in rounds_of(list(calls), rounds + 1):
        if timer is None:
            elapsed = took = sampled(calls[kind])[1].seconds
        else:
            elapsed, took = timer.wall_seconds(calls[kind]), timer.device_seconds(graphs[kind])
        if i_round > 0:
            seconds[kind].append(took)
            wall[kind].append(elapsed)
    return {
        "pixels": side,
        "rounds": rounds,
        "rows": model.rows,
        "dtype": "float32" if device == "cpu" else str(model.dtype).removeprefix("torch."),
        "seconds": {kind: percentiles(taken) for kind, taken in seconds.items()},
        "wall_seconds": {kind: percentiles(taken) for kind, taken in wall.items()},
        "recorded_over_dense": median_ratio(seconds["recorded"], seconds["dense"]),
        "ratios": {
            f"{ratio:g}": {
                "measured": median_ratio(seconds[f"{ratio:g}"], seconds["dense"]),
                "model": steps.share(ratio),
                "tokens": steps.tokens(ratio),
                "stored_mib": steps.stored_bytes(ratio) / 2**20,
            }
            for ratio in ratios
        },
    }


def judged(report: dict[str, Any], device: str) -> list[str]:
    """A line a target: met or missed."""
    lines = []
    for name, entry in report["models"].items():
        for ratio, found in entry.get("ratios", {}).items():
            if device == "cpu":
                bound, told = (1 + CPU_TOLERANCE) * found["model"], f"{1 + CPU_TOLERANCE:g} of the model"
            elif float(ratio) in TARGETS[name]:
                bound = TARGETS[name][float(ratio)]
                told = f"{bound:g}"
            else:
                continue
            verdict = "met   " if found["measured"] <= bound else "MISSED"
            lines.append(f"{verdict}  {name} at {ratio}: {found['measured']:.3f} of the dense step (<= {told})")
    return lines


def table(report: dict[str, Any]) -> str:
    """Markdown: a row a model and ratio, then what could not run."""
    lines = ["| model | masked | over dense | FLOP model | stored MiB |", "|---|--:|--:|--:|--:|"]
    for name, entry in report["models"].items():
        for ratio, found in entry.get("ratios", {}).items():
            changes = f" {entry['changes']}" if entry["changes"] else ""
            lines.append(
                f"| {name}{changes}, {entry['pixels']} px | {float(ratio):.0%} | {found['measured']:.3f} | {found['model']:.3f} "
                f"| {found['stored_mib']:.0f} |"
            )
    skipped = [f"{name}: {entry['skipped']}" for name, entry in report["models"].items() if "skipped" in entry]
    return "\n".join([*lines, "", *skipped, *report["judged"]])


@torch.no_grad()
def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench sparse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(SIZES), help="a model; may be given several times")
    parser.add_argument("--ratio", action="append", type=float, help=f"masked shares (default: {RATIOS})")
    parser.add_argument("--rounds", type=int, help="rounds after the warm-up (default 20 on a GPU, 3 on a CPU)")
    parser.add_argument("--side", type=int, help="pixels of a picture's side (default: the model's own)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--quick", action="store_true", help="tiny networks, one round")
    parser.add_argument("--smallest", action="store_true", help="the fewest blocks, whatever fits")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--out",
        type=Path,
        help="write the JSON there, after every model; others of the same commit, machine and versions stay in it",
    )
    arguments = parser.parse_args(argv)
    ratios = arguments.ratio or list(RATIOS)
    if not all(0 < ratio < 1 for ratio in ratios):
        parser.error(f"--ratio: expected shares between 0 and 1, got {ratios}")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rounds = arguments.rounds or (1 if arguments.quick else 20 if device == "cuda" else 3)
    torch.manual_seed(0)
    facts = environment()
    models = earlier_models(arguments.out, facts)
    report: dict[str, Any] = {"environment": facts, "models": models, "judged": []}
    for name in arguments.only or SIZES:
        model, changes = configured(name, arguments.quick, arguments.smallest, device)
        if model is None:
            entry: dict[str, Any] = {
                "skipped": f"none of its sizes fits: {free_bytes(device) / 2**30:.0f} GiB are free"
            }
        else:
            side = arguments.side or model.side
            entry = attempted(functools.partial(measured, model, side, ratios, rounds, device))
        found = {ratio: part["measured"] for ratio, part in entry.get("ratios", {}).items()}
        print(f"{name}: {entry.get('skipped') or found}", file=sys.stderr, flush=True)
        report["models"] = with_model(report["models"], name, {"changes": changes, **entry})
        report["judged"] = [] if arguments.quick else judged(report, device)
        release(device)
        if arguments.out:
            write_json(arguments.out, report)
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    return 0
