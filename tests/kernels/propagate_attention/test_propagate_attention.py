import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.kernels import propagate_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = ["triton", "portable", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


SHAPES = [
    # query tokens, key tokens, head dim, columns, columns per head
    (113, 203, 40, 1, False),
    (299, 399, 64, 3, False),
    (203, 77, 80, 16, False),
    (64, 231, 128, 2, True),
    (33, 512, 160, 16, True),
    (77, 189, 64, 2, True),
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
    out, _ = propagate_attention(query, key, value, columns, impl="portable")
    stock = F.scaled_dot_product_attention(query, key, value)
    # Bits are equal with MKL on AVX-512; other matrix libraries, and those of GPUs, sum in another order when V is wider.
    roundings = 8 if out.is_cuda else 1
    assert (out - stock).abs().max() <= roundings * torch.finfo(dtype).eps * stock.abs().max()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_half_precision_keeps_columns_of_any_size(arguments, dtype, size, impl):
    query, key, value, columns = arguments(dtype=dtype)
    _, maps = propagate_attention(query, key, value, columns * size, impl=impl)
    _, truth = propagate_attention(*[a.double() for a in (query, key, value, columns * size)], impl="reference")
    assert ((maps.double() - truth) / size).abs().max() <= torch.finfo(dtype).eps / 4


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constant_columns_come_back(arguments, dtype, impl):
    query, key, value, columns = arguments(dtype=dtype)
    _, maps = propagate_attention(query, key, value, torch.full_like(columns, 0.3), impl=impl)
    # The kernel keeps a column as two bfloat16 numbers, which hold 0.3 to 2**-18 of it.
    assert (maps - 0.3).abs().max() <= (2.5e-6 if dtype == torch.bfloat16 and impl == "triton" else 1e-6)


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


@pytest.mark.parametrize("impl", ["triton", "portable"])
@pytest.mark.parametrize("value_dim", [8, 96])
def test_values_may_be_narrower_or_wider_than_keys(arguments, heads_last, value_dim, impl):
    query, key, _, columns = arguments()
    value = heads_last(2, 3, 203, value_dim)
    for actual, expected in zip(
        propagate_attention(query, key, value, columns, impl=impl),
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


@pytest.mark.parametrize(
    ("dtype", "impl"),
    [(torch.float32, "triton"), (torch.float32, "reference"), (torch.float32, "portable"), (torch.float16, "portable")],
    ids=str,
)
def test_compiles_without_graph_breaks_for_any_number_of_tokens(arguments, dtype, impl):
    compiled = torch.compile(
        functools.partial(propagate_attention, impl=impl), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for n, m in ((113, 203), (57, 90)):
        args = arguments(n, m, dtype=dtype)
        for ours, theirs in zip(compiled(*args), propagate_attention(*args, impl=impl), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_hidden_keys_are_as_good_as_absent_and_rows_without_any_give_zero(arguments, dtype, impl):
    query, key, value, columns = arguments(n=40, dtype=dtype)
    seen = torch.rand(2, 203, generator=torch.Generator().manual_seed(5)).to(DEVICE) > 0.4
    seen[1] = False
    out, maps = propagate_attention(query, key, value, columns, key_mask=seen, impl=impl)
    kept = seen[0]
    alone = propagate_attention(query[:1], key[:1, :, kept], value[:1, :, kept], columns[:1, kept], impl="reference")
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(out[:1], alone[0], **close)
    torch.testing.assert_close(maps[:1], alone[1], **close)
    assert (out[1] == 0).all()
    assert (maps[1] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_maps_add_up_in_place(arguments, impl):
    args = arguments(n=33)
    out, maps = propagate_attention(*args, impl=impl)
    total = torch.full((2, 3, 40, 2), 0.25, device=DEVICE)
    window = total[:, :, :33]
    again, returned = propagate_attention(*args, accumulate=window, impl=impl)
    assert returned is window
    assert torch.equal(again, out)
    torch.testing.assert_close(window, maps + 0.25, rtol=0, atol=1e-7)
    assert (total[:, :, 33:] == 0.25).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_maps_are_not_added_up_in_memory_that_they_share(arguments, impl):
    args = arguments(n=33)
    total = torch.zeros(1, 3, 33, 2, device=DEVICE).expand(2, -1, -1, -1)
    with pytest.raises(ValueError, match="accumulate: expected memory of its own for every map"):
        propagate_attention(*args, accumulate=total, impl=impl)


@pytest.mark.parametrize("rows", [(0, 1), (1, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
def test_some_rows_of_a_batch_make_the_maps_they_make_alone(arguments, rows, masked, impl):
    query, key, value, columns = arguments(batch=4)
    part = slice(*rows)
    seen = (
        (torch.arange(key.shape[2], device=DEVICE) % 3 != torch.arange(4, device=DEVICE)[:, None]) if masked else None
    )
    alone = None if seen is None else seen[part]
    _, expected = propagate_attention(query[part], key[part], value[part], columns[part], key_mask=alone, impl=impl)
    whole, _ = propagate_attention(query, key, value, columns, key_mask=seen, impl=impl)
    sums = torch.ones_like(expected)
    out, maps = propagate_attention(
        query, key, value, columns[part], key_mask=seen, rows=rows, accumulate=sums, impl=impl
    )
    assert maps is sums
    torch.testing.assert_close(maps, expected + 1)
    torch.testing.assert_close(out, whole, rtol=1e-5, atol=1e-6)


def test_the_kernel_reads_and_writes_beyond_2_to_the_31_elements(near_and_far):
    near, far = near_and_far
    columns = torch.rand(3, 5, 1, device=DEVICE)
    expected = propagate_attention(near, near, near, columns, impl="triton")
    for actual, value in zip(propagate_attention(far, far, far, columns, impl="triton"), expected, strict=True):
        assert torch.equal(actual, value)


@pytest.mark.parametrize("sizes", [(), (3, 5)], ids=str)
def test_the_op_keeps_its_contract_with_torch(arguments, sizes):
    query, key, value, columns = arguments(n=30, m=30)
    maps = torch.zeros(2, 3, 30, 2 + len(sizes), device=DEVICE)
    args = (query, key, value, columns.unsqueeze(1), maps, None, sizes, 10, 18, 30, 0.125, 0, True)
    torch.library.opcheck(torch.ops.lotts.propagate_attention, args)


@pytest.mark.parametrize(
    "config",
    [{"BLOCK_N": 16, "BLOCK_M": 16, "num_stages": 1}, {"BLOCK_N": 64, "BLOCK_M": 128, "num_stages": 1}],
    ids=str,
)
def test_results_repeat_bit_for_bit_and_hold_for_every_block_size(arguments, config):
    from lotts.kernels.propagate_attention.triton import launch

    query, key, value, columns = arguments(n=40, m=50)
    expected = propagate_attention(query, key, value, columns, impl="reference")
    runs = []
    for _ in range(2):
        out, maps = torch.empty_like(query), torch.empty(2, 3, 40, 2, device=DEVICE)
        launch(query, key, value, columns.unsqueeze(1), out, maps, None, [], 50, (0, 0), 0.125, 0, False, config)
        runs.append((out, maps))
    for first, second, truth in zip(*runs, expected, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "heads", "dim"), [(4096, 10, 64), (9216, 5, 64), (4608, 24, 128)])
def test_full_size_layers_are_as_accurate_as_eager_torch(arguments, accuracy, eager, dtype, tokens, heads, dim):
    args = arguments(tokens, tokens, dim, dtype, batch=1, heads=heads)
    out, maps = propagate_attention(*args, impl="triton")
    truth = propagate_attention(*[a.double() for a in args], impl="reference")
    eager_out, eager_maps = eager(*args[:3], args[3].unsqueeze(1))
    accuracy(out, eager_out, truth[0], rms_bound=2 * torch.finfo(dtype).eps)
    accuracy(maps, eager_maps, truth[1], rms_bound=torch.finfo(dtype).eps / 2)


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
        ({"columns": torch.zeros(2, 5, 1)}, ValueError, r"columns: expected shape \[R, M, C\] with R=2, M=203, got"),
        ({"columns": torch.zeros(2, 2, 203, 1)}, ValueError, r"\[R, H, M, C\] with R=2, H=3, M=203, got"),
        ({"columns": torch.zeros(2, 203, 17)}, ValueError, "columns: expected 1 to 16 columns, got 17"),
        ({"columns": torch.zeros(2, 203, 0)}, ValueError, "columns: expected 1 to 16 columns, got 0"),
        ({"columns": torch.zeros(2, 203, 1).half()}, TypeError, "columns: expected dtype torch.float32, got"),
        ({"key": torch.zeros(2, 3, 203, 8)}, ValueError, "key: expected shape .* with B=2, H=3, D=64, got"),
        ({"value": torch.zeros(2, 3, 203, 64).half()}, TypeError, "value: expected dtype torch.float32, got"),
        ({"impl": "eager"}, ValueError, "impl: expected None or one of"),
        ({"key_mask": torch.ones(2, 9, dtype=torch.bool)}, ValueError, r"key_mask: expected shape \[B\|1, M\]"),
        ({"probe_sizes": (3,)}, ValueError, "probe_start, context: expected positions to go with probe_sizes"),
        (
            {"rows": (1, 3)},
            ValueError,
            r"rows: expected \[from, to\) within the 2 of the batch, at least one, got \[1, 3\]",
        ),
        ({"rows": (1, 1)}, ValueError, r"rows: .* at least one, got \[1, 1\]"),
        ({"probe_start": 3}, ValueError, "probe_sizes: expected the size of each probe group"),
        (
            {"probe_sizes": (3,), "probe_start": 0, "context": (5, 9)},
            ValueError,
            "query, key: expected one joint sequence with probe groups, got 113 and 203 tokens",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, changes, error, message):
    everything = dict(zip(("query", "key", "value", "columns"), arguments(), strict=True)) | changes
    with pytest.raises(error, match=message):
        propagate_attention(**everything)
