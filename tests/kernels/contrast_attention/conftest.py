"""Arguments of contrast_attention."""

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.fixture
def arguments(heads_last):
    def make(n=113, length=77, dim=64, dtype=torch.float32, batch=2, heads=3, columns=2, side_length=77):
        query = heads_last(batch, heads, n, dim, dtype=dtype, seed=1)
        key = heads_last(batch, heads, length, dim, dtype=dtype, seed=2)
        value = heads_last(batch, heads, length, dim, dtype=dtype, seed=3)
        sides = {
            "key_pos": heads_last(batch, heads, side_length, dim, dtype=dtype, seed=4),
            "weight_pos": uniform(batch, side_length, seed=5),
            "key_neg": heads_last(1, heads, side_length + 1, dim, dtype=dtype, seed=6),
            "weight_neg": uniform(1, side_length + 1, seed=7),
        }
        return (query, key, value, uniform(batch, length, columns, seed=8)), sides

    return make
