"""Compile every kernel ahead of time, with no GPU, and read from the machine code what it needs.

    python -m bench resources                     all variants of all ops, for sm_80, sm_90, sm_100 and gfx942
    python -m bench resources --arch sm_90 --op propagate_attention
    python -m bench resources --in-turn           a quarter of it: each variant for one chip, every op for every chip

A row fails when the kernel spills registers, needs more shared memory than the chip gives a block, was miscompiled as far as
its matrix descriptors tell, or, where its products belong on tensor cores, has none of the chip's instructions for them. Exit
status 1 if any row fails. Triton keeps what it compiled in its cache, so that a second run takes seconds.
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lotts.kernels
from bench import descriptors
from bench.record import told
from lotts.kernels.dispatch import INTERPRETED

KIB = 1024
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class Chip:
    """Shared memory a block may use, and the tensor-core instruction that products in half precision should become."""

    shared: int
    tensor_cores: str


CHIPS = {
    "sm_80": Chip(163 * KIB, r"HMMA"),
    "sm_86": Chip(99 * KIB, r"HMMA"),
    "sm_89": Chip(99 * KIB, r"HMMA"),
    "sm_90": Chip(227 * KIB, r"HGMMA"),
    "sm_100": Chip(227 * KIB, r"UTC\wMMA"),
    "sm_120": Chip(99 * KIB, r"HMMA"),
    "gfx942": Chip(64 * KIB, r"v_mfma_\w+"),
}
#: Columns of tensor memory, where the products of sm_100 gather.
TENSOR_MEMORY = 512


@dataclass(frozen=True)
class Needs:
    """What one kernel needs on one chip. Registers are a thread's, ``stack`` and ``spills`` too: bytes and instructions.

    ``spills`` are loads and stores of local memory (LDL and STL; on gfx942 the spilled registers), ``shared`` is in bytes
    a block, and ``dots`` says whether tensor cores should do the products. ``descriptors``: those of sm_90's products that
    cannot be right (``bench.descriptors``). ``error`` is set where it does not compile.
    """

    kernel: str
    op: str
    arch: str
    dots: bool
    registers: int = 0
    spills: int = 0
    stack: int = 0
    shared: int = 0
    tensor_memory: int = 0
    tensor_cores: int = 0
    descriptors: int = 0
    error: str | None = None

    def faults(self) -> list[str]:
        """Why this kernel must not ship; nothing when all is well."""
        if self.error is not None:
            return [f"does not compile: {self.error}"]
        chip, found = CHIPS[self.arch], []
        if self.spills or self.stack:
            found.append(f"spills: {self.spills} loads and stores, {self.stack} bytes of stack")
        if self.shared > chip.shared:
            found.append(f"shared memory: {self.shared} bytes, {self.arch} has {chip.shared}")
        if self.tensor_memory > TENSOR_MEMORY:
            found.append(f"tensor memory: {self.tensor_memory} columns, {self.arch} has {TENSOR_MEMORY}")
        if self.dots and not self.tensor_cores:
            found.append(f"no tensor-core instruction like {chip.tensor_cores}")
        if self.descriptors:
            found.append(f"miscompiled: {self.descriptors} matrix descriptors that cannot be right")
        return found


def parse_nvidia(listing: str, arch: str) -> dict[str, int]:
    """Numbers of ``Needs`` from what ``cuobjdump -res-usage -sass`` prints."""
    found = {name: int(re.search(rf"\b{name}:(\d+)", listing)[1]) for name in ("REG", "STACK", "LOCAL")}  # type: ignore[index]
    return {
        "registers": found["REG"],
        "stack": found["STACK"] + found["LOCAL"],
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", listing)),
        "tensor_cores": len(re.findall(rf"\b{CHIPS[arch].tensor_cores}\b", listing)),
    }


def parse_amd(assembly: str, arch: str) -> dict[str, int]:
    """Numbers of ``Needs`` from the metadata at the end of AMD's assembly."""
    # Spilled scalar registers are not counted: they go to lanes of vector registers, not to memory.
    names = ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    found = {name: int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1]) for name in names}  # type: ignore[index]
    return {
        "registers": found["vgpr_count"],
        "stack": found["private_segment_fixed_size"],
        "spills": found["vgpr_spill_count"],
        "tensor_cores": len(re.findall(rf"\b{CHIPS[arch].tensor_cores}\b", assembly)),
    }


def needs(op: str, variant: Any, arch: str) -> Needs:
    """Compile a ``lotts.kernels.launch.Variant`` of ``op`` for ``arch`` and read what it needs."""
    try:
        compiled = variant.compile(arch)
    except Exception as error:  # the compiler raises many kinds; each is a row that fails, and the others go on
        return Needs(variant.name, op, arch, variant.dots, error=told(error))
    if arch.startswith("gfx"):
        numbers = parse_amd(compiled.asm["amdgcn"], arch)
    else:
        listing = _disassembled(compiled.asm["cubin"])
        numbers = parse_nvidia(listing, arch) | {
            "descriptors": len(descriptors.faults(listing, compiled.metadata.shared))
        }
    numbers |= {"shared": compiled.metadata.shared, "tensor_memory": getattr(compiled.metadata, "tmem_size", None) or 0}
    return Needs(variant.name, op, arch, variant.dots, error=None, **numbers)


