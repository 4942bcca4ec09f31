import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lotts.kernels
from lotts.kernels import available_implementations, contrast_attention
from lotts.kernels.dispatch import default_implementation
from lotts.kernels.launch import config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ATTENTION = ["contrast_attention", "propagate_attention", "region_attention"]
OPS = [*ATTENTION, "norm_rope", "inject_noise", "philox_normal", "blend_step"]


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_portable_and_a_reference_implementation(op):
    assert {"portable", "reference"} <= set(available_implementations(op))


def test_an_unknown_op_is_refused_by_name():
    with pytest.raises(ValueError, match=r"expected one of blend_step.*got 'softmax'"):
        available_implementations("softmax")


def test_an_unknown_implementation_is_refused_by_name():
    x = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ValueError, match="impl: expected None or one of triton, portable, reference, got 'cuda'"):
        contrast_attention(x, x, x, impl="cuda")


def test_triton_is_the_default_on_a_gpu_alone():
    assert default_implementation("contrast_attention", "cpu") == "portable"
    assert default_implementation("contrast_attention", "cuda") == "triton"
    assert default_implementation("contrast_attention", "cuda", torch.float64) == "portable"


def test_what_cannot_run_is_refused_and_not_replaced():
    x = torch.zeros(1, 1, 2, 8, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="impl='triton' cannot run here: its kernels compute in float32"):
        contrast_attention(x, x, x, impl="triton")
    x = torch.zeros(1, 1, 2, 8, device="meta")
    with pytest.raises(RuntimeError, match="the tensors are on the device 'meta'"):
        contrast_attention(x, x, x, impl="triton")


def test_without_the_interpreter_the_cpu_has_no_kernels():
    code = (
        "import torch; from lotts.kernels import available_implementations, contrast_attention as op\n"
        "print(available_implementations('contrast_attention', 'cpu'))\n"
        "x = torch.zeros(1, 1, 2, 8)\n"
        "op(x, x, x, impl='triton')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "('portable', 'reference')"
    assert "impl='triton' cannot run here: the tensors are on the device 'cpu' (TRITON_INTERPRET=1" in run.stderr


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942", "interpreter", "sm_123"])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("head_dim", [40, 64, 80, 128, 160])
def test_every_shape_has_a_launch_configuration_on_every_chip(op, arch, bits, head_dim):
    sizes = (head_dim, 4608) if op in ATTENTION else (head_dim,) if op == "norm_rope" else ()
    if op == "philox_normal":
        bits = 32
    assert all(size & (size - 1) == 0 for name, size in config(op, arch, bits, *sizes).items() if "BLOCK" in name)


def test_a_shape_beyond_the_table_is_refused():
    with pytest.raises(LookupError, match="contrast_attention: no launch configuration for 16 bits, head dim 512"):
        config("contrast_attention", "sm_90", 16, 512, 77)


def test_uninitialised_memory_is_poisoned_in_tests():
    assert torch.empty(4).isnan().all()


class Listener(TorchDispatchMode):
    """Notes the names of the ops that pass by."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.heard.append(function.name())
        return function(*args, **(kwargs or {}))


def noise(seeds):
    return lotts.kernels.philox_normal(seeds, (3, 5), impl="triton")


def test_a_dispatch_mode_sees_the_ops_and_changes_nothing():
    seeds = torch.tensor([3, 4], device=DEVICE)
    with torch.no_grad():
        alone = noise(seeds)
        with Listener() as listener:
            heard = noise(seeds)
    assert "lotts::philox_normal" in listener.heard
    assert torch.equal(heard, alone)


def test_gradients_are_refused_and_not_forgotten():
    query = torch.randn(1, 2, 5, 16, device=DEVICE).requires_grad_()
    out = lotts.kernels.region_attention(*[query] * 5, impl="triton")
    with pytest.raises(RuntimeError, match="autograd"):
        out.sum().backward()
