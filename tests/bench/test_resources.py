"""Every kernel compiles for the chips it is meant for, without a GPU, and stays in registers and on the tensor cores."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from bench import resources
from bench.resources import Needs, judge, parse_amd, parse_nvidia

pytest.importorskip("triton")

CUOBJDUMP = """
Resource usage:
 Common:
  GLOBAL:11 CONSTANT[4]:8
 Function propagate_attention_kernel:
  REG:255 STACK:472 SHARED:1024 LOCAL:0 CONSTANT[0]:1128 TEXTURE:0 SURFACE:0 SAMPLER:0
        /*1080*/                   HGMMA.64x64x16.F32 R56, gdesc[UR10], R48, !UPT ;
        /*1390*/                   UTCHMMA gdesc[UR10], gdesc[UR24], tmem[UR19], tmem[UR32], idesc[UR33], !UPT ;
        /*1400*/                   HMMA.16816.F32 R44, R100.reuse, R20, RZ ;
        /*1410*/                   STL.64 [R1+0x8], R20 ;
        /*1420*/                   LDL R20, [R1+0x8] ;
        /*1430*/                   STL [R1], R21 ;
"""
AMDGCN = """
	v_mfma_f32_32x32x8_f16 v[0:15], v[16:17], v[18:19], v[0:15]
	v_mfma_f32_32x32x8_f16 v[0:15], v[16:17], v[18:19], v[0:15]
    .agpr_count:     0
    .private_segment_fixed_size: 16
    .sgpr_spill_count: 1
    .vgpr_count:     208
    .vgpr_spill_count: 3
"""
GOOD = Needs("kernel", "op", "sm_90", dots=True, registers=128, shared=232448, tensor_cores=8)


@pytest.mark.parametrize(("arch", "tensor_cores"), [("sm_80", 1), ("sm_90", 1), ("sm_100", 1)])
def test_spills_are_read_from_cuobjdump(arch, tensor_cores):
    found = parse_nvidia(CUOBJDUMP, arch)
    assert found == {"registers": 255, "stack": 472, "spills": 3, "tensor_cores": tensor_cores}
    assert Needs("kernel", "op", arch, dots=True, **found).faults() == [
        "spills: 3 loads and stores, 472 bytes of stack"
    ]


def test_older_tensor_core_instructions_do_not_count_on_newer_chips():
    listing = CUOBJDUMP.replace("HGMMA", "HMMA").replace("UTCHMMA", "HMMA")
    assert parse_nvidia(listing, "sm_80")["tensor_cores"] == 3
    assert parse_nvidia(listing, "sm_90")["tensor_cores"] == 0
    assert parse_nvidia(listing, "sm_100")["tensor_cores"] == 0


def test_spills_are_read_from_amd_assembly():
    found = parse_amd(AMDGCN, "gfx942")
    # Not the scalar registers, which go to lanes of vector registers.
    assert found == {"registers": 208, "stack": 16, "spills": 3, "tensor_cores": 2}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spills": 1}, "spills"),
        ({"stack": 8}, "spills"),
        ({"shared": 232449}, "shared memory"),
        ({"tensor_memory": 513}, "tensor memory"),
        ({"tensor_cores": 0}, "no tensor-core instruction"),
        ({"descriptors": 3}, "miscompiled"),
        ({"error": "no such precision"}, "does not compile"),
    ],
)
def test_one_fault_fails_the_whole(change, fault):
    assert GOOD.faults() == []
    assert judge([GOOD, GOOD]) == 0
    bad = Needs(**{**vars(GOOD), **change})
    assert len(bad.faults()) == 1
    assert bad.faults()[0].startswith(fault)
    assert judge([GOOD, bad]) == 1
    assert fault in resources.table([GOOD, bad])
    assert "fails" in resources.markdown([bad])


def test_kernels_without_products_need_no_tensor_cores():
    assert Needs("kernel", "op", "sm_90", dots=False, registers=40).faults() == []


def test_all_ops_with_kernels_are_found():
    assert {"contrast_attention", "propagate_attention", "inject_noise", "blend_step", "philox_normal"} <= set(
        resources.ops()
    )


def test_in_turn_every_variant_and_every_op_on_every_chip_is_compiled():
    names, archs = resources.ops(), list(resources.ARCHITECTURES)
    everything, chosen = resources.jobs_of(names, archs), resources.jobs_of(names, archs, in_turn=True)
    assert len(everything) == len(archs) * sum(len(resources.variants(op)) for op in names)
    assert {job[:2] for job in chosen} == {job[:2] for job in everything}
    assert {(op, arch) for op, _, arch in chosen} == {(op, arch) for op, _, arch in everything}
    assert 2 * len(chosen) < len(everything)


def run(*arguments):
    """The command as a user runs it: the tests' own process may have its kernels in the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench", "resources", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_under_the_interpreter_the_status_is_2():
    command = [sys.executable, "-m", "bench", "resources"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr


def test_one_op_and_one_chip_may_be_asked_for():
    done = run("--op", "philox_normal", "--arch", "sm_90", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert [row["kernel"] for row in rows] == ["philox_normal", "philox_normal, odd sizes"]
    assert rows[0]["registers"] > 0


def test_no_kernel_spills_or_misses_the_tensor_cores():
    # One test, so that one worker compiles. Each variant for one chip: all for all take minutes, and are a command of their own.
    done = run("--json", "--in-turn")
    assert done.stdout, done.stderr
    rows = json.loads(done.stdout)
    assert {(row["op"], row["arch"]) for row in rows} == set(
        itertools.product(resources.ops(), resources.ARCHITECTURES)
    )
    wrong = []
    for row in rows:
        fine = (
            row["error"] is None
            and (row["spills"], row["stack"]) == (0, 0)
            and 0 < row["registers"] <= 512
            and row["shared"] <= resources.CHIPS[row["arch"]].shared
            and (row["tensor_cores"] > 0 or not row["dots"])
            and row["faults"] == []
        )
        wrong += [] if fine else [row]
    assert wrong == []
