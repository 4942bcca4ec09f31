"""Compiles the variants of one op without a GPU and prints, as JSON, what each needs on each chip. Run as a script.

A process of its own, because kernels made under TRITON_INTERPRET=1 cannot be compiled.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import triton

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


def needs(compiled, arch: str) -> dict[str, int]:
    """Registers a thread, and how much of its memory they spill to."""
    if arch.startswith("gfx"):
        found = dict(re.findall(r"\.(\w+_count|private_segment_fixed_size):\s+(\d+)", compiled.asm["amdgcn"]))
        spilled = [found[name] for name in ("vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")]
        return {"registers": int(found["vgpr_count"]), "spilled": sum(map(int, spilled))}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        run = [str(CUOBJDUMP), "-res-usage", "-sass", cubin.name]
        listing = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", listing)[1]) for name in ("REG", "STACK", "LOCAL"))
    return {"registers": registers, "spilled": stack + local + len(re.findall(r"\b(?:LDL|STL)\b", listing))}


def main(op: str) -> None:
    variants = importlib.import_module(f"lotts.kernels.{op}.triton").variants()
    print(json.dumps({v.name: {arch: needs(v.compile(arch), arch) for arch in ARCHITECTURES} for v in variants}))


if __name__ == "__main__":
    main(sys.argv[1])
