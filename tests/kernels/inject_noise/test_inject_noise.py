import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.kernels import inject_noise, philox_normal

IMPLS = ["triton", "portable", "reference"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def arguments(batch=2, refinements=3, shape=(4, 9, 7), dtype=torch.float32, mask_each=False, background_each=False):
    generator = torch.Generator().manual_seed(0)
    leading = {False: (batch,), True: (batch, refinements)}
    made = {
        "x0": torch.randn(batch, *shape, generator=generator).to(dtype),
        # Soft values, and exact zeros and ones among them.
        "mask": (torch.rand(*leading[mask_each], 1, *shape[1:], generator=generator) * 2 - 0.5).clamp(0, 1),
        "background": torch.randn(*leading[background_each], *shape, generator=generator).to(dtype),
        "seeds": torch.randint(2**63 - 1, (batch, refinements), generator=generator),
        "signal": 0.8,
        "noise": 0.6,
    }
    return {name: on_device(value) for name, value in made.items()}


def on_device(value):
    return value.to(DEVICE) if torch.is_tensor(value) else value


def each(tensor, ndim):
    """[B, K or 1, ...] from a tensor given once a sample or once a refinement."""
    return tensor if tensor.ndim == ndim + 1 else tensor.unsqueeze(1)


def formula(x0, mask, background, seeds, signal, noise):
    """The equation in the dtype of its arguments."""
    e = philox_normal(seeds, x0.shape[1:], dtype=x0.dtype, impl="reference")
    mask, background = each(mask, x0.ndim).to(x0.dtype), each(background, x0.ndim)
    return mask * (signal * x0.unsqueeze(1) + noise * e) + (1 - mask) * background


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask_each", [False, True])
@pytest.mark.parametrize("background_each", [False, True])
def test_error_is_at_most_twice_that_of_eager_torch(accuracy, impl, dtype, mask_each, background_each):
    args = arguments(dtype=dtype, mask_each=mask_each, background_each=background_each)
    actual = inject_noise(**args, impl=impl)
    assert actual.dtype == dtype
    wide = {name: a.double() if torch.is_tensor(a) and a.is_floating_point() else a for name, a in args.items()}
    accuracy(actual, formula(**args), formula(**wide), rms_bound=torch.finfo(dtype).eps)


@pytest.mark.parametrize("impl", IMPLS)
def test_factors_may_differ_by_sample(impl):
    args = arguments() | {
        "signal": torch.tensor([0.9, 0.2], device=DEVICE),
        "noise": torch.tensor([0.1, 0.7], device=DEVICE),
    }
    together = inject_noise(**args, impl=impl)
    for b in range(2):
        one = {name: a[b : b + 1] for name, a in args.items()} | {"signal": args["signal"][b].item()}
        torch.testing.assert_close(inject_noise(**one, impl=impl), together[b : b + 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_where_the_mask_is_zero_the_background_returns_whatever_the_latents_are(impl, dtype, poison):
    args = arguments(dtype=dtype)
    outside = (args["mask"] == 0).expand(args["x0"].shape)
    assert outside.any()
    args["x0"][outside] = poison
    result = inject_noise(**args, impl=impl)
    assert result.isfinite().all()
    for k in range(3):
        assert torch.equal(result[:, k][outside], args["background"][outside])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_the_mask_is_one_the_noised_latents_return_whatever_the_background_is(impl, dtype):
    args = arguments(dtype=dtype)
    inside = (args["mask"] == 1).expand(args["x0"].shape)
    assert inside.any()
    everywhere = inject_noise(**(args | {"mask": torch.ones_like(args["mask"])}), impl=impl)
    args["background"][inside] = float("nan")
    result = inject_noise(**args, impl=impl)
    for k in range(3):
        assert torch.equal(result[:, k][inside], everywhere[:, k][inside])


@pytest.mark.parametrize("impl", ["triton", "portable"])
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(0, 3),
    refinements=st.integers(0, 3),
    shape=st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(1, 4)),
    stream=st.integers(0, 2**32 - 1),
)
def test_a_refinement_does_not_depend_on_its_company(impl, batch, refinements, shape, stream):
    args = arguments(batch, refinements, shape, mask_each=True)
    together = inject_noise(**args, stream=stream, impl=impl)
    assert together.shape == (batch, refinements, *shape)
    for b in range(batch):
        for k in range(refinements):
            alone = {
                "x0": args["x0"][b : b + 1],
                "mask": args["mask"][b : b + 1, k],
                "background": args["background"][b : b + 1],
                "seeds": args["seeds"][b : b + 1, k : k + 1],
            }
            assert torch.equal(inject_noise(**(args | alone), stream=stream, impl=impl)[0, 0], together[b, k])


@settings(max_examples=25, deadline=None)
@given(value=st.floats(0, 1, width=32), seed=st.integers(0, 2**63 - 1))
def test_the_result_lies_between_background_and_noised_latents(value, seed):
    args = arguments(1, 1, (2, 3, 3)) | {"seeds": torch.tensor([[seed]], device=DEVICE)}
    background = args["background"].unsqueeze(1)
    noised = inject_noise(**(args | {"mask": torch.ones(1, 1, 3, 3, device=DEVICE)}))
    result = inject_noise(**(args | {"mask": torch.full((1, 1, 3, 3), value, device=DEVICE)}))
    assert (result >= torch.minimum(background, noised) - 1e-6).all()
    assert (result <= torch.maximum(background, noised) + 1e-6).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_noise_is_philox_normal_of_seed_and_stream(impl):
    args = arguments() | {"signal": 0.0, "noise": 1.0}
    args["mask"].fill_(1)
    noise = philox_normal(args["seeds"], (4, 9, 7), stream=11, impl=impl)
    assert torch.equal(inject_noise(**args, stream=11, impl=impl), noise)


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("block", [32, 256, 2048])
def test_numbers_do_not_depend_on_the_launch(block, calls):
    from lotts.kernels.inject_noise.triton import launch

    args = arguments(mask_each=True)
    shipped = inject_noise(**args, stream=3, impl="triton")
    tensors = args["x0"], args["mask"], args["background"].unsqueeze(1), args["seeds"]
    config = {"BLOCK": block, "CALLS": calls, "num_warps": 1, "num_stages": 1}
    assert torch.equal(launch(*tensors, 0.8, None, 0.6, None, 3, config), shipped)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(48, 16), (4, 3, 5, 5), (7,), (2, 3, 2, 3, 5)], ids=str)
