import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.kernels import norm_rope

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = ["triton", "portable", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tables(count, dim):
    """As diffusers makes them: float32, both of a pair alike."""
    angles = torch.arange(count)[:, None] * 10_000.0 ** (-torch.arange(0, dim, 2) / dim)
    return [table.repeat_interleave(2, dim=1).to(DEVICE) for table in (angles.cos(), angles.sin())]


@pytest.fixture
def arguments(heads_last):
    def make(rows=4, heads=3, count=37, dim=32, dtype=torch.float32, orders=2, places=50, prefix=5):
        tokens = heads_last(rows, heads, count, dim, dtype=dtype, seed=1)
        generator = torch.Generator().manual_seed(2)
        order = torch.stack([torch.randperm(places, generator=generator)[:count] for _ in range(orders)])
        weight, first = (1 + torch.randn(2, dim, generator=generator) / 4).to(DEVICE, dtype)
        given = {"places": order.to(DEVICE), "eps": 1e-6, "weight": weight, "prefix_weight": first, "prefix": prefix}
        return (tokens, *tables(places, dim)), given

    return make


def eager(tokens, cos, sin, places, eps, weight, prefix_weight, prefix):
    """Diffusers' own steps: torch's norm of text and image, then its rotary embedding, sample by sample."""
    from diffusers.models.embeddings import apply_rotary_emb

    x, dim = tokens.transpose(1, 2), tokens.shape[-1:]
    x = torch.cat([F.rms_norm(x[:, :prefix], dim, prefix_weight, eps), F.rms_norm(x[:, prefix:], dim, weight, eps)], 1)
    out = [
        apply_rotary_emb(row[None], tuple(table[places[r % len(places)]] for table in (cos, sin)), sequence_dim=1)
        for r, row in enumerate(x)
    ]
    return torch.cat(out).transpose(1, 2)


SHAPES = [
    # rows, heads, tokens, head dim, orders, prefix
    (4, 3, 37, 32, 2, 5),
    (3, 2, 130, 128, 3, 0),
    (2, 1, 1, 2, 1, 1),
    (6, 5, 67, 80, 2, 67),
    (1, 7, 33, 56, 1, 32),
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "heads", "count", "dim", "orders", "prefix"), SHAPES)
def test_error_is_at_most_twice_that_of_diffusers_steps(
    arguments, accuracy, rows, heads, count, dim, orders, prefix, dtype, impl
):
    tensors, given = arguments(rows, heads, count, dim, dtype, orders, 140, prefix)
    out = norm_rope(*tensors, **given, impl=impl)
    assert out.dtype == dtype
    wide = {name: a.double() if torch.is_tensor(a) and a.is_floating_point() else a for name, a in given.items()}
    truth = norm_rope(*(t.double() for t in tensors), **wide, impl="reference")
    accuracy(out, eager(*tensors, **given), truth, rms_bound=max(1e-6, 2 * torch.finfo(dtype).eps))


