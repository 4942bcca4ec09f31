"""Every op on a GPU: first whether it is right, then how fast it is and what memory it takes, beside PyTorch's own ways.

    python -m bench gpu                        everything, to bench/results/gpu.json
    python -m bench gpu --quick                only the shapes of the targets, few rounds
    python -m bench gpu --only blend_step      one op; results of the others stay in the file if they are of the same
                                               commit, GPU and versions
    python -m bench render                     tables and plots from the file

Providers, who take turns: ours (Triton), eager (the formula in the inputs' dtype), compiled (that, through torch.compile,
at the shapes of the targets), portable (our plain-torch form; for propagate_attention, SDPA with a widened V), and, for
attention, sdpa_flash and sdpa_cudnn, which make no maps. An op with an error above the gate reports no speed, and the exit
status is then 1. Device time is between CUDA events with a cold L2; elapsed time is of the whole call, cache warm. Who cannot
run is listed with the reason. Missed targets are printed and recorded; they do not change the exit status.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import resources, shapes, targets
from bench.cases import AttentionCase, Call, Case
from bench.record import earlier, environment, told, write_json
from bench.timing import GpuTimer, percentiles, usable
from lotts.kernels.launch import architecture

OUT = Path("bench/results/gpu.json")
ROUNDS, QUICK_ROUNDS, LEAST_ROUNDS = 50, 15, 7
#: Seconds of timing that one case may take before its rounds become fewer.
BUDGET = 6.0
MAP_FREE = targets.MAP_FREE
DEVICE = "cuda"


def described(case: Case) -> dict[str, Any]:
    """What identifies a case in the file."""
    return {
        "name": case.name,
        "op": case.op,
        "model": case.model,
        "pixels": case.pixels,
        "shape": case.shape(),
        "dtype": str(case.dtype).removeprefix("torch."),
    }


def gate(case: Case) -> dict[str, Any]:
    """The case with its errors, and whether they pass."""
    inputs = case.inputs(DEVICE)
    result = case.ours(inputs, impl="triton")
    checks = case.check(inputs, result)
    for check in checks:
        print(f"  {case.name}  {check}", flush=True)
    return {
        **described(case),
        "flops": case.flops(),
        "traffic_bytes": case.traffic(inputs, result),
        "checks": [check.as_json() for check in checks],
        "correct": all(check.passed for check in checks),
    }


def survived(
    case: Case, part: Callable[..., dict[str, Any]], *arguments: Any, found: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What ``part`` finds of a case, beside what was ``found``; an exception is a red entry and not the end of the run."""
    before = {**described(case), "flops": case.flops(), "traffic_bytes": 0, "checks": []} if found is None else found
    try:
        return before | part(case, *arguments)
    except Exception as error:
        told_of = f"{type(error).__name__}: {told(error)}"
        print(f"  {case.name}  FAILED: {told_of}", flush=True)
        if usable(DEVICE):
            torch.cuda.empty_cache()
        return before | {"correct": False, "error": told_of}


def calls_of(case: Case, inputs: dict[str, Any], compiled: bool) -> dict[str, Call]:
    """Every provider's call by name."""
    formula = case.formula()
    calls: dict[str, Call] = {"ours": lambda: case.ours(inputs, impl="triton"), "eager": lambda: formula(**inputs)}
    if compiled:
        # Fresh for each case: dynamo gives up on a function that it has compiled for many shapes.
        torch._dynamo.reset()
        fast = torch.compile(formula, dynamic=False)
        calls["compiled"] = lambda: fast(**inputs)
    if not isinstance(case, AttentionCase):
        calls["portable"] = lambda: case.ours(inputs, impl="portable")
    return {**calls, **case.rivals(inputs)}


def runnable(calls: dict[str, Call], timer: GpuTimer) -> tuple[dict[str, int], dict[str, str]]:
    """Extra bytes of the providers that can run here, and why the others cannot."""
    extra, skipped = {}, {}
    for name, call in calls.items():
        try:
            call()  # compiles, and fills the caches of libraries
            extra[name] = timer.extra_bytes(call)
        except Exception as error:  # out of memory, no such backend, a compiler's own kinds: all are findings
            if name == "ours":
                raise
            skipped[name] = f"{type(error).__name__}: {told(error)}"
        if name in skipped:
            torch.cuda.empty_cache()
    return extra, skipped


