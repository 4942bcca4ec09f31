"""Whether sm_90's matrix descriptors can be right: kernels that the assembler miscompiled, told without a GPU.

wgmma takes an operand in shared memory by a descriptor of 64 bits: where it begins, how far apart its parts lie, how it is swizzled.
They are put together in uniform registers, whose numbers hardly depend on the thread, let alone on the data. So these are
followed through the machine code here, from top to bottom, each loop once, and every descriptor that a product takes is
compared with what it can be at all. What cannot be followed is not judged.

Why: ptxas 12.8 (Triton 3.6) made descriptors of the byte where shared memory begins instead of its 16th, in the last, ragged
tile of propagate_attention alone; a GPU then left keys out of the columns and of the softmax's denominator (docs/kernels.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

WORD = (1 << 32) - 1
#: Where a block's shared memory begins: what lies before is the driver's.
SHARED_START = 0x400
#: The upper words there are: rows of 128, 64 and 32 bytes, swizzled as wide, each eight of them one after the other.
UPPER = (0x40000040, 0x80000020, 0xC0000010)
#: Of an operand of eight rows alone, which has no next eight: their distance is 0.
SINGLE = (0x40000000, 0x80000000, 0xC0000000)


@dataclass(frozen=True)
class Descriptor:
    """What one product takes: lower and upper word, None where they could not be followed."""

    instruction: str
    lower: int | None
    upper: int | None

    def fault(self, shared: int) -> str | None:
        """Why it cannot be right in a block of ``shared`` bytes; None where it can."""
        single = self.instruction.startswith("HGMMA.64x8x")
        if self.upper is not None and self.upper not in UPPER and not (single and self.upper in SINGLE):
            return f"{self.instruction}: upper word {self.upper:#x}"
        if self.lower is not None:
            start = (self.lower & 0x3FFF) << 4
            if not SHARED_START <= start < SHARED_START + shared:
                return f"{self.instruction}: begins at {start:#x} of {SHARED_START:#x} to {SHARED_START + shared:#x}"
        return None


def faults(listing: str, shared: int) -> list[str]:
    """Descriptors that cannot be right in what cuobjdump or nvdisasm print of a kernel for sm_90."""
    return [fault for found in descriptors(listing) if (fault := found.fault(shared)) is not None]


def descriptors(listing: str) -> list[Descriptor]:
    """The descriptors of all products, in the order of the listing."""
    registers, found = _Registers(), []
    for text in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", listing):
        predicate, instruction = re.fullmatch(r"(@\S+\s+)?(.*)", text).groups()  # type: ignore[union-attr]
        if not instruction.startswith("HGMMA"):
            registers.run(instruction, certain=predicate is None)
            continue
        place = re.search(r"gdesc\[UR(\d+)\]", instruction)
        assert place is not None
        first = int(place[1])
        # With its left operand in registers a product takes one descriptor, the second of the four registers.
        in_registers = len(re.findall(r"\bR\d+\b", instruction[: place.start()])) > 1
        for low in (first + 2,) if in_registers else (first, first + 2):
            found.append(Descriptor(instruction.split()[0], registers[f"UR{low}"], registers[f"UR{low + 1}"]))
    return found


def _lut(x: int, y: int, z: int, table: int) -> int:
    """A bitwise function of three words by its truth table."""
    out = 0
    for row in range(8):
        if table >> row & 1:
            out |= (x if row & 4 else ~x) & (y if row & 2 else ~y) & (z if row & 1 else ~z)
    return out


#: Uniform instructions with one result and no carry.
PLAIN: dict[str, Callable[..., int]] = {
    "UMOV": lambda x: x,
    "ULEA": lambda x, y, by: (x << by) + y,
    "ULEA.HI": lambda x, y, high, by: ((high << 32 | x) << by >> 32) + y,
    "ULOP3.LUT": _lut,
    "USGXT.U32": lambda x, bits: x & ((1 << bits) - 1),
    "USHF.L.U32": lambda x, by, _: x << by,
    "USHF.R.U32.HI": lambda _, by, high: high >> by,
    "S2UR": lambda: 0,  # the block's place in its cluster
}
MOVES = ("MOV", "IMAD.U32", "IMAD.MOV.U32", "R2UR")


class _Registers:
    """What is known of registers and carries: words by name."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __getitem__(self, name: str) -> int | None:
        return 0 if name in ("URZ", "RZ", "!UPT", "!PT") else self.known.get(name)

    def value(self, operand: str) -> int | None:
        """Of a register or a number, with its sign."""
        name = operand.removeprefix("-").removesuffix(".reuse")
        value = int(name, 0) if re.fullmatch(r"0x[0-9a-f]+|\d+", name) else self[name]
        return value if value is None or not operand.startswith("-") else -value

    def pair(self, operand: str) -> int | None:
        """Of two registers after one another, or a number."""
        name = operand.removeprefix("-")
        if not re.fullmatch(r"UR\d+", name):
            return self.value(operand)
        low, high = self[name], self[f"UR{int(name[2:]) + 1}"]
        if low is None or high is None:
            return None
        return (high << 32 | low) * (-1 if operand.startswith("-") else 1)

    def set(self, name: str, value: int | None) -> None:
        if value is None:
            self.known.pop(name, None)
        else:
            self.known[name] = value & WORD

    def run(self, instruction: str, certain: bool) -> None:
        """Do one instruction; what it leaves is unknown where it is not ``certain`` to be done, or not understood."""
        op, _, rest = instruction.partition(" ")
        target, *operands = [part.strip() for part in rest.split(",")]
        if not re.fullmatch(r"U?R\d+", target):
            return
        if op == "UIADD3.64":
            terms = [self.pair(operand) for operand in operands]
            total = sum(terms) if certain and None not in terms else None  # type: ignore[arg-type]
            self.set(target, total)
            self.set(f"UR{int(target[2:]) + 1}", None if total is None else total >> 32)
        elif op == "USEL":  # either may be meant: a descriptor is made of both in turn
            self.set(target, self.value(operands[0]) if certain else None)
        elif op in ("UIADD3", "UIADD3.X"):
            self._add(target, operands, certain)
        elif op in MOVES and set(operands[:-1]) <= {"RZ"}:
            self.set(target, self.value(operands[-1]) if certain else None)
        elif op in PLAIN:
            numbers = [self.value(o) for o in operands if not re.fullmatch(r"!?UPT|SR_\w+", o)]
            self.set(target, PLAIN[op](*numbers) if certain and None not in numbers else None)
        else:
            words = max({"64": 2, "WIDE": 2, "128": 4}.get(part, 1) for part in op.split("."))
            kind, number = target.rstrip("0123456789"), int(target.lstrip("UR"))
            for k in range(words):
                self.set(f"{kind}{number + k}", None)

    def _add(self, target: str, operands: list[str], certain: bool) -> None:
        """Three terms; a predicate before them takes the carry, those behind bring carries in."""
        names = [re.fullmatch(r"!?UP(T|\d+)", operand) is not None for operand in operands]
        carry = operands[0] if names[0] else None
        terms = [self.value(o) for o in operands[carry is not None :]]
        words = [
            None if term is None else term if named else term & WORD
            for term, named in zip(terms, names[carry is not None :], strict=True)
        ]
        total = sum(words) if certain and None not in words else None  # type: ignore[arg-type]
        self.set(target, total)
        if carry is not None:
            self.set(carry, None if total is None else total >> 32)
