import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.kernels import contrast_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

IMPLS = ["triton", "portable", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def widened(args, sides):
    return [a.double() for a in args], {name: a.double() for name, a in sides.items()}


SHAPES = [
    # query tokens, prompt tokens, head dim
    (113, 77, 40),
    (203, 1, 64),
    (64, 113, 80),
    (299, 231, 128),
    (33, 512, 160),
    (1, 77, 64),
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "length", "dim"), SHAPES)
def test_error_is_at_most_twice_that_of_eager_torch(arguments, accuracy, eager, n, length, dim, dtype, impl):
    args, sides = arguments(n, length, dim, dtype)
    out, maps = contrast_attention(*args, **sides, impl=impl)
    wide_args, wide_sides = widened(args, sides)
    true_out, true_maps = contrast_attention(*wide_args, **wide_sides, impl="reference")
    assert out.dtype == dtype
    assert maps.dtype == torch.float32

    query, key, value, weight = args
    eager_out, eager_maps = eager(query, key, value, weight.unsqueeze(1))
    for side in ("pos", "neg"):
        keys, weights = sides[f"key_{side}"], sides[f"weight_{side}"]
        eager_maps = torch.cat([eager_maps, eager(query, keys, keys, weights[:, None, :, None])[1]], dim=-1)
    accuracy(out, eager_out, true_out, rms_bound=max(1e-6, 2 * torch.finfo(dtype).eps))
    # The maps are float32 throughout, whatever the inputs are.
    accuracy(maps, eager_maps, true_maps, rms_bound=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_is_the_stock_attention_bit_for_bit(arguments, dtype):
    (query, key, value, weight), sides = arguments(dtype=dtype)
    out, _ = contrast_attention(query, key, value, weight, **sides, impl="portable")
    stock = F.scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False)
    assert torch.equal(out, stock)


@pytest.mark.parametrize("impl", IMPLS)
def test_maps_are_ordered_columns_positive_negative(arguments, impl):
    args, sides = arguments()
    _, all_maps = contrast_attention(*args, **sides, impl=impl)
    pos = {name: tensor for name, tensor in sides.items() if name.endswith("pos")}
    neg = {name: tensor for name, tensor in sides.items() if name.endswith("neg")}
    assert all_maps.shape[-1] == 4
    assert torch.equal(contrast_attention(*args, impl=impl)[1], all_maps[..., :2])
    assert torch.equal(contrast_attention(*args[:3], **pos, impl=impl)[1], all_maps[..., 2:3])
    assert torch.equal(contrast_attention(*args[:3], **neg, impl=impl)[1], all_maps[..., 3:])
    assert contrast_attention(*args[:3], impl=impl)[1].shape == (2, 3, 113, 0)


@pytest.mark.parametrize("impl", IMPLS)
def test_weights_may_be_shared_by_the_batch(arguments, impl):
    (query, key, value, weight), _ = arguments()
    shared = contrast_attention(query, key, value, weight[0], impl=impl)[1]
    repeated = contrast_attention(query, key, value, weight[:1].expand(2, -1, -1), impl=impl)[1]
    assert torch.equal(shared, repeated)


