"""How kernels are launched: block sizes by chip and shape, from a table that ships with the package.

``python -m bench tune`` measures candidates on the GPU at hand and rewrites the table. Nothing is tuned at run time, which
would cost start-up and make results differ from machine to machine.
"""

import functools
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("launch_table.json")

Config = dict[str, Any]


def cdiv(count: int, size: int) -> int:
    """Blocks of ``size`` that hold ``count``. (triton.cdiv, called by Python, takes microseconds.)"""
    return -(-count // size)


def next_power_of_2(number: int) -> int:
    """The least power of two that is no less than ``number``, which is positive."""
    return 1 << (number - 1).bit_length()


@functools.cache
def architecture(device: torch.device) -> str:
    """``"sm_90"``, ``"gfx942"``, ...; ``"interpreter"`` for the CPU."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def dot_precision(device: torch.device | str) -> str:
    """How float32 products are made: by three TF32 products on NVIDIA's tensor cores, whose sum is about as exact.

    Args:
        device: a device, or the name of an architecture.
    """
    arch = device if isinstance(device, str) else architecture(device)
    return "tf32x3" if arch.startswith("sm_") else "ieee"


def config(op: str, arch: str, bits: int, head_dim: int = 0, keys: int = 0) -> Config:
    """Block sizes, ``num_warps`` and ``num_stages`` for ``op``, and ``PRECISION`` where it is not ``dot_precision``'s.

    Rows of the table carry upper bounds: the first row of the architecture (or of ``"default"``, which follows) whose
    ``head_dim`` and ``keys`` are no smaller than what is asked, with the same ``bits`` (16 or 32) an element, is taken.

    Raises:
        LookupError: no row fits.
    """
    return dict(_found(op, arch, bits, head_dim, keys))


@functools.lru_cache(maxsize=1024)
def _found(op: str, arch: str, bits: int, head_dim: int, keys: int) -> Config:
    for name in (arch, "default"):
        for row in table().get(op, {}).get(name, []):
            if row["bits"] == bits and head_dim <= row["head_dim"] and keys <= row["keys"]:
                return row["config"]
    raise LookupError(f"{op}: no launch configuration for {bits} bits, head dim {head_dim}, {keys} keys in {TABLE}")


@functools.cache
def table() -> dict[str, dict[str, list[dict]]]:
    """The shipped table: op -> architecture -> rows {"bits", "head_dim", "keys", "config"}, narrowest first."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def on_device(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device: make it the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel, described well enough to compile it where there is no GPU.

    Args:
        op, bits, head_dim, keys: what ``config`` is asked for; its block sizes join ``constexprs``.
        kernel: the ``triton.jit`` function.
        pointers: dtype of each pointer argument, such as "fp16".
        floats: names of float arguments; what is left over are 32-bit integers, as strides and sizes are.
        constexprs: compile-time arguments.
        dots: whether tensor cores should do its products.
    """

    name: str
    op: str
    kernel: Any
    pointers: dict[str, str]
    constexprs: dict[str, Any]
    bits: int
    head_dim: int = 0
    keys: int = 0
    floats: tuple[str, ...] = ()
    dots: bool = False

    def compile(self, arch: str) -> Any:
        """The compiled kernel for ``arch`` ("sm_90", "gfx942"), with its assembly in ``.asm``; needs no GPU.

        Raises:
            RuntimeError: under TRITON_INTERPRET=1, where kernels are Python.
        """
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        if not hasattr(self.kernel, "cache_key"):
            raise RuntimeError("expected compilable kernels: start Python without TRITON_INTERPRET=1")
        chosen = config(self.op, arch, self.bits, self.head_dim, self.keys)
        constexprs = self.constexprs | {name: size for name, size in chosen.items() if name.isupper()}
        if "PRECISION" in self.kernel.arg_names:
            constexprs.setdefault("PRECISION", dot_precision(arch))
        options = {name: value for name, value in chosen.items() if not name.isupper()}
        signature, attributes = {}, {}
        for index, name in enumerate(self.kernel.arg_names):
            if name in constexprs:
                signature[name] = "constexpr"
            elif name in self.pointers:
                signature[name] = f"*{self.pointers[name]}"
                # As at launch, where Triton sees that tensors are aligned to 16 bytes and strides are multiples of 16.
                attributes[(index,)] = [["tt.divisibility", 16]]
            elif name in self.floats:
                signature[name] = "fp32"
            else:
                signature[name] = "i32"
                if name.startswith("stride"):
                    attributes[(index,)] = [["tt.divisibility", 16]]
        target = GPUTarget("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else GPUTarget("hip", arch, 64)
        source = ASTSource(self.kernel, signature, constexprs, attributes)
        return triton.compile(source, target=target, options=options)
