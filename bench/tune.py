"""Measure launch configurations on the GPU at hand and rewrite its rows of the launch table.

    python -m bench tune                           every op
    python -m bench tune --op propagate_attention --bits 16 --head-dim 64 128

For each op, element size, head dim and number of keys, every candidate that passes the correctness gate is timed, all in
turns, on the shapes of `python -m bench gpu`. The fastest that does not spill replaces the present configuration when it is at
least 2 % faster. Candidates are compiled and checked by several processes at once; rows of other chips stay as they are.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch

from bench import resources, shapes
from bench.cases import AttentionCase, Call, Case
from bench.processes import LOST, Processes
from bench.record import write_atomically
from bench.timing import GpuTimer, median_ratio, usable
from lotts.kernels import launch

Config = dict[str, Any]
Table = dict[str, dict[str, list[dict[str, Any]]]]

UNBOUNDED = 1_000_000_000
#: Tokens of prompts that contrast_attention holds as a whole, and of a prompt that passes in tiles.
HELD, LONG = 80, 512
#: How much faster a candidate must be: less than this is noise.
WORTH = 0.98
ROUNDS = 20
#: Of the fastest candidates so many are looked through for spills.
FASTEST = 8


@dataclass(frozen=True)
class Group:
    """One row of the table, under the name ``row``, and the cases of ``op`` that speak for it."""

    op: str
    row: str
    bits: int
    head_dim: int
    keys: int
    cases: tuple[Case, ...]


def candidates(group: Group) -> list[Config]:
    """Configurations worth trying; float32 tiles fill registers twice as fast, so smaller ones join them."""
    op, bits = group.op, group.bits
    rows = (64, 128) if bits == 16 else (16, 32, 64)
    keys = (32, 64, 128) if bits == 16 else (16, 32, 64)
    choices: dict[str, tuple[int, ...]]
    if op == "contrast_attention" and group.keys <= HELD:
        # Prompts that are held as a whole, in two tiles.
        choices = {"BLOCK_N": rows, "BLOCK_L": (HELD - 16,), "TAIL": (16,), "num_warps": (4, 8), "num_stages": (1, 2)}
    elif op == "contrast_attention":
        choices = {"BLOCK_N": (32, *rows), "BLOCK_L": (16, *keys), "num_warps": (4, 8), "num_stages": (1, 2)}
    elif op in ("propagate_attention", "region_attention"):
        choices = {"BLOCK_N": rows, "BLOCK_M": keys, "num_warps": (4, 8), "num_stages": (1, 2, 3)}
    elif op == "norm_rope":
        choices = {"BLOCK_N": (4, 8, 16), "HEADS": (2, 4, 8, 12), "num_warps": (2, 4, 8), "num_stages": (1,)}
    else:
        calls = (1, 2) if bits == 16 else (1,)
        choices = {"BLOCK": (512, 1024, 2048), "CALLS": calls, "num_warps": (1, 2, 4, 8), "num_stages": (1,)}
    made = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    return [config for i, config in enumerate(made) if config not in made[:i]]


def groups(op: str) -> list[Group]:
    """The rows to tune: the shapes of the runner's core cases, in both element sizes, at each bound of the table."""
    core = [case for case in shapes.cases() if case.op == op and case.core]
    if op == "region_attention":
        bounds = itertools.product((16, 32), ((64, 64), (128, 128), (256, 160)))
        return [
            Group(op, op, bits, bound, UNBOUNDED, tuple(dataclasses.replace(_in_dtype(c, bits), dim=dim) for c in core))
            for bits, (bound, dim) in bounds
        ]  # fmt: skip
    if op == "norm_rope":
        return [Group(op, op, bits, 128, 0, tuple(_in_dtype(case, bits) for case in core)) for bits in (16, 32)]
    attention = [case for case in core if isinstance(case, AttentionCase)]
    if not attention:
        sizes = (32,) if op == "philox_normal" else (16, 32)
        return [Group(op, op, bits, 0, 0, tuple(_in_dtype(case, bits) for case in core)) for bits in sizes]
    found = []
    for bits, (head_dim, dim) in itertools.product((16, 32), ((64, 64), (128, 128), (256, 160))):
        cases = [dataclasses.replace(_in_dtype(case, bits), dim=dim) for case in attention]
        plain = tuple(case for case in cases if not case.joint)
        if op == "contrast_attention":
            if (bits, head_dim) == (16, 64):
                found.append(Group(op, op, bits, head_dim, HELD, plain))
                plain = tuple(dataclasses.replace(case, text=LONG) for case in plain)
            found.append(Group(op, op, bits, head_dim, UNBOUNDED, plain))
            continue
        found.append(Group(op, op, bits, head_dim, 1024, tuple(case for case in plain if case.keys <= 1024)))
        found.append(Group(op, op, bits, head_dim, UNBOUNDED, tuple(case for case in plain if case.keys > 1024)))
        if bits == 16 and head_dim <= 128:
            # The transformers with a joint sequence have these; their kernel has rows of its own.
            joint = tuple(case for case in cases if case.joint)
            found.append(Group(op, f"{op}_wide", bits, head_dim, UNBOUNDED, joint))
    return found


