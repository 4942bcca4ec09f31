"""Arguments of propagate_attention."""

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def arguments(heads_last):
    def make(n=113, m=203, dim=64, dtype=torch.float32, batch=2, heads=3, columns=2, per_head=False):
        query = heads_last(batch, heads, n, dim, dtype=dtype, seed=1)
        key = heads_last(batch, heads, m, dim, dtype=dtype, seed=2)
        value = heads_last(batch, heads, m, dim, dtype=dtype, seed=3)
        shape = (batch, heads, m, columns) if per_head else (batch, m, columns)
        return query, key, value, torch.rand(shape, generator=torch.Generator().manual_seed(4)).to(DEVICE)

    return make