def test_latents_need_not_be_images(impl, shape):
    args = arguments(shape=shape)
    torch.testing.assert_close(inject_noise(**args, impl=impl), formula(**args), rtol=1e-5, atol=1e-6)


def strided(tensor):
    """The same elements, every second one of a larger tensor that is NaN elsewhere, dims in reverse order in memory."""
    room = tensor.new_full([2 * size for size in reversed(tensor.shape)], float("nan"))
    view = room[tuple(slice(1, None, 2) for _ in tensor.shape)].permute(*reversed(range(tensor.ndim)))
    return view.copy_(tensor)


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_tensors_are_read_in_their_logical_order(impl):
    args = arguments(shape=(4, 6, 5), mask_each=True, background_each=True)
    views = {name: strided(args[name]) for name in ("x0", "mask", "background")}
    views["seeds"] = args["seeds"].T.contiguous().T
    assert torch.equal(inject_noise(**(args | views), impl=impl), inject_noise(**args, impl=impl))


@pytest.mark.parametrize("name", ["x0", "mask", "background"])
@pytest.mark.parametrize("shape", [(48, 16), (64,)], ids=str)
def test_rows_may_have_room_between_them(name, shape):
    args = arguments(shape=shape)
    args["mask"] = args["mask"].expand(2, *shape).contiguous()
    room = torch.full((2, 2, *shape[:-1], shape[-1] + 4), float("nan"), device=DEVICE)
    view = room[:, 1, ..., : shape[-1]].copy_(args[name])
    assert torch.equal(inject_noise(**(args | {name: view}), impl="triton"), inject_noise(**args, impl="triton"))


def test_a_background_of_negative_zeros_keeps_their_sign():
    args = arguments()
    args["background"] = torch.full_like(args["background"], -0.0)
    outside = (args["mask"] == 0).expand(args["x0"].shape)
    assert inject_noise(**args, impl="triton")[:, 0][outside].signbit().all()


def test_samples_of_five_dims_that_do_not_merge_are_refused():
    args = arguments(shape=(2, 2, 2, 2, 3))
    with pytest.raises(ValueError, match=r"expected samples whose strides let them merge to at most 4 dims, got 5 of"):
        inject_noise(**(args | {"x0": strided(args["x0"])}), impl="triton")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("batch", "refinements", "shape"), [(0, 2, (4, 3)), (2, 0, (4, 3)), (2, 2, (0, 3))], ids=str)
def test_nothing_to_do_gives_an_empty_result(impl, batch, refinements, shape):
    args = arguments(batch, refinements, shape)
    assert inject_noise(**args, impl=impl).shape == (batch, refinements, *shape)


