import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.kernels import propagate_attention

IMPLS = ["portable", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def arguments(heads_last):
    def make(n=113, m=203, dim=64, dtype=torch.float32, batch=2, heads=3, columns=2, per_head=False):
        query = heads_last(batch, heads, n, dim, dtype=dtype, seed=1)
        key = heads_last(batch, heads, m, dim, dtype=dtype, seed=2)
        value = heads_last(batch, heads, m, dim, dtype=dtype, seed=3)
        shape = (batch, heads, m, columns) if per_head else (batch, m, columns)
        return query, key, value, torch.rand(shape, generator=torch.Generator().manual_seed(4))

    return make


SHAPES = [
    # query tokens, key tokens, head dim, columns, columns per head
    (113, 203, 40, 1, False),
    (799, 799, 64, 3, False),
    (203, 77, 80, 16, False),
    (64, 231, 128, 2, True),
    (33, 512, 160, 16, True),
    (5, 1, 64, 1, False),
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m", "dim", "count", "per_head"), SHAPES)
def test_error_is_at_most_twice_that_of_eager_torch(
    arguments, accuracy, eager, n, m, dim, count, per_head, dtype, impl
):
    args = arguments(n, m, dim, dtype, columns=count, per_head=per_head)
    out, maps = propagate_attention(*args, impl=impl)
    true_out, true_maps = propagate_attention(*[a.double() for a in args], impl="reference")
    assert out.dtype == dtype
    assert maps.dtype == torch.float32

    query, key, value, columns = args
    eager_out, eager_maps = eager(query, key, value, columns if per_head else columns.unsqueeze(1))
    accuracy(out, eager_out, true_out, rms_bound=max(1e-6, 2 * torch.finfo(dtype).eps))
    accuracy(maps, eager_maps, true_maps, rms_bound=max(1e-6, torch.finfo(dtype).eps / 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [40, 64, 128])
def test_output_is_the_stock_attention(arguments, dim, dtype):
    query, key, value, columns = arguments(dim=dim, dtype=dtype)
    out, _ = propagate_attention(query, key, value, columns)
    stock = F.scaled_dot_product_attention(query, key, value)
    # Bits are equal with MKL on AVX-512; other matrix libraries may sum in another order when V is wider.
    assert (out - stock).abs().max() <= torch.finfo(dtype).eps * stock.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_half_precision_keeps_columns_of_any_size(arguments, dtype, size):
    query, key, value, columns = arguments(dtype=dtype)
    _, maps = propagate_attention(query, key, value, columns * size)
    _, truth = propagate_attention(*[a.double() for a in (query, key, value, columns * size)], impl="reference")
    assert ((maps.double() - truth) / size).abs().max() <= torch.finfo(dtype).eps / 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constant_columns_come_back(arguments, dtype):
    query, key, value, columns = arguments(dtype=dtype)
    _, maps = propagate_attention(query, key, value, torch.full_like(columns, 0.3))
    assert (maps - 0.3).abs().max() <= 1e-6


@pytest.mark.parametrize("impl", IMPLS)
def test_shared_columns_equal_the_same_columns_for_every_head(arguments, impl):
    query, key, value, columns = arguments()
    repeated = columns.unsqueeze(1).expand(-1, 3, -1, -1)
    for a, b in zip(
        propagate_attention(query, key, value, columns, impl=impl),
        propagate_attention(query, key, value, repeated, impl=impl),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("impl", IMPLS)
def test_scale_multiplies_the_scores(arguments, impl):
    query, key, value, columns = arguments()
    scaled = propagate_attention(query, key, value, columns, scale=0.25, impl=impl)
    folded = propagate_attention(query * (0.25 * 64**0.5), key, value, columns, impl=impl)
    for actual, expected in zip(scaled, folded, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value_dim", [8, 96])
def test_values_may_be_narrower_or_wider_than_keys(arguments, heads_last, value_dim):
    query, key, _, columns = arguments()
    value = heads_last(2, 3, 203, value_dim)
    for actual, expected in zip(
        propagate_attention(query, key, value, columns),
        propagate_attention(query, key, value, columns, impl="reference"),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "n"), [(2, 0), (0, 5)])
def test_zero_rows_give_zero_rows(arguments, batch, n, dtype, impl):
    out, maps = propagate_attention(*arguments(n=n, batch=batch, dtype=dtype), impl=impl)
    assert out.shape == (batch, 3, n, 64)
    assert maps.shape == (batch, 3, n, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_without_graph_breaks(arguments, dtype):
    args = arguments(dtype=dtype)
    compiled = torch.compile(propagate_attention, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(*args), propagate_attention(*args), strict=True):
        torch.testing.assert_close(actual, expected)


sizes = st.integers(1, 40)


@settings(max_examples=25, deadline=None)
@given(n=sizes, m=sizes, heads=st.integers(1, 3), dim=st.sampled_from([8, 40]), seed=st.integers(0, 2**31))
def test_laws_of_the_maps(n, m, heads, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, heads, n, dim, generator=generator)
    key, value = torch.randn(2, 1, heads, m, dim, generator=generator)
    columns = torch.rand(1, m, 2, generator=generator)

    def maps(columns, order=slice(None)):
        return propagate_attention(query, key[:, :, order], value[:, :, order], columns[:, order])[1]

    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(maps(torch.ones(1, m, 1)), torch.ones(1, heads, n, 1), **close)
    a, b = maps(columns).unbind(-1)
    torch.testing.assert_close(maps(2 * columns[..., :1] - columns[..., 1:])[..., 0], 2 * a - b, **close)
    order = torch.randperm(m, generator=generator)
    torch.testing.assert_close(maps(columns, order), maps(columns), **close)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"columns": None}, TypeError, "columns: expected a torch.Tensor, got NoneType"),
        ({"columns": torch.zeros(2, 5, 1)}, ValueError, r"columns: expected shape \[B, M, C\] with B=2, M=203, got"),
        ({"columns": torch.zeros(2, 2, 203, 1)}, ValueError, r"\[B, H, M, C\] with B=2, H=3, M=203, got"),
        ({"columns": torch.zeros(2, 203, 17)}, ValueError, "columns: expected 1 to 16 columns, got 17"),
        ({"columns": torch.zeros(2, 203, 0)}, ValueError, "columns: expected 1 to 16 columns, got 0"),
        ({"columns": torch.zeros(2, 203, 1).half()}, TypeError, "columns: expected dtype torch.float32, got"),
        ({"key": torch.zeros(2, 3, 203, 8)}, ValueError, "key: expected shape .* with B=2, H=3, D=64, got"),
        ({"value": torch.zeros(2, 3, 203, 64).half()}, TypeError, "value: expected dtype torch.float32, got"),
        ({"impl": "eager"}, ValueError, "impl: expected None or one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, changes, error, message):
    everything = dict(zip(("query", "key", "value", "columns"), arguments(), strict=True)) | changes
    with pytest.raises(error, match=message):
        propagate_attention(**everything)
