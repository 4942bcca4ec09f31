import pytest
import torch

from lotts.kernels import available_implementations, contrast_attention

OPS = ["contrast_attention", "propagate_attention", "inject_noise", "philox_normal"]


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_portable_and_a_reference_implementation(op):
    assert {"portable", "reference"} <= set(available_implementations(op))


def test_an_unknown_op_is_refused_by_name():
    with pytest.raises(ValueError, match=r"expected one of contrast_attention.*got 'softmax'"):
        available_implementations("softmax")


def test_an_unknown_implementation_is_refused_by_name():
    x = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ValueError, match="impl: expected None or one of triton, portable, reference, got 'cuda'"):
        contrast_attention(x, x, x, impl="cuda")


def test_uninitialised_memory_is_poisoned_in_tests():
    assert torch.empty(4).isnan().all()
