"""Every op: ours, our plain-torch form, the reference, the eager formula, and beside attention the one without maps."""

import pytest
import torch.nn.functional as F

from bench.conftest import DEVICE, IMPL, case_of

ATTENTION = [("contrast_attention", "SDXL"), ("propagate_attention", "SDXL"), ("propagate_attention", "FLUX")]
SPARSE = [("region_attention", "FLUX"), ("norm_rope", "FLUX")]
LATENTS = [(op, "SDXL") for op in ("inject_noise", "blend_step", "philox_normal")]


@pytest.fixture(params=ATTENTION + SPARSE + LATENTS, ids=" ".join)
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


@pytest.mark.parametrize("case", ATTENTION, ids=" ".join, indirect=True)
def test_attention_without_maps(timed, inputs):
    timed(lambda: F.scaled_dot_product_attention(inputs["query"], inputs["key"], inputs["value"]))