@pytest.mark.parametrize("impl", IMPLS)
def test_without_a_norm_it_only_turns(arguments, impl):
    (tokens, cos, sin), _ = arguments()
    out = norm_rope(tokens, cos, sin, impl=impl)
    torch.testing.assert_close(out.square().sum(-1), tokens.square().sum(-1), rtol=1e-5, atol=1e-6)
    assert torch.equal(out[:, :, 0], tokens[:, :, 0])  # place 0
    torch.testing.assert_close(norm_rope(out, cos, -sin, impl=impl), tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_without_an_order_tokens_lie_as_the_tables_do(arguments, impl):
    (tokens, cos, sin), given = arguments()
    given["places"] = None
    plain = norm_rope(tokens, cos, sin, **given, impl=impl)
    given["places"] = torch.arange(37, device=DEVICE)[None]
    torch.testing.assert_close(norm_rope(tokens, cos, sin, **given, impl=impl), plain, rtol=0, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_weights_are_ones(arguments, impl):
    tensors, given = arguments()
    ones = torch.ones(32, device=DEVICE)
    expected = norm_rope(*tensors, **given | {"weight": ones, "prefix_weight": ones}, impl=impl)
    for absent in ({"weight": None, "prefix_weight": None}, {"weight": None, "prefix_weight": ones}):
        torch.testing.assert_close(norm_rope(*tensors, **given | absent, impl=impl), expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("rows", "count"), [(2, 0), (0, 5)])
def test_zero_rows_give_zero_rows(arguments, rows, count, impl):
    tensors, given = arguments(rows, count=count, prefix=0)
    assert norm_rope(*tensors, **given, impl=impl).shape == (rows, 3, count, 32)


@pytest.mark.parametrize("impl", ["triton", "portable"])
def test_what_lies_between_the_tokens_is_not_read(arguments, impl):
    (tokens, *rest), given = arguments(dim=24)
    room = torch.full((4, 3, 40, 30), float("nan"), device=DEVICE)
    room[:, :, :37, :24] = tokens
    out = norm_rope(room[:, :, :37, :24], *rest, **given, impl=impl)
    torch.testing.assert_close(out, norm_rope(tokens, *rest, **given, impl=impl))


@pytest.mark.parametrize("impl", ["triton", "portable"])
def test_compiles_without_graph_breaks_for_any_number_of_tokens(arguments, impl):
    compiled = torch.compile(functools.partial(norm_rope, impl=impl), fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (37, 41):
        tensors, given = arguments(count=count)
        torch.testing.assert_close(compiled(*tensors, **given), norm_rope(*tensors, **given, impl=impl))


def test_the_op_keeps_its_contract_with_torch(arguments):
    tensors, given = arguments(count=9)
    torch.library.opcheck(torch.ops.lotts.norm_rope, (*tensors, *given.values()))
    torch.library.opcheck(torch.ops.lotts.norm_rope, (*tensors, None, None, None, None, 0))


@pytest.mark.parametrize("config", [{"BLOCK_N": 1, "HEADS": 1}, {"BLOCK_N": 128, "HEADS": 2}], ids=str)
def test_results_hold_for_every_block_size(arguments, config):
    from lotts.kernels.norm_rope.parts import Norm
    from lotts.kernels.norm_rope.triton import launch

    tensors, given = arguments(rows=2, count=19)
    places, *norm = given.values()
    runs = [torch.empty_like(tensors[0]) for _ in range(2)]
    for out in runs:
        launch(*tensors, places, Norm(*norm), out, config)
    assert torch.equal(*runs)
    # On a GPU a sum's order goes with the block's layout.
    close = {"rtol": 0, "atol": 0} if DEVICE == "cpu" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(runs[0], norm_rope(*tensors, **given, impl="triton"), **close)


@pytest.mark.parametrize("impl", ["triton", "portable"])
def test_a_row_does_not_depend_on_its_company(arguments, impl):
    (tokens, *rest), given = arguments()
    together = norm_rope(tokens, *rest, **given, impl=impl)
    for r in range(4):
        alone = norm_rope(tokens[r : r + 1], *rest, **given | {"places": given["places"][r % 2][None]}, impl=impl)
        assert torch.equal(alone[0], together[r])


def test_the_kernel_reads_beyond_2_to_the_31_elements(near_and_far):
    near, far = near_and_far
    assert torch.equal(*(norm_rope(x, *tables(5, 16), eps=1e-6, impl="triton") for x in (far, near)))


@pytest.mark.gpu
def test_a_captured_graph_replays_on_new_inputs(arguments):
    tensors, given = arguments(dtype=torch.bfloat16)
    norm_rope(*tensors, **given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = norm_rope(*tensors, **given)
    tensors[0].normal_()
    graph.replay()
    assert torch.equal(out, norm_rope(*tensors, **given))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 12), shift=st.integers(0, 30), seed=st.integers(0, 2**31))
def test_scores_depend_on_the_distance_of_places_alone(count, shift, seed):
    query, key = torch.randn(2, 1, 1, count, 16, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    cos, sin = tables(count + shift, 16)

    def scores(first):
        places = torch.arange(first, first + count, device=DEVICE)[None]
        q, k = (norm_rope(x, cos, sin, places=places, eps=1e-6) for x in (query, key))
        return q @ k.transpose(-2, -1)

    torch.testing.assert_close(scores(shift), scores(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": None}, TypeError, "tokens: expected a torch.Tensor, got NoneType"),
        ({"tokens": torch.zeros(2, 3, 4, 7), "cos": torch.zeros(9, 7), "sin": torch.zeros(9, 7)}, ValueError, "even"),
        ({"cos": torch.zeros(50, 30)}, ValueError, r"cos: expected shape \[T, D\] with D=32, got"),
        ({"sin": torch.zeros(49, 32)}, ValueError, "sin: expected shape .* T=50"),
        ({"sin": torch.zeros(50, 32).double()}, TypeError, "sin: expected dtype torch.float32"),
        ({"places": torch.zeros(2, 37)}, TypeError, "places: expected dtype torch.int64"),
        ({"places": torch.zeros(3, 37).long()}, ValueError, "rows that divide the 4 of tokens, got 3"),
        ({"places": None, "cos": torch.zeros(9, 32), "sin": torch.zeros(9, 32)}, ValueError, "T: expected at least 37"),
        ({"eps": None}, ValueError, "eps: expected a number"),
        ({"prefix": 38}, ValueError, "prefix: expected 0 to 37, got 38"),
        ({"weight": torch.ones(31)}, ValueError, "weight: expected shape"),
        ({"prefix_weight": torch.ones(32).long()}, TypeError, "prefix_weight: expected dtype"),
    ],
)
def test_wrong_arguments_are_refused(arguments, change, error, message):
    (tokens, cos, sin), given = arguments()
    with pytest.raises(error, match=message):
        norm_rope(**{"tokens": tokens, "cos": cos, "sin": sin, **given, **change})