def _in_dtype(case: Any, bits: int) -> Any:
    return case if case.dtype.itemsize * 8 == bits else dataclasses.replace(case, dtype=torch.float32)


@contextlib.contextmanager
def using(row: str, config: Config) -> Iterator[None]:
    """Within the context what asks for ``row`` of the table is launched, and compiled, with ``config``."""
    original = launch.config

    def chosen(asked: str, *where: Any, **bounds: Any) -> Config:
        return dict(config) if asked == row else original(asked, *where, **bounds)

    launch.config = chosen
    try:
        yield
    finally:
        launch.config = original


def spills(job: tuple[str, str, int, int, Config, str]) -> str | None:
    """Why a candidate must not ship, from its machine code: it does not compile, spills or does not fit."""
    op, row, bits, head_dim, config, arch = job
    # What lies above the next narrower row is this row's to serve.
    lower = max((group.head_dim for group in groups(op) if group.row == row and group.head_dim < head_dim), default=-1)
    with using(row, config):
        for variant in resources.variants(op):
            if variant.op == row and variant.bits == bits and lower < variant.head_dim <= head_dim:
                faults = resources.needs(op, variant, arch).faults()
                if faults:
                    return f"{variant.name}: {faults[0]}"
    return None


def wrong(job: tuple[Group, Config, str]) -> str | None:
    """Why a candidate's results do not pass the gate, or cannot be had; leaves what it compiled in Triton's cache.

    ``LOST`` says nothing of this candidate: one before it in this process has left no GPU to try it on.
    """
    group, config, device = job
    if not usable(device):
        return LOST
    with using(group.row, config):
        for case, given in zip(group.cases, inputs_of(group, device), strict=True):
            try:
                checks = case.check(given, case.ours(given, impl="triton"))
            except Exception as error:  # the launch's own kinds of error: too many resources, too little memory
                return f"{case.name}: {error}"
            if not all(check.passed for check in checks):
                return f"{case.name}: {'; '.join(map(str, checks))}"
    return None


@functools.lru_cache(maxsize=1)
def inputs_of(group: Group, device: str) -> list[dict[str, Any]]:
    """What each case of a group takes; a process has one group at a time."""
    return [case.inputs(device) for case in group.cases]


def seconds(
    group: Group, configs: list[Config], inputs: list[dict[str, Any]], timer: GpuTimer, rounds: int = ROUNDS
) -> list[list[list[float]]]:
    """Device seconds, [case][config][round], the configurations taking turns."""

    def launched(case: Case, given: dict[str, Any], config: Config) -> None:
        with using(group.row, config):
            case.ours(given, impl="triton")

    found = []
    for case, given in zip(group.cases, inputs, strict=True):
        calls: dict[str, Call] = {str(i): partial(launched, case, given, config) for i, config in enumerate(configs)}
        times = timer.device_only(calls, rounds)
        found.append([times[name] for name in calls])
    return found


def ranked(times: list[list[list[float]]]) -> list[tuple[float, int]]:
    """(time relative to the first configuration's over all cases, index), the fastest first."""
    ratios = [geometric_mean(median_ratio(case[i], case[0]) for case in times) for i in range(len(times[0]))]
    return sorted((ratio, i) for i, ratio in enumerate(ratios))


def with_row(table: Table, arch: str, group: Group, config: Config) -> Table:
    """The table with one row of ``arch`` set; rows are sorted, the narrowest first, as ``launch.config`` reads them."""
    row = {"bits": group.bits, "head_dim": group.head_dim, "keys": group.keys, "config": config}
    chips = table.get(group.row, {})
    others = [r for r in chips.get(arch, []) if _bounds(r) != _bounds(row)]
    return {**table, group.row: {**chips, arch: sorted([*others, row], key=_bounds)}}


