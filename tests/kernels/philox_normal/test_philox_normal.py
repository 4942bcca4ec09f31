import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.kernels import philox_normal
from lotts.kernels.philox_normal import portable, reference

IMPLS = ["portable", "reference"]
SEEDS = [0, 1, 2**32 - 1, 2**32, 0x1234_5678_9ABC_DEF0, 2**63 - 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stream", [0, 1, 2**32 - 1])
def test_both_implementations_draw_the_same_bits(seed, stream):
    counter = np.arange(0, 2**32, 1_000_003, dtype=np.uint32)
    words = reference.philox(np.array([seed], dtype=np.uint64), counter, stream)
    ours = portable._philox(torch.tensor([seed]), torch.from_numpy(counter.astype(np.int64)), stream)
    for expected, actual in zip(words[:2], ours, strict=True):
        assert np.array_equal(actual.numpy(), expected.astype(np.int64))


def test_known_answer_of_the_random123_library():
    # kat_vectors: philox4x32-10, counter 0 0 0 0, key 0 0.
    words = reference.philox(np.array([0], dtype=np.uint64), np.array([0], dtype=np.uint32), 0)
    assert [int(word[0]) for word in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_normals_of_both_implementations_differ_by_rounding_only():
    seeds = torch.tensor(SEEDS)
    a, b = (philox_normal(seeds, (30_000,), stream=5, impl=impl) for impl in IMPLS)
    # NumPy's and torch's float32 log and cos each err by a few units in the last place.
    assert (a - b).abs().max() <= 2e-6


@pytest.fixture(scope="module")
def triton_draw(tmp_path_factory):
    pytest.importorskip("triton")
    path = tmp_path_factory.mktemp("triton") / "draw.npz"
    script = Path(__file__).with_name("triton_twin.py")
    command = [sys.executable, str(script), str(path), str(SEEDS[4]), "7", "1024"]
    subprocess.run(command, check=True, env=os.environ | {"TRITON_INTERPRET": "1"}, timeout=120)
    return np.load(path)


@pytest.mark.parametrize(("name", "stream"), [("bits", 0), ("words", 7)])
def test_bits_are_those_of_triton(triton_draw, name, stream):
    words = reference.philox(np.array([SEEDS[4]], dtype=np.uint64), np.arange(1024, dtype=np.uint32), stream)
    assert np.array_equal(np.stack(words[:2]).view(np.int32), triton_draw[name])


def test_reference_is_randn_of_triton_bit_for_bit(triton_draw):
    # The interpreter evaluates log and cos with NumPy, as the reference does.
    normal = philox_normal(torch.tensor(SEEDS[4]), (1024,), impl="reference")
    assert np.array_equal(normal.numpy(), triton_draw["normal"])


def test_portable_is_randn_of_triton_up_to_rounding(triton_draw):
    normal = philox_normal(torch.tensor(SEEDS[4]), (1024,))
    assert np.abs(normal.numpy() - triton_draw["normal"]).max() <= 2e-6


@pytest.mark.parametrize("impl", IMPLS)
def test_noise_is_standard_normal(impl):
    noise = philox_normal(torch.arange(4), (50_000,), impl=impl).double()
    error = 1 / math.sqrt(noise.numel())
    assert abs(noise.mean()) < 4 * error
    assert abs(noise.var() - 1) < 4 * math.sqrt(2) * error
    assert abs((noise**3).mean()) < 4 * math.sqrt(15) * error
    assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96) * error
    correlation = torch.corrcoef(noise) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(50_000)


def test_streams_of_one_seed_are_uncorrelated():
    noise = torch.stack([philox_normal(torch.tensor(3), (50_000,), stream=stream) for stream in range(4)])
    assert (torch.corrcoef(noise) - torch.eye(4)).abs().max() < 5 / math.sqrt(50_000)


@settings(max_examples=25, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5),
    shape=st.lists(st.integers(0, 5), max_size=3),
    stream=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_a_sample_does_not_depend_on_its_company(seeds, shape, stream, data):
    order = data.draw(st.permutations(range(len(seeds))))
    together = philox_normal(torch.tensor(seeds), shape, stream=stream)
    assert together.shape == (len(seeds), *shape)
    shuffled = philox_normal(torch.tensor(seeds)[order], shape, stream=stream)
    assert torch.equal(shuffled, together[order])
    for i, seed in enumerate(seeds):
        assert torch.equal(philox_normal(torch.tensor(seed), shape, stream=stream), together[i])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_the_float32_numbers_cast(impl, dtype):
    seeds = torch.tensor([[1, 2], [3, 4]])
    noise = philox_normal(seeds, (4, 3), dtype=dtype, device="cpu", impl=impl)
    assert torch.equal(noise, philox_normal(seeds, (4, 3), impl=impl).to(dtype))


def test_compiles_without_graph_breaks():
    seeds = torch.tensor(SEEDS)
    compiled = torch.compile(philox_normal, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(seeds, (4, 8), stream=2), philox_normal(seeds, (4, 8), stream=2))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seeds": 3}, TypeError, "seeds: expected a torch.Tensor, got int"),
        ({"seeds": torch.zeros(2)}, TypeError, "seeds: expected dtype torch.int64, got torch.float32"),
        ({"stream": -1}, ValueError, r"stream: expected 0 to 2\*\*32 - 1, got -1"),
        ({"stream": 2**32}, ValueError, "stream: expected"),
        ({"shape": (2**16, 2**16)}, ValueError, r"shape: expected .* fewer than 2\*\*32 elements, got"),
        ({"shape": (-1,)}, ValueError, "shape: expected sizes of at least 0"),
        ({"dtype": torch.int32}, TypeError, "dtype: expected one of torch.float16.*got torch.int32"),
    ],
)
def test_wrong_arguments_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        philox_normal(**({"seeds": torch.tensor([1]), "shape": (2,)} | changes))
