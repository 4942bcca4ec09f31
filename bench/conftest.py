"""Small timings of the ops: ``pytest bench --benchmark-only``. Each group holds ours and what it is measured against.

On a GPU the shapes are larger, ours is the Triton kernel, and a call counts until the device is done. On a CPU ours is the
portable form. ``python -m bench gpu`` and ``python -m bench cpu`` are the careful measurements.
"""

import dataclasses

import pytest
import torch

from bench import shapes
from bench.cases import AttentionCase, Case, RegionCase, RopeCase
from bench.latent_cases import NoiseCase

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPL = "triton" if DEVICE == "cuda" else "portable"


def pytest_xdist_auto_num_workers():
    """What is timed has the machine to itself."""
    return 0


def case_of(op: str, model: str) -> Case:
    """One picture at 1024 pixels; on a CPU fewer tokens and float32, which is what CPUs compute fast."""
    case = next(c for c in shapes.cases() if (c.op, c.model, c.pixels, c.batch) == (op, model, 1024, 1) and c.core)
    if DEVICE == "cuda":
        return case
    if isinstance(case, AttentionCase):
        smaller = dataclasses.replace(case, rows=1024, dtype=torch.float32)
        return dataclasses.replace(smaller, text=64, heads=4) if case.joint else smaller
    if isinstance(case, RegionCase):
        return dataclasses.replace(case, rows=512, stored=512, heads=4, dtype=torch.float32)
    if isinstance(case, RopeCase):
        return dataclasses.replace(case, rows=1024, places=1024, text=64, heads=4, dtype=torch.float32)
    return case if isinstance(case, NoiseCase) else dataclasses.replace(case, dtype=torch.float32)


@pytest.fixture
def timed(benchmark):
    """Times a call to its end, kernels included."""

    def run(call):
        def finished():
            call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(finished, rounds=20, warmup_rounds=2)

    return run