def _bounds(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["bits"], row["head_dim"], row["keys"]


def formatted(table: Table) -> str:
    """JSON with one row a line, so that a change of one row is a change of one line."""
    ops = []
    for op, chips in table.items():
        blocks = []
        for chip, rows in chips.items():
            lines = ",\n".join(f"   {json.dumps(row)}" for row in rows)
            blocks.append(f"  {json.dumps(chip)}: [\n{lines}\n  ]")
        ops.append(f" {json.dumps(op)}: {{\n" + ",\n".join(blocks) + "\n }")
    return "{\n" + ",\n".join(ops) + "\n}\n"


def tune(group: Group, arch: str, timer: GpuTimer, mapped: Callable[..., Iterable[str | None]], device: str) -> Config:
    """The configuration for one row, the present one where none will do; says what it finds.

    ``mapped`` is a ``map``, of a pool of processes or the plain one.
    """
    present = launch.config(group.row, arch, group.bits, group.head_dim, group.keys)
    # What a row says beside sizes, such as PRECISION, is a choice of arithmetic and stays.
    tried = [present, *(present | c for c in candidates(group) if present | c != present)]
    configs = []
    for config, why in zip(tried, mapped(wrong, [(group, config, device) for config in tried]), strict=True):
        if why is None:
            configs.append(config)
        elif config == present:
            # The first valid candidate is then the yardstick.
            print(f"  the present {config} is out: {why}")
    where = f"{group.row}, {group.bits} bits, head dim <= {group.head_dim}, keys <= {group.keys}"
    if not configs:
        print(f"{where}: no candidate is right; the row stays", flush=True)
        return present
    times = seconds(group, configs, inputs_of(group, device), timer)
    order = [(ratio, i) for ratio, i in ranked(times) if ratio <= WORTH or i == 0][:FASTEST]
    jobs = [(group.op, group.row, group.bits, group.head_dim, configs[i], arch) for _, i in order]
    for (ratio, i), spill in zip(order, mapped(spills, jobs), strict=True):
        least = ", ".join(f"{median(case[i]) * 1e6:.1f} us" for case in times)
        found = f"{configs[i]}, {ratio:.3f} of {configs[0]} ({least}; {len(configs)} of {len(tried)} timed)"
        if spill is None:
            print(f"{where}: {found}", flush=True)
            return configs[i]
        print(f"  {found} is out: {spill}", flush=True)
    print(f"{where}: what is faster spills; the row stays", flush=True)
    return present


@torch.no_grad()
def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(dict.fromkeys(case.op for case in shapes.cases()))
    parser.add_argument("--op", nargs="+", choices=names, default=names, metavar="OP", help=f"of {', '.join(names)}")
    parser.add_argument("--bits", nargs="+", type=int, choices=(16, 32), default=(16, 32), help="of an element")
    parser.add_argument("--head-dim", nargs="+", type=int, choices=(64, 128, 256), help="bounds of attention's rows")
    parser.add_argument("--jobs", type=int, help="processes that compile candidates (default: one a core)")
    parser.add_argument(
        "--out", type=Path, default=launch.TABLE, help="default: the table that ships; other rows of the file are kept"
    )
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("tune: no GPU that torch can use", file=sys.stderr)
        return 2
    arch = launch.architecture(torch.device("cuda"))
    if arch not in resources.CHIPS:
        print(f"tune: knows {', '.join(resources.CHIPS)}, and this GPU is {arch}", file=sys.stderr)
        return 2
    timer = GpuTimer()
    begun = arguments.out if arguments.out.is_file() else launch.TABLE
    table = json.loads(begun.read_text(encoding="utf-8"))
    with contextlib.closing(Processes(arguments.jobs)) as processes:
        for op in arguments.op:
            for group in groups(op):
                if group.bits not in arguments.bits or group.head_dim not in (arguments.head_dim or [group.head_dim]):
                    continue
                table = with_row(table, arch, group, tune(group, arch, timer, processes.map, "cuda"))
                # After every row, so that a run cut short leaves what it had.
                write_atomically(arguments.out, formatted(table))
    print(f"{arguments.out} written")
    return 0
