"""Measure launch configurations on the GPU at hand and rewrite its rows of the launch table.

    python -m bench tune                           every op
    python -m bench tune --op propagate_attention

For each op, element size, head dim and number of keys, every candidate that compiles without spilling and passes the
correctness gate is timed, all in turns, on the shapes of `python -m bench gpu`. A candidate replaces the present
configuration when it is at least 2 % faster. Rows of other chips stay as they are.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch

from bench import resources, shapes
from bench.cases import AttentionCase, Case
from bench.record import write_atomically
from bench.timing import GpuTimer, median_ratio
from lotts.kernels import launch

Config = dict[str, int]
Table = dict[str, dict[str, list[dict[str, Any]]]]

UNBOUNDED = 1_000_000_000
#: How much faster a candidate must be: less than this is noise.
WORTH = 0.98
ROUNDS = 20


@dataclass(frozen=True)
class Group:
    """One row of the table, and the cases that speak for it."""

    op: str
    bits: int
    head_dim: int
    keys: int
    cases: tuple[Case, ...]


def candidates(op: str) -> list[Config]:
    """Configurations worth trying."""
    if op == "contrast_attention":
        choices = {
            "BLOCK_N": (16, 32, 64, 128),
            "BLOCK_L": (16, 32, 64, 128),
            "num_warps": (4, 8),
            "num_stages": (1, 2),
        }
    elif op == "propagate_attention":
        choices = {
            "BLOCK_N": (32, 64, 128),
            "BLOCK_M": (16, 32, 64, 128),
            "num_warps": (4, 8),
            "num_stages": (1, 2, 3, 4),
        }
    else:
        choices = {"BLOCK": (256, 512, 1024, 2048, 4096), "num_warps": (1, 2, 4, 8), "num_stages": (1,)}
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def groups(op: str) -> list[Group]:
    """The rows to tune: each shape of the runner's core cases, in both element sizes, at each bound of the table."""
    core = [case for case in shapes.cases() if case.op == op and case.core]
    attention = [case for case in core if isinstance(case, AttentionCase)]
    if not attention:
        sizes = (32,) if op == "philox_normal" else (16, 32)
        return [Group(op, bits, 0, 0, tuple(_in_dtype(case, bits) for case in core)) for bits in sizes]
    found = []
    for bits, (head_dim, dim) in itertools.product((16, 32), ((64, 64), (128, 128), (256, 160))):
        cases = [
            dataclasses.replace(_in_dtype(case, bits), dim=dim) for case in attention if not case.joint or dim == 128
        ]
        if op == "contrast_attention":
            found.append(Group(op, bits, head_dim, UNBOUNDED, tuple(cases)))
            continue
        few = [case for case in cases if case.keys <= 1024]
        found.append(Group(op, bits, head_dim, 1024, tuple(few)))
        found.append(Group(op, bits, head_dim, UNBOUNDED, tuple(case for case in cases if case.keys > 1024)))
    return found


def _in_dtype(case: Any, bits: int) -> Any:
    return case if case.dtype.itemsize * 8 == bits else dataclasses.replace(case, dtype=torch.float32)


@contextmanager
def using(op: str, config: Config) -> Iterator[None]:
    """Within the context ``op`` is launched, and compiled, with ``config``."""
    original = launch.config

    def chosen(asked: str, *where: Any, **bounds: Any) -> Config:
        return dict(config) if asked == op else original(asked, *where, **bounds)

    launch.config = chosen
    try:
        yield
    finally:
        launch.config = original


def obstacle(group: Group, config: Config, arch: str, device: str) -> str | None:
    """Why a candidate is out: it does not compile, spills, does not fit, or is wrong."""
    with using(group.op, config):
        lower = max((bound for bound in (0, 64, 128, 256) if bound < group.head_dim), default=-1)
        for variant in resources.variants(group.op):
            if variant.bits == group.bits and lower < variant.head_dim <= group.head_dim:
                faults = resources.needs(variant, arch).faults()
                if faults:
                    return f"{variant.name}: {faults[0]}"
        for case in group.cases:
            inputs = case.inputs(device)
            try:
                checks = case.check(inputs, case.ours(inputs, impl="triton"))
            except Exception as error:  # the launch's own kinds of error: too many resources, too little memory
                return f"{case.name}: {error}"
            if not all(check.passed for check in checks):
                return f"{case.name}: {'; '.join(map(str, checks))}"
    return None