def _disassembled(cubin: bytes) -> str:
    """By the cuobjdump that Triton ships."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ops() -> list[str]:
    """Names of the ops that have Triton kernels: the folders of lotts.kernels with a ``triton.py``."""
    folders = [info.name for info in pkgutil.iter_modules(lotts.kernels.__path__) if info.ispkg]
    return [name for name in folders if importlib.util.find_spec(f"lotts.kernels.{name}.triton")]


@cache
def variants(op: str) -> list[Any]:
    """The specialisations that ``op`` names."""
    return importlib.import_module(f"lotts.kernels.{op}.triton").variants()


def _job(job: tuple[str, int, str]) -> Needs:
    op, index, arch = job
    return needs(op, variants(op)[index], arch)


def jobs_of(names: list[str], archs: list[str], in_turn: bool = False) -> list[tuple[str, int, str]]:
    """(op, index of its variant, architecture) to compile: all, or each variant for one architecture, in turn.

    In turn every op still meets every architecture: one with fewer variants than there are architectures compiles all for all.
    """
    return [
        (op, index, arch)
        for op in names
        for index in range(len(variants(op)))
        for turn, arch in enumerate(archs)
        if not in_turn or len(variants(op)) < len(archs) or index % len(archs) == turn
    ]


def measure(jobs: list[tuple[str, int, str]], processes: int | None = None) -> list[Needs]:
    """What variants of ops need on their architectures; ``processes`` None means one a core."""
    processes = min(processes or os.cpu_count() or 1, len(jobs))
    if processes <= 1:
        return [_job(job) for job in jobs]
    # Spawned, not forked: a fork of a process that has used threads or a GPU may hang.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.map(_job, jobs, chunksize=1)


def table(rows: list[Needs]) -> str:
    """One line a kernel and chip; faults follow theirs."""
    header = ("kernel", "arch", "registers", "spills", "stack", "shared", "of", "tensor cores")
    cells = [header] + [
        (r.kernel, r.arch, *map(str, (r.registers, r.spills, r.stack, r.shared, CHIPS[r.arch].shared, r.tensor_cores)))
        for r in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = []
    for line, row in zip(cells, [None, *rows], strict=True):
        texts = (
            text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join(texts))
        lines += [f"    FAILS: {fault}" for fault in row.faults()] if row else []
    return "\n".join(lines)


def markdown(rows: list[Needs]) -> str:
    """One line a kernel, a column a chip: registers, bytes of shared memory, tensor-core instructions."""
    archs = list(dict.fromkeys(row.arch for row in rows))
    by_kernel: dict[str, dict[str, Needs]] = {}
    for row in rows:
        by_kernel.setdefault(row.kernel, {})[row.arch] = row
    lines = [f"| kernel | {' | '.join(archs)} |", f"|---|{'--:|' * len(archs)}"]
    for kernel, chips in by_kernel.items():
        cells = [
            "**fails**"
            if chips[arch].faults()
            else f"{chips[arch].registers}, {chips[arch].shared}, {chips[arch].tensor_cores}"
            for arch in archs
        ]
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    return "\n".join(lines)


def judge(rows: list[Needs]) -> int:
    """The exit status: 1 if any kernel must not ship."""
    return int(any(row.faults() for row in rows))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench resources", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", choices=CHIPS, default=list(ARCHITECTURES), metavar="ARCH")
    parser.add_argument("--op", nargs="+", help="only these ops (default: all)")
    parser.add_argument(
        "--in-turn", action="store_true", help="compile each kernel for one chip only, the chips in turn"
    )
    parser.add_argument("--jobs", type=int, help="processes that compile (default: one a core)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, one object a kernel and chip")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table, one line a kernel")
    arguments = parser.parse_args(argv)
    if INTERPRETED:
        print("resources: kernels cannot be compiled under TRITON_INTERPRET=1; unset it", file=sys.stderr)
        return 2
    unknown = set(arguments.op or ()) - set(ops())
    if unknown:
        parser.error(f"--op: expected some of {', '.join(ops())}, got {', '.join(sorted(unknown))}")
    rows = measure(jobs_of(arguments.op or ops(), arguments.arch, arguments.in_turn), arguments.jobs)
    if arguments.json:
        print(json.dumps([{**asdict(row), "faults": row.faults()} for row in rows], indent=1))
    else:
        print(markdown(rows) if arguments.markdown else table(rows))
    return judge(rows)
