"""Settings for every test."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Before triton is imported: without a GPU its kernels run in Python, so that every test of them runs everywhere.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def poisoned_uninitialised_memory():
    """torch.empty returns NaN (or the largest integer), so that reading what was never written shows up."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