def seconds(
    group: Group, configs: list[Config], timer: GpuTimer, device: str, rounds: int = ROUNDS
) -> list[list[list[float]]]:
    """Device seconds, [case][config][round], the configurations taking turns."""
    found = []
    for case in group.cases:
        inputs = case.inputs(device)

        def call(config: Config, case: Case = case, inputs: dict[str, Any] = inputs) -> None:
            with using(group.op, config):
                case.ours(inputs, impl="triton")

        calls: dict[str, Callable[[], None]] = {
            str(i): lambda c=config, f=call: f(c) for i, config in enumerate(configs)
        }
        times = timer.interleaved(calls, rounds)
        found.append([times[name].device for name in calls])
    return found


def best(configs: list[Config], times: list[list[list[float]]]) -> tuple[Config, float]:
    """The configuration with the least time relative to the first (the present one), and that ratio, over all cases."""
    ratios = [geometric_mean(median_ratio(case[i], case[0]) for case in times) for i in range(len(configs))]
    index = min(range(len(configs)), key=ratios.__getitem__)
    return (configs[index], ratios[index]) if ratios[index] <= WORTH else (configs[0], 1.0)


def with_row(table: Table, arch: str, group: Group, config: Config) -> Table:
    """The table with one row of ``arch`` set; rows are sorted, the narrowest first, as ``launch.config`` reads them."""
    row = {"bits": group.bits, "head_dim": group.head_dim, "keys": group.keys, "config": config}
    op = table.get(group.op, {})
    others = [r for r in op.get(arch, []) if _bounds(r) != _bounds(row)]
    return {**table, group.op: {**op, arch: sorted([*others, row], key=_bounds)}}


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


def tune(group: Group, arch: str, timer: GpuTimer, device: str) -> Config:
    """The configuration for one row; says what it finds.

    Raises:
        RuntimeError: no configuration is right and free of spills.
    """
    present = launch.config(group.op, arch, group.bits, group.head_dim, group.keys)
    configs, out = [], 0
    for config in [present, *(c for c in candidates(group.op) if c != present)]:
        why = obstacle(group, config, arch, device)
        if why is None:
            configs.append(config)
        else:
            out += 1
            if config == present:
                print(f"  the present {config} is out: {why}")
    where = f"{group.op}, {group.bits} bits, head dim <= {group.head_dim}, keys <= {group.keys}"
    if not configs:
        raise RuntimeError(f"{where}: no candidate is right and free of spills")
    # Where the present configuration is out, the first valid one stands in as the yardstick.
    times = seconds(group, configs, timer, device)
    config, ratio = best(configs, times)
    least = ", ".join(f"{median(case[configs.index(config)]) * 1e6:.1f} us" for case in times)
    print(f"{where}: {config}, {ratio:.3f} of {configs[0]} ({least}; {len(configs)} tried, {out} out)", flush=True)
    return config


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(dict.fromkeys(case.op for case in shapes.cases()))
    parser.add_argument("--op", nargs="+", choices=names, default=names, metavar="OP", help=f"of {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=launch.TABLE, help="default: the table that ships")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("tune: no GPU that torch can use", file=sys.stderr)
        return 2
    arch = launch.architecture(torch.device("cuda"))
    if arch not in resources.CHIPS:
        print(f"tune: knows {', '.join(resources.CHIPS)}, and this GPU is {arch}", file=sys.stderr)
        return 2
    timer = GpuTimer()
    table = json.loads(launch.TABLE.read_text(encoding="utf-8"))
    for op in arguments.op:
        for group in groups(op):
            table = with_row(table, arch, group, tune(group, arch, timer, "cuda"))
            # After every row, so that a run cut short leaves what it had.
            write_atomically(arguments.out, formatted(table))
    print(f"{arguments.out} written")
    return 0
