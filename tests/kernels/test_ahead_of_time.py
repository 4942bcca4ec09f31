"""Kernels compile, without a GPU, for the chips they are meant for, and keep everything in registers there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ARCHITECTURES = {"sm_80", "sm_90", "sm_100", "gfx942"}


@pytest.mark.parametrize("op", ["philox_normal", "inject_noise", "blend_step"])
def test_no_variant_spills_on_any_chip(op):
    pytest.importorskip("triton")
    script = Path(__file__).with_name("compile_variants.py")
    run = subprocess.run([sys.executable, str(script), op], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    for variant, chips in json.loads(run.stdout).items():
        assert set(chips) == ARCHITECTURES
        for chip, needs in chips.items():
            assert needs["spilled"] == 0, f"{variant} spills on {chip}"
            assert 0 < needs["registers"] < 255
