"""Miscompiled descriptors are told from machine code: listings in cuobjdump's form, with what ptxas makes and once made."""

import pytest

from bench.descriptors import SHARED_START, Descriptor, descriptors, faults

#: Shared memory begins in UR9; UR8 is its 16th, which is what a descriptor holds.
HEAD = """
UMOV UR9, 0x400
S2UR UR4, SR_CgaCtaId
ULEA UR9, UR4, UR9, 0x18
USHF.R.U32.HI UR8, URZ, 0x4, UR9
USGXT.U32 UR8, UR8, 0xe
UMOV UR6, UR8
UMOV UR7, 0xc0000010
HGMMA.64x16x16.F32 R120, R88, gdesc[UR4].tnspB, R120
"""
RIGHT = """
UMOV UR12, URZ
UIADD3 UR6, UP0, UR8, 0x20, URZ
UIADD3.X UR7, UR12, -0x3ffffff0, URZ, UP0, !UPT
HGMMA.64x16x16.F32 R120, R92, gdesc[UR4].tnspB, R120
UIADD3.64 UR6, UR6, 0x20, URZ
HGMMA.64x16x16.F32 R120, R96, gdesc[UR4].tnspB, R120, gsb0
"""
#: As ptxas 12.8 had it: the byte where shared memory begins, in both words.
WRONG = RIGHT.replace("UIADD3 UR6, UP0, UR8", "UIADD3 UR6, UP0, UR9").replace("UR7, UR12", "UR7, UR9")
SHARED = 48 * 1024


def listing(text):
    return "\n".join(
        f"        /*{16 * i:04x}*/  {line} ;  /* 0x00 */" for i, line in enumerate(text.split("\n")) if line
    )


def test_descriptors_are_followed_through_uniform_registers():
    found = descriptors(listing(HEAD + RIGHT))
    assert [(d.lower, d.upper) for d in found] == [(0x40, 0xC0000010), (0x60, 0xC0000010), (0x80, 0xC0000010)]
    assert faults(listing(HEAD + RIGHT), SHARED) == []


def test_what_was_once_miscompiled_is_found():
    found = faults(listing(HEAD + WRONG), SHARED)
    assert len(found) == 2
    assert found[0] == "HGMMA.64x16x16.F32: upper word 0xc0000410"


def test_both_operands_in_shared_memory_have_a_descriptor_each():
    both = "UMOV UR4, UR8\nUMOV UR5, 0x40000040\nHGMMA.64x64x16.F32 R24, gdesc[UR4], RZ, !UPT\n"
    assert [d.upper for d in descriptors(listing(HEAD + both))] == [0xC0000010, 0x40000040, 0xC0000010]


@pytest.mark.parametrize(
    "lost",
    ["@P0 UMOV UR6, 0x77", "ULDC UR6, c[0x0][0x2cc]", "R2UR UR6, R14", "USHF.R.S32.HI UR6, URZ, 0x1f, UR5"],
)
def test_what_cannot_be_followed_is_not_judged(lost):
    found = descriptors(listing(f"{HEAD}{lost}\nHGMMA.64x16x16.F32 R120, R88, gdesc[UR4].tnspB, R120\n"))
    assert found[1].lower is None
    assert found[1].fault(SHARED) is None


def test_words_that_wait_in_other_registers_come_back():
    moved = "IMAD.U32 R14, RZ, RZ, UR6\nUMOV UR6, 0x3fff\nR2UR UR6, R14\nHGMMA.64x16x16.F32 R1, R88, gdesc[UR4], R1\n"
    assert descriptors(listing(HEAD + moved))[1].lower == 0x40


def test_an_operand_lies_in_the_shared_memory_that_the_kernel_has():
    assert Descriptor("HGMMA", (SHARED_START + SHARED - 16) >> 4, 0x40000040).fault(SHARED) is None
    assert "begins at" in str(Descriptor("HGMMA", (SHARED_START + SHARED) >> 4, 0x40000040).fault(SHARED))
    assert "begins at" in str(Descriptor("HGMMA", 0, 0x40000040).fault(SHARED))