@pytest.mark.parametrize("impl", IMPLS)
def test_scale_multiplies_the_scores(arguments, impl):
    (query, key, value, weight), sides = arguments()
    scaled = contrast_attention(query, key, value, weight, **sides, scale=0.25, impl=impl)
    folded = contrast_attention(query * (0.25 * 64**0.5), key, value, weight, **sides, impl=impl)
    for actual, expected in zip(scaled, folded, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scale", [-0.125, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_scales_need_not_be_positive(arguments, dtype, scale, impl):
    args, sides = arguments(n=20, dtype=dtype)
    _, maps = contrast_attention(*args, **sides, scale=scale, impl=impl)
    wide_args, wide_sides = widened(args, sides)
    truth = contrast_attention(*wide_args, **wide_sides, scale=scale, impl="reference")[1]
    torch.testing.assert_close(maps.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("batch", "n"), [(2, 0), (0, 5)])
def test_zero_rows_give_zero_rows(arguments, batch, n, impl):
    args, sides = arguments(n=n, batch=batch)
    if batch == 0:
        sides = {name: tensor for name, tensor in sides.items() if name.endswith("neg")}
    out, maps = contrast_attention(*args, **sides, impl=impl)
    assert out.shape == (batch, 3, n, 64)
    assert maps.shape == (batch, 3, n, 2 + len(sides) // 2)


def test_block_boundaries_leave_no_seam(arguments):
    # 3 heads of 16 padded tokens: one block holds 5461 queries, so this takes a full and a partial one.
    args, _ = arguments(n=6000, length=9, dim=40, batch=1)
    expected = contrast_attention(*args, impl="reference")[1]
    torch.testing.assert_close(contrast_attention(*args, impl="portable")[1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores_do_not_overflow(arguments, dtype, impl):
    (query, key, value, weight), sides = arguments(dtype=dtype)
    _, maps = contrast_attention(query * 100, key * 50, value, weight, **sides, impl=impl)
    assert maps.isfinite().all()
    assert maps.min() >= 0
    assert maps.max() <= 1 + 1e-6


@pytest.mark.parametrize("seen", [None, torch.arange(77).repeat(2, 1) % 3 > 0], ids=["all", "some"])
def test_maps_are_differentiable(arguments, seen):
    args, sides = arguments(n=17)
    args[0].requires_grad_()
    seen = None if seen is None else seen.to(DEVICE)
    gradients = [
        torch.autograd.grad(contrast_attention(*args, **sides, key_mask=seen, impl=impl)[1].square().sum(), args[0])[0]
        for impl in ("portable", "reference")
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_compiles_without_graph_breaks_for_any_number_of_rows(arguments, impl):
    compiled = torch.compile(
        functools.partial(contrast_attention, impl=impl), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for n in (113, 57):
        args, sides = arguments(n=n)
        expected = contrast_attention(*args, **sides, impl=impl)
        for ours, theirs in zip(compiled(*args, **sides), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shared", [False, True])
def test_hidden_tokens_are_as_good_as_absent(arguments, impl, shared):
    args, sides = arguments(n=40)
    seen = (torch.rand(1 if shared else 2, 77, generator=torch.Generator().manual_seed(9)) > 0.4).to(DEVICE)
    out, maps = contrast_attention(*args, **sides, key_mask=seen, impl=impl)
    for b in range(2):
        kept = seen[0 if shared else b]
        query, key, value, weight = (a[b : b + 1] for a in args)
        alone = contrast_attention(query, key[:, :, kept], value[:, :, kept], weight[:, kept], impl="reference")
        torch.testing.assert_close(out[b : b + 1], alone[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(maps[b : b + 1, ..., :2], alone[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_that_see_nothing_give_zero(arguments, impl, dtype):
    args, sides = arguments(n=40, dtype=dtype)
    seen = torch.tensor([[True], [False]], device=DEVICE).expand(2, 77)
    out, maps = contrast_attention(*args, **sides, key_mask=seen, impl=impl)
    assert out.isfinite().all()
    assert (out[0] != 0).any()
    assert (out[1] == 0).all()
    assert (maps[1, ..., :2] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_maps_add_up_in_place(arguments, impl):
    args, sides = arguments(n=33)
    out, maps = contrast_attention(*args, **sides, impl=impl)
    total = torch.full((2, 3, 40, 4), 0.25, device=DEVICE)
    window = total[:, :, :33]
    again, returned = contrast_attention(*args, **sides, accumulate=window, impl=impl)
    assert returned is window
    assert torch.equal(again, out)
    torch.testing.assert_close(window, maps + 0.25, rtol=0, atol=1e-7)
    assert (total[:, :, 33:] == 0.25).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_maps_are_not_added_up_in_memory_that_they_share(arguments, impl):
    args, sides = arguments(n=33)
    total = torch.zeros(1, 3, 33, 4, device=DEVICE).expand(2, -1, -1, -1)
    with pytest.raises(ValueError, match="accumulate: expected memory of its own for every map"):
        contrast_attention(*args, **sides, accumulate=total, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_small_masses_keep_their_relative_accuracy(arguments, impl, dtype):
    # A contrast may be taken in the log domain: what is left beside a token that takes all but 1e-15 must still be exact.
    (query, key, value, _), _ = arguments(n=50, dtype=dtype)
    query = query * 0.1 + 1
    key = key * 0.1
    key[:, :, 0] = 4
    weight = torch.ones(77, 1, device=DEVICE)
    weight[0] = 0
    _, maps = contrast_attention(query, key, value, weight, impl=impl)
    truth = contrast_attention(*(a.double() for a in (query, key, value, weight)), impl="reference")[1]
    assert truth.max() < 1e-9
    torch.testing.assert_close(maps.double(), truth, rtol=2e-5, atol=0)


def test_the_kernel_reads_and_writes_beyond_2_to_the_31_elements(near_and_far):
    near, far = near_and_far
    weight = torch.rand(5, 1, device=DEVICE)
    expected = contrast_attention(near, near, near, weight, impl="triton")
    for actual, value in zip(contrast_attention(far, far, far, weight, impl="triton"), expected, strict=True):
        assert torch.equal(actual, value)


def test_the_op_keeps_its_contract_with_torch(arguments):
    (query, key, value, weight), sides = arguments(n=20)
    maps = torch.zeros(2, 3, 20, 4, device=DEVICE)
    args = (query, key, value, maps, weight, *sides.values(), None, 0.125, 0, True)
    torch.library.opcheck(torch.ops.lotts.contrast_attention, args)


@pytest.mark.parametrize(
    "config",
    [
        {"BLOCK_N": 16, "BLOCK_L": 16, "num_stages": 1},
        {"BLOCK_N": 64, "BLOCK_L": 128, "num_stages": 1},
        {"BLOCK_N": 16, "BLOCK_L": 64, "TAIL": 16, "num_stages": 1},
    ],
    ids=str,
)
def test_results_repeat_bit_for_bit_and_hold_for_every_block_size(arguments, config):
    from lotts.kernels.contrast_attention.triton import launch

    (query, key, value, weight), sides = arguments(n=24, heads=2)
    expected = contrast_attention(query, key, value, weight, **sides, impl="reference")
    runs = []
    for _ in range(2):
        out, maps = torch.empty_like(query), torch.empty(2, 2, 24, 4, device=DEVICE)
        pairs = [(sides[f"key_{side}"], sides[f"weight_{side}"]) for side in ("pos", "neg")]
        launch(query, key, value, out, maps, weight, *pairs, None, 0.125, 0, False, config)
        runs.append((out, maps))
    for first, second, truth in zip(*runs, expected, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_results_of_a_sample_do_not_depend_on_the_others(arguments, dtype):
    # Alone, a sample's rows are spread over more programs.
    args, sides = arguments(n=300, heads=1, batch=3, dtype=dtype)
    together = contrast_attention(*args, **sides, impl="triton")
    alone = {name: tensor[1:2] if len(tensor) > 1 else tensor for name, tensor in sides.items()}
    for actual, expected in zip(
        contrast_attention(*(a[1:2] for a in args), **alone, impl="triton"), together, strict=True
    ):
        assert torch.equal(actual, expected[1:2])


@pytest.mark.parametrize("rows", [(0, 1), (1, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("length", [77, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_some_rows_of_a_batch_make_the_maps_they_make_alone(arguments, rows, length, dtype, impl):
    args, sides = arguments(n=40, batch=4, length=length, dtype=dtype)
    part = slice(*rows)
    seen = torch.arange(length, device=DEVICE) % 3 != torch.arange(4, device=DEVICE)[:, None]
    sides = {name: tensor[part] if len(tensor) > 1 else tensor for name, tensor in sides.items()}
    _, expected = contrast_attention(*(a[part] for a in args), **sides, key_mask=seen[part], impl=impl)
    whole, _ = contrast_attention(*args[:3], key_mask=seen, impl=impl)
    sums = torch.ones_like(expected)
    out, maps = contrast_attention(
        *args[:3], args[3][part], **sides, key_mask=seen, rows=rows, accumulate=sums, impl=impl
    )
    assert maps is sums
    torch.testing.assert_close(maps, expected + 1)
    torch.testing.assert_close(out, whole)


@pytest.mark.parametrize("lengths", [(65, 80), (80, 66), (77, 64), (77, 81), (64, 77), (16, 77)], ids=str)
def test_prompts_that_are_held_and_those_that_are_not(arguments, lengths):
    # float16 prompts of 65 to 80 tokens take a path of their own, if all of them are so long.
    length, side_length = lengths
    args, sides = arguments(n=40, length=length, side_length=side_length, dtype=torch.float16, columns=3)
    out, maps = contrast_attention(*args, **sides, impl="triton")
    wide_args, wide_sides = widened(args, sides)
    truth = contrast_attention(*wide_args, **wide_sides, impl="reference")
    torch.testing.assert_close(out.double(), truth[0], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(maps.double(), truth[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [77, 40])
def test_hidden_tokens_of_half_precision_prompts(arguments, length):
    args, sides = arguments(n=40, length=length, dtype=torch.float16)
    seen = (torch.rand(2, length, generator=torch.Generator().manual_seed(9)) > 0.4).to(DEVICE)
    out, maps = contrast_attention(*args, **sides, key_mask=seen, impl="triton")
    wide_args, wide_sides = widened(args, sides)
    truth = contrast_attention(*wide_args, **wide_sides, key_mask=seen, impl="reference")
    torch.testing.assert_close(out.double(), truth[0], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(maps.double(), truth[1], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_a_captured_graph_replays_on_new_inputs(arguments):
    (query, key, value, weight), sides = arguments(dtype=torch.bfloat16)
    total = torch.zeros(2, 3, 113, 4, device=DEVICE)
    contrast_attention(query, key, value, weight, **sides, accumulate=total)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = contrast_attention(query, key, value, weight, **sides, accumulate=total)
    query.normal_()
    total.zero_()
    graph.replay()
    expected = contrast_attention(query, key, value, weight, **sides)
    assert torch.equal(out, expected[0])
    assert torch.equal(total, expected[1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("n", "heads", "dim", "length"), [(4096, 10, 64, 77), (1024, 20, 64, 77), (4096, 24, 128, 512)]
)
def test_full_size_layers_are_as_accurate_as_eager_torch(arguments, accuracy, eager, dtype, n, heads, dim, length):
    (query, key, value, weight), _ = arguments(n, length, dim, dtype, heads=heads)
    out, maps = contrast_attention(query, key, value, weight, impl="triton")
    truth = contrast_attention(*(a.double() for a in (query, key, value, weight)), impl="reference")
    accuracy(out, eager(query, key, value, weight.unsqueeze(1))[0], truth[0], rms_bound=2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(maps.double(), truth[1], rtol=1e-5, atol=1e-6)


sizes = st.integers(1, 40)


@settings(max_examples=25, deadline=None)
@given(n=sizes, length=sizes, heads=st.integers(1, 3), dim=st.sampled_from([8, 40]), seed=st.integers(0, 2**31))
def test_laws_of_the_maps(n, length, heads, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, heads, n, dim, generator=generator)
    key, value = torch.randn(2, 1, heads, length, dim, generator=generator)
    weight = torch.rand(1, length, 2, generator=generator)

    def maps(weights, order=slice(None)):
        return contrast_attention(query, key[:, :, order], value[:, :, order], weights[:, order])[1]

    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(maps(torch.ones(1, length, 1)), torch.ones(1, heads, n, 1), **close)
    a, b = maps(weight).unbind(-1)
    torch.testing.assert_close(maps(2 * weight[..., :1] - weight[..., 1:])[..., 0], 2 * a - b, **close)
    order = torch.randperm(length, generator=generator)
    torch.testing.assert_close(maps(weight, order), maps(weight), **close)
