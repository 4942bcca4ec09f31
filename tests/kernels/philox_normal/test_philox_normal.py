import math
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

IMPLS = ["triton", "portable", "reference"]
SEEDS = [0, 1, 2**32 - 1, 2**32, 0x1234_5678_9ABC_DEF0, 2**63 - 1]
STREAMS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stream", [0, 1, 2**32 - 1])
def test_both_implementations_draw_the_same_bits(seed, stream):
    counter = np.arange(0, 2**32, 4_000_037, dtype=np.uint32)
    words = reference.philox(np.array([seed], dtype=np.uint64), counter, stream)
    ours = portable._philox(torch.tensor([seed]), torch.from_numpy(counter.astype(np.int64)), stream)
    for expected, actual in zip(words, ours, strict=True):
        assert np.array_equal(actual.numpy(), expected.astype(np.int64))


def test_known_answer_of_the_random123_library():
    # kat_vectors: philox4x32-10, counter 0 0 0 0, key 0 0.
    words = reference.philox(np.array([0], dtype=np.uint64), np.array([0], dtype=np.uint32), 0)
    assert [int(word[0]) for word in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("impl", ["triton", "portable"])
@pytest.mark.parametrize("stream", STREAMS)
def test_implementations_differ_by_rounding_only(device, impl, stream):
    seeds = torch.tensor(SEEDS, device=device)
    a, b = (philox_normal(seeds, (3, 1001), stream=stream, impl=name) for name in (impl, "reference"))
    # The float32 log, sin and cos of each library err by a few units in the last place.
    assert (a - b).abs().max() <= 2e-6


CASES = [
    (seed, stream, count) for seed, count in zip(SEEDS, (1, 3, 4, 1023, 2050, 7), strict=True) for stream in STREAMS
]


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """What Triton's interpreter draws in each case: words, numbers of randn4x, numbers of our kernel."""
    pytest.importorskip("triton")
    path = tmp_path_factory.mktemp("triton") / "draw.npz"
    script = Path(__file__).with_name("triton_twin.py")
    command = [sys.executable, str(script), str(path), *(":".join(map(str, case)) for case in CASES)]
    subprocess.run(command, check=True, timeout=120)
    return np.load(path)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_the_interpreted_kernel_bit_for_bit(twin, case):
    # The interpreter evaluates log, sin and cos with NumPy, as the reference does.
    seed, stream, count = case
    normal = philox_normal(torch.tensor(seed), (count,), stream=stream, impl="reference").numpy()
    name = ":".join(map(str, case))
    assert np.array_equal(normal, twin[f"{name}:kernel"])
    words = twin[f"{name}:words"]
    ours = reference.philox(np.array([seed], dtype=np.uint64), np.arange(len(words), dtype=np.uint32), stream)
    assert np.array_equal(np.stack(ours, axis=-1).view(np.int32), words)
    if stream == 0:
        assert np.array_equal(normal, twin[f"{name}:randn4x"])


@pytest.mark.parametrize("block", [32, 256, 2048])
def test_numbers_do_not_depend_on_the_launch(device, block):
    from lotts.kernels.philox_normal.triton import launch

    seeds = torch.tensor(SEEDS, device=device)
    shipped = philox_normal(seeds, (515,), stream=9, impl="triton")
    assert torch.equal(launch(seeds, 515, 9, {"BLOCK": block, "num_warps": 1, "num_stages": 1}), shipped)


# The kernel draws the reference's numbers but for rounding, which is tested above.
@pytest.mark.parametrize("impl", ["portable", "reference"])
def test_noise_is_standard_normal(device, impl):
    noise = philox_normal(torch.arange(4, device=device), (20_000,), impl=impl).double().cpu()
    error = 1 / math.sqrt(noise.numel())
    assert abs(noise.mean()) < 4 * error
    assert abs(noise.var() - 1) < 4 * math.sqrt(2) * error
    assert abs((noise**3).mean()) < 4 * math.sqrt(15) * error
    assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96) * error
    correlation = torch.corrcoef(noise) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("impl", ["portable", "reference"])
def test_the_distribution_function_is_that_of_the_normal(device, impl):
    noise = philox_normal(torch.tensor(17, device=device), (40_000,), impl=impl).double().cpu().sort().values
    steps = torch.arange(40_001, dtype=torch.float64) / 40_000
    cdf = torch.special.ndtr(noise)
    distance = torch.maximum((cdf - steps[:-1]).max(), (steps[1:] - cdf).max())
    assert distance < 1.95 / math.sqrt(40_000)  # Kolmogorov-Smirnov, 0.1 %


def test_the_four_numbers_of_a_call_are_uncorrelated():
    quads = philox_normal(torch.tensor(5), (20_000, 4)).double()
    for moment in (quads, quads**2):
        assert (torch.corrcoef(moment.T) - torch.eye(4)).abs().max() < 5 / math.sqrt(20_000)


def test_streams_of_one_seed_are_uncorrelated():
    noise = torch.stack([philox_normal(torch.tensor(3), (20_000,), stream=stream) for stream in range(4)])
    assert (torch.corrcoef(noise) - torch.eye(4)).abs().max() < 5 / math.sqrt(20_000)


def test_neighbouring_seeds_and_streams_share_no_number():
    seeds = torch.arange(8)
    drawn = torch.stack([philox_normal(seeds, (512,), stream=stream) for stream in range(4)])
    assert drawn.unique().numel() > 0.999 * drawn.numel()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("seeds", "shape"), [((0,), (3,)), ((2,), (0, 5)), ((), ()), ((2, 0), (4,)), ((2, 3), ()), ((), (5, 1, 3))], ids=str
)
def test_odd_and_empty_shapes(device, impl, seeds, shape):
    keys = torch.arange(math.prod(seeds), device=device).reshape(seeds)
    noise = philox_normal(keys, shape, impl=impl)
    assert noise.shape == (*seeds, *shape)
    assert noise.isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_seeds_may_be_strided_and_two_runs_agree(device, impl):
    seeds = torch.tensor(SEEDS, device=device).reshape(2, 3)
    assert torch.equal(
        philox_normal(seeds.T, (9,), impl=impl), philox_normal(seeds, (9,), impl=impl).transpose(0, 1).contiguous()
    )


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
def test_other_dtypes_are_the_float32_numbers_cast(device, impl, dtype):
    seeds = torch.tensor([[1, 2], [3, 4]], device=device)
    noise = philox_normal(seeds, (4, 3), dtype=dtype, device=device, impl=impl)
    assert torch.equal(noise, philox_normal(seeds, (4, 3), impl=impl).to(dtype))


@pytest.mark.parametrize(("impl", "counts"), [("portable", [6]), ("triton", [6, 4])])
def test_compiles_without_graph_breaks(device, impl, counts):
    seeds = torch.tensor(SEEDS, device=device)
    compiled = torch.compile(philox_normal, fullgraph=True, backend="aot_eager", dynamic=len(counts) > 1)
    for count in counts:
        expected = philox_normal(seeds[:count], (4, 8), stream=2, impl=impl)
        assert torch.equal(compiled(seeds[:count], (4, 8), stream=2, impl=impl), expected)


def test_the_operator_passes_opcheck(device):
    for shape in ((3, 5), ()):
        torch.library.opcheck(torch.ops.lotts.philox_normal, (torch.tensor(SEEDS, device=device), shape, 3))


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
