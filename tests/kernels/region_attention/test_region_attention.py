import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.kernels import region_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = ["triton", "portable", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def arguments(heads_last):
    def make(n=57, fresh=70, stored=133, dim=64, dtype=torch.float32, batch=2, heads=3, shared=False):
        entries = 1 if shared else batch
        return (
            heads_last(batch, heads, n, dim, dtype=dtype, seed=1),
            heads_last(batch, heads, fresh, dim, dtype=dtype, seed=2),
            heads_last(batch, heads, fresh, dim, dtype=dtype, seed=3),
            heads_last(entries, heads, stored, dim, dtype=dtype, seed=4),
            heads_last(entries, heads, stored, dim, dtype=dtype, seed=5),
        )

    return make


def joined(query, key, value, stored_key, stored_value):
    """Query, keys and values as plain attention takes them."""
    batch = len(query)
    return (
        query,
        torch.cat([key, stored_key.expand(batch, -1, -1, -1)], 2),
        torch.cat([value, stored_value.expand(batch, -1, -1, -1)], 2),
    )


SHAPES = [
    # queries, fresh keys, stored keys, head dim, one stored entry for the batch
    (113, 113, 90, 40, False),
    (399, 399, 1, 64, True),
    (57, 0, 203, 64, False),
    (64, 77, 0, 128, False),
    (33, 160, 352, 160, True),
    (5, 1, 1, 80, False),
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "fresh", "stored", "dim", "shared"), SHAPES)
def test_error_is_at_most_twice_that_of_eager_torch(
    arguments, accuracy, eager, n, fresh, stored, dim, shared, dtype, impl
):
    args = arguments(n, fresh, stored, dim, dtype, shared=shared)
    out = region_attention(*args, impl=impl)
    truth = region_attention(*[a.double() for a in args], impl="reference")
    assert out.dtype == dtype
    query, key, value = joined(*args)
    baseline, _ = eager(query, key, value, torch.zeros(2, 1, fresh + stored, 1, device=DEVICE))
    accuracy(out, baseline, truth, rms_bound=max(1e-6, 2 * torch.finfo(dtype).eps))


@pytest.mark.parametrize("impl", IMPLS)
def test_it_is_attention_over_both_pieces(arguments, impl):
    args = arguments()
    torch.testing.assert_close(
        region_attention(*args, impl=impl), F.scaled_dot_product_attention(*joined(*args)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_scale_multiplies_the_scores(arguments, impl):
    query, *rest = arguments()
    scaled = region_attention(query, *rest, scale=0.25, impl=impl)
    folded = region_attention(query * (0.25 * 64**0.5), *rest, impl=impl)
    torch.testing.assert_close(scaled, folded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", ["triton", "portable"])
def test_values_may_be_narrower_than_keys(arguments, heads_last, impl):
    query, key, _, stored_key, _ = arguments()
    args = (query, key, heads_last(2, 3, 70, 8), stored_key, heads_last(2, 3, 133, 8, seed=6))
    torch.testing.assert_close(
        region_attention(*args, impl=impl), region_attention(*args, impl="reference"), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("batch", "n"), [(2, 0), (0, 5)])
def test_zero_rows_give_zero_rows(arguments, batch, n, impl):
    assert region_attention(*arguments(n, batch=batch), impl=impl).shape == (batch, 3, n, 64)


@pytest.mark.parametrize("impl", ["triton", "portable"])
def test_what_lies_behind_a_piece_is_not_read(arguments, impl):
    args = arguments()
    wide = []
    for tensor in args:
        room = torch.full((*tensor.shape[:2], tensor.shape[2] + 40, tensor.shape[3]), float("nan"), device=DEVICE)
        room[:, :, : tensor.shape[2]] = tensor
        wide.append(room[:, :, : tensor.shape[2]])
    expected = region_attention(*[tensor.contiguous() for tensor in args], impl=impl)
    torch.testing.assert_close(region_attention(*wide, impl=impl), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", ["triton", "portable"])
def test_compiles_without_graph_breaks_for_any_number_of_tokens(arguments, impl):
    compiled = torch.compile(
        functools.partial(region_attention, impl=impl), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for n, fresh, stored in ((57, 70, 133), (40, 40, 90)):
        args = arguments(n, fresh, stored)
        torch.testing.assert_close(compiled(*args), region_attention(*args, impl=impl))


def test_the_op_keeps_its_contract_with_torch(arguments):
    torch.library.opcheck(torch.ops.lotts.region_attention, (*arguments(10, 12, 9), 0.125))


@pytest.mark.parametrize(
    "config",
    [{"BLOCK_N": 16, "BLOCK_M": 16, "num_stages": 1}, {"BLOCK_N": 64, "BLOCK_M": 128, "num_stages": 1}],
    ids=str,
)
def test_results_repeat_bit_for_bit_and_hold_for_every_block_size(arguments, config):
    from lotts.kernels.region_attention.triton import launch

    args = arguments(40, 30, 50)
    runs = [torch.empty_like(args[0]) for _ in range(2)]
    for out in runs:
        launch(*args, out, 0.125, config)
    assert torch.equal(*runs)
    torch.testing.assert_close(runs[0], region_attention(*args, impl="reference"), rtol=1e-5, atol=1e-6)


def test_the_kernel_reads_beyond_2_to_the_31_elements(near_and_far):
    near, far = near_and_far
    assert torch.equal(
        region_attention(far, far, far, far, far, impl="triton"), region_attention(*[near] * 5, impl="triton")
    )


@pytest.mark.gpu
def test_a_captured_graph_replays_on_new_inputs(arguments):
    args = arguments(dtype=torch.bfloat16)
    region_attention(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = region_attention(*args)
    args[0].normal_()
    graph.replay()
    assert torch.equal(out, region_attention(*args))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 20), fresh=st.integers(0, 20), stored=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_moving_keys_between_the_pieces_changes_nothing(n, fresh, stored, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 2, n, 8, generator=generator)
    keys, values = torch.randn(2, 1, 2, fresh + stored, 8, generator=generator)
    whole = region_attention(query, keys, values, keys[:, :, :0], values[:, :, :0])
    split = region_attention(
        query, *(t[:, :, :fresh] for t in (keys, values)), *(t[:, :, fresh:] for t in (keys, values))
    )
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("place", "bad", "error", "message"),
    [
        (0, None, TypeError, "query: expected a torch.Tensor, got NoneType"),
        (1, torch.zeros(2, 3, 70, 8), ValueError, r"key: expected shape \[B, H, F, D\] with B=2, H=3, D=64, got"),
        (2, torch.zeros(2, 3, 71, 64), ValueError, "value: expected shape .* F=70, got"),
        (3, torch.zeros(3, 3, 133, 64), ValueError, "stored_key: expected shape"),
        (4, torch.zeros(2, 3, 132, 64), ValueError, "stored_value: expected shape .* M=133, Dv=64, got"),
        (4, torch.zeros(2, 3, 133, 64).half(), TypeError, "stored_value: expected dtype torch.float32, got"),
    ],
)
def test_wrong_arguments_are_refused(arguments, place, bad, error, message):
    args = [*arguments()]
    args[place] = bad
    with pytest.raises(error, match=message):
        region_attention(*args)


def test_a_call_without_any_key_is_refused(arguments):
    with pytest.raises(ValueError, match=r"F \+ M: expected at least 1, got 0"):
        region_attention(*arguments(5, 0, 0))
