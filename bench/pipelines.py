"""A denoising step of full-size models, stock and under capture: time and peak memory.

    python -m bench pipelines                          every model that fits the device
    python -m bench pipelines --only sdxl --rounds 3
    python -m bench pipelines --out bench/results/pipelines.json

The models have their published configurations and random weights, on which speed does not depend; nothing is downloaded.
float32 on a CPU, float16 or bfloat16 on a GPU. A step is the network's forward on the rows that its pipeline runs at once:
two under classifier-free guidance, one for FLUX. Kinds of step: stock; idle, captured with nothing recorded; cross, with
cross-attention recorded, of the prompt and of the two quality prompts; self, with maps propagated. Kinds take turns, on a GPU
each with the stock step; a ratio is the median over rounds of the ratio within a round, and memory is the most that a step
holds above what was held before; on a GPU what the capture itself holds counts. Seconds on a GPU are those of CUDA graphs of
the steps, the device's own; the elapsed time of the call from Python, ``wall_seconds``, stands beside them.
A model that does not fit is listed with what it would take.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.cpu import STEPS, run_mean
from bench.pipeline_models import MODELS, Model, free_bytes, moved, needed_bytes, randomised, release
from bench.record import attempted, earlier_models, environment, with_model, write_json
from bench.timing import GpuTimer, median_ratio, percentiles, rounds_of
from bench.unet_step import sampled
from lotts.capture import AttentionRecorder

COLUMNS, CONTENT = 2, 12
#: kind of device -> bound on a captured step over the stock one, and on its peak memory over the stock one's.
TARGETS = {"cuda": (1.02, 1.01), "cpu": (1.10, None)}


class Steps:
    """A model's step in all its kinds; keeps how far each kind's output is from the stock one's."""

    def __init__(self, model: Model, side: int, device: str) -> None:
        dtype = torch.float32 if device == "cpu" else model.dtype
        self.network = randomised(model.build, dtype, device)
        self.inputs = moved(model.inputs(model.rows, side), dtype, device)
        size = (side // model.cell, side // model.cell)
        content = torch.zeros(1, model.text, device=device)
        content[:, 1 : 1 + CONTENT] = 1
        quality = (torch.randn(1, model.text, model.width, device=device, dtype=dtype), content)
        self.recorder = AttentionRecorder(
            self.network, content[..., None], quality, quality, latent_size=size, order=model.order
        )
        self.recorder.rows = slice(model.rows - 1, model.rows)
        self.recorder.columns = torch.rand(1, COLUMNS, *size, device=device)
        self.stock: torch.Tensor | None = None
        self.differences: dict[str, float] = {}

    def calls(self) -> dict[str, Callable[[], torch.Tensor]]:
        return {"stock": self._stock, **dict.fromkeys(STEPS, self._step)}

    def _stock(self) -> torch.Tensor:
        self.stock = self._step()
        return self.stock

    def _step(self) -> torch.Tensor:
        # Latents of their own for every call, as a pipeline's steps have: a second forward of one tensor is the negative
        # prompt's to a capture, which does not record it.
        inputs = {name: value.view_as(value) for name, value in self.inputs.items() if torch.is_tensor(value)}
        return self.network(**self.inputs | inputs, return_dict=False)[0]

    @contextmanager
    def ready(self, kind: str) -> Iterator[None]:
        """Context of a kind's timed steps. A run enters its capture once and projects the quality prompts in its first step."""
        if kind == "stock":
            yield
            return
        self.recorder.record_cross, self.recorder.record_self = STEPS[kind]
        with self.recorder:
            first = self._step()
            if self.stock is not None:
                self.differences[kind] = (first - self.stock).abs().max().item()
            del first
            yield


@dataclass
class Found:
    """What was measured of one kind of step. ``stock`` are the stock step's seconds in the same rounds."""

    seconds: list[float] = field(default_factory=list)
    stock: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)


def on_cpu(steps: Steps, rounds: int) -> dict[str, Found]:
    """All kinds take turns."""
    calls = steps.calls()
    found = {kind: Found() for kind in calls}
    for i_round, kind in rounds_of(list(calls), rounds + 1):
        with steps.ready(kind):
            _, sample = sampled(calls[kind])
        if i_round > 0:
            found[kind].seconds.append(sample.seconds)
            found[kind].peaks.append(sample.peak_bytes)
    for kind in calls:
        found[kind].stock = found["stock"].seconds
    return found


