"""Noise and the sampler's step: ours, our plain-torch form, the reference, and the eager formula."""

import pytest

from bench.conftest import DEVICE, IMPL, case_of

CASES = [(op, "SDXL") for op in ("inject_noise", "blend_step", "philox_normal")]


@pytest.fixture(params=CASES, ids=" ".join)
def case(request, benchmark):
    benchmark.group = " ".join(request.param)
    return case_of(*request.param)


@pytest.fixture
def inputs(case):
    return case.inputs(DEVICE)


@pytest.mark.parametrize("impl", list(dict.fromkeys((IMPL, "portable", "reference"))))
def test_ours(timed, case, inputs, impl):
    timed(lambda: case.ours(inputs, impl=impl))


def test_eager_formula(timed, case, inputs):
    timed(lambda: case.formula()(**inputs))