def measure(case: Case, timer: GpuTimer, rounds: int, compiled: bool, copy: float) -> dict[str, Any]:
    """Times, memory and ratios of one case, to join what ``gate`` found."""
    inputs = case.inputs(DEVICE)
    calls = calls_of(case, inputs, compiled)
    extra, skipped = runnable(calls, timer)
    calls = {name: calls[name] for name in extra}
    one_round = sum(timer.wall_seconds(call) for call in calls.values()) + 2e-3 * len(calls)
    rounds = max(LEAST_ROUNDS, min(rounds, int(BUDGET / (2 * one_round))))
    times = timer.interleaved(calls, rounds)
    traffic, flops = case.traffic(inputs, case.ours(inputs, impl="triton")), case.flops()
    providers = {}
    for name, taken in times.items():
        moved, done = traffic, flops
        if name in MAP_FREE and isinstance(case, AttentionCase):
            moved, done = case.plain_traffic(inputs), case.plain_flops(inputs)
        device = percentiles(taken.device)
        providers[name] = {
            "device_seconds": device,
            "wall_seconds": percentiles(taken.wall),
            "extra_bytes": extra[name],
            "gb_per_second": moved / device["p50"] * 1e-9,
            "tflop_per_second": done / device["p50"] * 1e-12,
        }
    ratios = targets.ratios(times, extra, traffic, copy)
    return {"rounds": rounds, "providers": providers, "skipped": skipped, "ratios": ratios}


def kept(out: Path, now: dict[str, Any], ops: list[str]) -> list[dict[str, Any]]:
    """Cases of other ops from an earlier run on the same commit, GPU and versions."""
    before = earlier(out, now) or {"cases": []}
    return [case for case in before["cases"] if case["op"] not in ops]


@torch.no_grad()
def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = shapes.cases()
    ops = list(dict.fromkeys(case.op for case in every))
    parser.add_argument("--out", type=Path, default=OUT, help=f"default {OUT}")
    parser.add_argument("--only", nargs="+", choices=ops, default=ops, metavar="OP", help=f"of {', '.join(ops)}")
    parser.add_argument("--quick", action="store_true", help="only the shapes of the targets, few rounds")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes most of the time"
    )
    parser.add_argument("--profile", action="store_true", help="note each kernel's registers, shared memory and spills")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu: no GPU that torch can use; `python -m bench cpu` measures a CPU", file=sys.stderr)
        return 2

    arch = architecture(torch.device("cuda"))
    report: dict[str, Any] = {"environment": environment() | {"architecture": arch}}
    timer = GpuTimer()
    report["roofline"] = roofline = timer.roofline()
    others = kept(arguments.out, report["environment"], arguments.only)
    print(f"{report['environment']['gpu']}: {json.dumps(roofline)}")
    if arguments.profile and arch in resources.CHIPS:
        rows = resources.measure(resources.jobs_of(arguments.only, [arch]))
        report["resources"] = [{**vars(row), "faults": row.faults()} for row in rows]
        print(resources.table(rows))
    elif arguments.profile:
        print(f"gpu: --profile knows {', '.join(resources.CHIPS)}, and this GPU is {arch}")

    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    results: list[dict[str, Any]] = []
    red = []
    for op in arguments.only:
        chosen = [case for case in every if case.op == op and (case.core or not arguments.quick)]
        print(f"{op}: correctness")
        gated = [survived(case, gate) for case in chosen]
        results += gated
        if not all(entry["correct"] for entry in gated):
            red.append(op)
            print(f"{op}: wrong, so no speed is reported")
        else:
            for case, entry in zip(chosen, gated, strict=True):
                copy = roofline["copy_bytes_per_second"]
                compiled = case.core and not arguments.no_compile
                entry |= survived(case, measure, timer, rounds, compiled, copy, found=entry)
                if "error" in entry:
                    red.append(op)
                else:
                    print(summary(entry), flush=True)
                save(arguments.out, report, others + results)
        save(arguments.out, report, others + results)
        if not usable(DEVICE):
            print(
                f"{op}: the GPU answers no more, and the run ends here; go on with --only and the ops behind this one"
            )
            break
    for row in targets.judged(results):
        value = "not measured" if row["value"] is None else f"{row['value']:.3g}"
        print(f"{'met   ' if row['met'] else 'MISSED'}  {row['case']}: {row['target']} {value} ({row['bound']})")
    print(f"{arguments.out} written")
    return int(bool(red))


def save(out: Path, report: dict[str, Any], cases: list[dict[str, Any]]) -> None:
    """After every case, so that a run cut short leaves what it had."""
    write_json(out, {**report, "cases": cases, "targets": targets.judged(cases)})


def summary(entry: dict[str, Any]) -> str:
    """One case in a few lines."""
    lines = [f"  {entry['name']} ({entry['rounds']} rounds)"]
    for name, numbers in entry["providers"].items():
        device, wall = numbers["device_seconds"]["p50"] * 1e6, numbers["wall_seconds"]["p50"] * 1e6
        rates = f"{numbers['gb_per_second']:7.0f} GB/s {numbers['tflop_per_second']:6.1f} TFLOP/s"
        memory = f"{numbers['extra_bytes'] / 2**20:9.2f} MiB"
        lines.append(f"    {name:<11} device {device:10.1f} us  elapsed {wall:10.1f} us  {rates}  {memory}")
    lines += [f"    {name:<11} cannot run: {reason}" for name, reason in entry["skipped"].items()]
    return "\n".join(lines)
