import math
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy_twin
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
def test_reference_and_kernel_draw_the_words_of_triton_bit_for_bit(twin, case):
    seed, stream, count = case
    normal = philox_normal(torch.tensor(seed), (count,), stream=stream, impl="reference").numpy()
    name = ":".join(map(str, case))
    words = twin[f"{name}:words"]
    reference_words = reference.philox(
        np.array([seed], dtype=np.uint64), np.arange(len(words), dtype=np.uint32), stream
    )
    assert np.array_equal(np.stack(reference_words, axis=-1).view(np.int32), words)
    assert np.array_equal(twin[f"{name}:ours"], words)
    # The kernel evaluates its own polynomials, as its twin in NumPy does; the reference has NumPy's functions.
    pairs = [numpy_twin.box_muller(*reference_words[i : i + 2]) for i in (0, 2)]
    drawn = np.stack([*pairs[0], *pairs[1]], axis=-1).reshape(-1)[:count]
    # Before 3.9 the interpreter of Triton rounds a fused multiplication and addition twice.
    once = tuple(map(int, version("triton").split(".")[:2])) >= (3, 9)
    assert np.abs(twin[f"{name}:kernel"] - drawn).max() <= (0 if once else 1e-6)
    assert np.abs(normal - drawn).max() <= 2e-6
    if stream == 0:
        # The interpreter evaluates log, sin and cos with NumPy, as the reference does.
        assert np.array_equal(normal, twin[f"{name}:randn4x"])


def extreme_and_random_words(borders, generator):
    """int32 words whose uniform numbers lie at and beside multiples of 1 / borders, or anywhere; of both signs."""
    steps = np.concatenate([np.arange(65), 2 ** np.arange(7, 24)])
    at = np.arange(borders + 1)[:, None] * (2**31 // borders)
    words = np.concatenate([(at - steps).ravel(), (at + steps).ravel(), generator.integers(0, 2**31, 2**16)])
    words = np.unique(words[(words >= 0) & (words < 2**31)]).astype(np.uint32)
    return np.concatenate([words, ~words]).view(np.int32)


@pytest.mark.parametrize("seed", range(3))
def test_the_transform_keeps_its_bounds_everywhere(device, seed):
    pytest.importorskip("triton")
    from box_muller_probe import probe

    generator = np.random.default_rng(seed)
    # First words: u at 0, where the logarithm is cut off, at 1 where the radius is 0, and at powers of two.
    powers = (2 ** np.arange(31)[:, None] + np.arange(-2, 3)).ravel().clip(0).astype(np.int32)
    first = np.concatenate([powers, ~powers, extreme_and_random_words(8, generator)])
    second = extreme_and_random_words(16, generator)
    first, second = (generator.choice(words, 2**17) for words in (first, second))
    normal = probe(*(torch.from_numpy(words).to(device) for words in (first, second))).double().cpu().numpy()

    u, turn = (reference._uniform(words.view(np.uint32)) for words in (first, second))
    radius = np.sqrt(-2 * np.log(np.maximum(np.float32(1e-7), u).astype(np.float64)))
    # The angle is rounded to float32 by definition.
    angle = (np.float32(6.283185307179586) * turn).astype(np.float64)
    error = np.abs(normal - radius * np.stack([np.cos(angle), np.sin(angle)]))
    assert (error <= 7e-7 + 2.5e-7 * radius).all()
    # Relative to the radius, too, however small it is.
    assert (np.abs(np.hypot(*normal) / radius - 1) <= 1e-6).all()
    assert u.min() == 0
    assert u.max() == np.float32(1 - 2**-24)


def test_words_that_the_transform_takes_to_known_numbers(device):
    pytest.importorskip("triton")
    from box_muller_probe import probe

    # u of a half, and turns of 0, a quarter, a half and three quarters.
    first = torch.full((4,), 2**30, dtype=torch.int32, device=device)
    second = torch.tensor([0, 2**29, 2**30, 3 * 2**29], dtype=torch.int32, device=device)
    radius = math.sqrt(2 * math.log(2))
    expected = torch.tensor([[radius, 0, -radius, 0], [0, radius, 0, -radius]], device=device)
    torch.testing.assert_close(probe(first, second), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("block", [32, 256, 2048])
def test_numbers_do_not_depend_on_the_launch(device, block, calls):
    from lotts.kernels.philox_normal.triton import launch

    seeds = torch.tensor(SEEDS, device=device)
    shipped = philox_normal(seeds, (515,), stream=9, impl="triton")
    config = {"BLOCK": block, "CALLS": calls, "num_warps": 1, "num_stages": 1}
    assert torch.equal(launch(seeds, 515, 9, config), shipped)


def test_more_samples_than_a_grid_has_rows(device):
    from lotts.kernels.philox_normal.triton import MOST_PROGRAMS, grid

    most = MOST_PROGRAMS.value
    for samples in (1, most, most + 1, 3 * most):
        blocks, rows, planes = grid(7, samples)
        assert blocks == 7
        assert rows <= most
        assert planes <= most
        assert rows * planes >= samples > (planes - 1) * most
    if device == "cuda":
        seeds = torch.arange(most + 2, device=device)
        noise = philox_normal(seeds, (3,), impl="triton")
        assert torch.equal(noise[-3:], philox_normal(seeds[-3:], (3,), impl="triton"))


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