def on_gpu(steps: Steps, rounds: int) -> dict[str, Found]:
    """Each kind takes turns with the stock step: a graph reads the capture that it was recorded in, and one is open at a time."""
    timer, calls, found = GpuTimer(), steps.calls(), {}
    calls["stock"]()
    # From here on: what libraries keep from the first step on, cuBLAS's workspace above all, is no kind's own.
    base = torch.cuda.memory_allocated()
    peaks = {"stock": timer.extra_bytes(calls["stock"])}
    for kind in STEPS:
        with steps.ready(kind):
            held = torch.cuda.memory_allocated() - base  # by the capture: its sums and the quality prompts' keys
            peaks[kind] = held + timer.extra_bytes(calls[kind])
    stock = timer.recorded(calls["stock"])
    for kind in calls:
        with steps.ready(kind):
            graphs = {"stock": stock, kind: stock if kind == "stock" else timer.recorded(calls[kind])}
            times = timer.interleaved(graphs, rounds)
            wall = [timer.wall_seconds(calls[kind]) for _ in range(rounds)]
        found[kind] = Found(times[kind].device, times["stock"].device, wall, [peaks[kind]])
        del graphs
    return found


def measured(model: Model, side: int, rounds: int, device: str) -> dict[str, Any]:
    """Times, memory and ratios of each kind of step."""
    steps = Steps(model, side, device)
    found = on_cpu(steps, rounds) if device == "cpu" else on_gpu(steps, rounds)
    resident = sum(p.numel() * p.element_size() for p in steps.network.parameters())
    ratios = {kind: median_ratio(of.seconds, of.stock) for kind, of in found.items()}
    whole = {kind: resident + sorted(of.peaks)[len(of.peaks) // 2] for kind, of in found.items()}
    return {
        "pixels": side,
        "rounds": rounds,
        "rows": model.rows,
        "dtype": "float32" if device == "cpu" else str(model.dtype).removeprefix("torch."),
        "weights_mib": resident / 2**20,
        "seconds": {kind: percentiles(of.seconds) for kind, of in found.items()},
        "wall_seconds": {kind: percentiles(of.wall) for kind, of in found.items() if of.wall},
        "over_stock": {**ratios, "run mean": run_mean(ratios)},
        "extra_mib": {kind: (peak - resident) / 2**20 for kind, peak in whole.items()},
        "peak_over_stock": {kind: peak / whole["stock"] for kind, peak in whole.items()},
        "output_difference": steps.differences,
        "layers": str(steps.recorder.report),
    }


def table(report: dict[str, Any]) -> str:
    """Markdown: a row a model and kind of step, then what could not run."""
    lines = ["| model | step | seconds | over stock | extra MiB | peak over stock |", "|---|---|--:|--:|--:|--:|"]
    for name, entry in report["models"].items():
        if "skipped" in entry:
            continue
        for kind, times in entry["seconds"].items():
            lines.append(
                f"| {name}, {entry['pixels']} px | {kind} | {times['p50']:.4g} | {entry['over_stock'][kind]:.3f} "
                f"| {entry['extra_mib'][kind]:.0f} | {entry['peak_over_stock'][kind]:.4f} |"
            )
    skipped = [f"{name}: {entry['skipped']}" for name, entry in report["models"].items() if "skipped" in entry]
    return "\n".join([*lines, "", *skipped, *report["judged"]])


def judged(report: dict[str, Any], device: str) -> list[str]:
    """A line a target: met or missed."""
    slower, larger = TARGETS[device]
    lines = []
    for name, entry in report["models"].items():
        if "skipped" in entry:
            continue
        for kind in ("cross", "self", "run mean"):
            value = entry["over_stock"][kind]
            lines.append(
                f"{'met   ' if value <= slower else 'MISSED'}  {name}, {kind}: {value:.3f} of stock (<= {slower})"
            )
        if larger is not None:
            worst = max(entry["peak_over_stock"].values())
            lines.append(f"{'met   ' if worst <= larger else 'MISSED'}  {name}, peak memory: {worst:.4f} (<= {larger})")
    return lines


@torch.no_grad()
def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench pipelines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(MODELS), help="a model; may be given several times")
    parser.add_argument("--rounds", type=int, help="rounds after the warm-up (default 20 on a GPU, 3 on a CPU)")
    parser.add_argument("--side", type=int, help="pixels of a picture's side (default: the model's own)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--out",
        type=Path,
        help="write the JSON there, after every model; others of the same commit, machine and versions stay in it",
    )
    arguments = parser.parse_args(argv)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rounds = arguments.rounds or (20 if device == "cuda" else 3)
    torch.manual_seed(0)
    facts = environment()
    models = earlier_models(arguments.out, facts)
    report: dict[str, Any] = {"environment": facts, "models": models, "judged": []}
    for name in arguments.only or MODELS:
        model = MODELS[name]
        needed, free = needed_bytes(model, device), free_bytes(device)
        if needed > free:
            entry = {
                "skipped": f"takes about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free on this {device}"
            }
        else:
            side = arguments.side or model.side
            entry = attempted(functools.partial(measured, model, side, rounds, device))
        print(f"{name}: {entry.get('skipped') or entry['over_stock']}", file=sys.stderr, flush=True)
        report["models"] = with_model(report["models"], name, entry)
        report["judged"] = judged(report, device)
        release(device)
        if arguments.out:
            write_json(arguments.out, report)
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    return 0