def test_offsets_past_two_to_the_31_are_reached(tmp_path):
    # A sparse file: two samples of which the second begins beyond what 32 bits can address.
    apart = 2**31 + 64
    whole = torch.from_file(str(tmp_path / "latents"), shared=True, size=2 * apart, dtype=torch.float16)
    args = arguments(refinements=2, shape=(2, 3, 5), dtype=torch.float16)
    far = whole.as_strided((2, 2, 3, 5), (apart, 15, 5, 1)).copy_(args["x0"].cpu())
    cpu = {name: a.cpu() if torch.is_tensor(a) else a for name, a in args.items()}
    impl = "triton" if DEVICE == "cpu" else "portable"
    expected = inject_noise(**cpu, impl=impl)
    assert torch.equal(inject_noise(**(cpu | {"x0": far}), impl=impl), expected)
    assert torch.equal(
        inject_noise(**(cpu | {"background": cpu["x0"]}), impl=impl),
        inject_noise(**(cpu | {"background": far}), impl=impl),
    )


@pytest.mark.parametrize("impl", ["triton", "portable"])
def test_two_runs_give_the_same_bits(impl):
    assert torch.equal(inject_noise(**arguments(), impl=impl), inject_noise(**arguments(), impl=impl))


@pytest.mark.parametrize(("impl", "batches"), [("portable", [2]), ("triton", [2, 3])])
def test_compiles_without_graph_breaks(impl, batches):
    compiled = torch.compile(inject_noise, fullgraph=True, backend="aot_eager", dynamic=len(batches) > 1)
    for batch in batches:
        args = arguments(batch, shape=(4, 9, 4 + batch)) | {"noise": torch.full((batch,), 0.6, device=DEVICE)}
        expected = inject_noise(**args, impl=impl)
        torch.testing.assert_close(compiled(**args, impl=impl), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("factor", [None, [0.3, 0.4]], ids=["numbers", "tensors"])
def test_the_operator_passes_opcheck(factor):
    args = arguments()
    factor = None if factor is None else torch.tensor(factor, device=DEVICE)
    inputs = args["x0"], args["mask"].unsqueeze(1), args["background"].unsqueeze(1), args["seeds"]
    torch.library.opcheck(torch.ops.lotts.inject_noise, (*inputs, 0.8, None, 0.6, factor, 1))


@pytest.mark.gpu
def test_a_replayed_graph_reads_new_seeds_and_factors():
    args = arguments() | {"noise": torch.full((2,), 0.6, device=DEVICE)}
    inject_noise(**args, impl="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = inject_noise(**args, impl="triton")
    graph.replay()
    before = result.clone()
    assert torch.equal(before, inject_noise(**args, impl="triton"))
    args["seeds"] += 1
    args["noise"] *= 2
    graph.replay()
    assert torch.equal(result, inject_noise(**args, impl="triton"))
    assert not torch.equal(result, before)


def test_float64_is_for_other_implementations():
    args = arguments(dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"impl='triton' cannot run here: .* float64"):
        inject_noise(**args, impl="triton")
    assert inject_noise(**args).dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x0": 1.0}, TypeError, "x0: expected a torch.Tensor, got float"),
        ({"x0": torch.zeros(2)}, ValueError, "x0.ndim: expected at least 2, got 1"),
        ({"mask": torch.ones(2, 1, 9, 8)}, ValueError, r"mask: expected shape .*, got \[2, 1, 1, 9, 8\]"),
        ({"mask": torch.ones(2, 1, 9, 7, dtype=torch.bool)}, TypeError, "mask: expected dtype .* got torch.bool"),
        ({"background": torch.ones(2, 5, 4, 9, 7)}, ValueError, "background: expected shape .* with B=2, K=3"),
        ({"background": torch.ones(2, 4, 9, 7).half()}, TypeError, "background: expected dtype torch.float32"),
        ({"seeds": torch.zeros(3, 3, dtype=torch.int64)}, ValueError, "seeds: expected shape .* with B=2, got"),
        ({"seeds": torch.zeros(2, 3)}, TypeError, "seeds: expected dtype torch.int64"),
        ({"signal": torch.ones(3)}, ValueError, r"signal: expected shape \[B\] with B=2, got \[3\]"),
        ({"noise": torch.ones(2).double()}, TypeError, "noise: expected dtype torch.float32"),
        ({"stream": -1}, ValueError, "stream: expected 0 to"),
    ],
)
def test_wrong_arguments_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        inject_noise(**(arguments() | {name: on_device(value) for name, value in changes.items()}))
