"""What "accurate" means for the ops: no worse than twice the error of plain eager PyTorch in the same dtype."""

import numpy as np
import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def device():
    return DEVICE


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def eager_attention(query, key, value, columns, scale=None):
    """What a user would write: every step in the dtype of the inputs, columns [B, 1 or H, M, C] included."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attention = torch.softmax(query @ key.transpose(-2, -1) * scale, dim=-1)
    return attention @ value, attention @ columns.to(query.dtype)


def check_accuracy(actual: Tensor, eager: Tensor, truth: Tensor, rms_bound: float) -> None:
    """Assert the rule; ``rms_bound`` is relative to the RMS of ``truth``, which is float64."""
    assert actual.shape == truth.shape
    error, allowed = actual.double() - truth, eager.double() - truth
    # Rounding the exact answer to the dtype of the result must always be allowed, and in float32, whose products a GPU makes
    # from three, a few roundings on the way to it.
    roundings = 4 if eager.dtype == torch.float32 and actual.is_cuda else 1
    rounding = roundings * truth.abs().max() * torch.finfo(eager.dtype).eps
    assert error.abs().max() <= 2 * allowed.abs().max() + rounding
    assert rms(error) <= rms_bound * rms(truth)


@pytest.fixture(scope="session")
def accuracy():
    return check_accuracy


@pytest.fixture(scope="session")
def eager():
    return eager_attention


@pytest.fixture(scope="session")
def heads_last():
    """A maker of [B, H, N, D] tensors as attention layers have them: views of [B, N, H, D], not contiguous."""

    def make(batch, heads, tokens, dim, *, dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, tokens, heads, dim, generator=generator).to(DEVICE, dtype).transpose(1, 2)

    return make


@pytest.fixture
def near_and_far(tmp_path):
    """The same [3, 2, 5, 16] twice, float16: once dense, once with samples 2**30 elements after each other."""
    shape, strides, size = (3, 2, 5, 16), (2**30, 16, 32, 1), 2**31 + 2**21
    near = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half().to(DEVICE)
    if DEVICE == "cuda":
        far = torch.empty(size, dtype=torch.float16, device=DEVICE)
    else:  # sparse: only the touched pages exist
        far = torch.from_numpy(np.memmap(tmp_path / "far.bin", np.float16, "w+", shape=(size,)))
    return near, far.as_strided(shape, strides).copy_(near)
