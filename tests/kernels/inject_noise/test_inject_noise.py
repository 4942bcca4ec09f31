import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.kernels import inject_noise, philox_normal

IMPLS = ["portable", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def arguments(batch=2, refinements=3, shape=(4, 9, 7), dtype=torch.float32, mask_each=False, background_each=False):
    generator = torch.Generator().manual_seed(0)
    leading = {False: (batch,), True: (batch, refinements)}
    return {
        "x0": torch.randn(batch, *shape, generator=generator).to(dtype),
        # Soft values, and exact zeros and ones among them.
        "mask": (torch.rand(*leading[mask_each], 1, *shape[1:], generator=generator) * 2 - 0.5).clamp(0, 1),
        "background": torch.randn(*leading[background_each], *shape, generator=generator).to(dtype),
        "seeds": torch.randint(2**63 - 1, (batch, refinements), generator=generator),
        "signal": 0.8,
        "noise": 0.6,
    }


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
    args = arguments() | {"signal": torch.tensor([0.9, 0.2]), "noise": torch.tensor([0.1, 0.7])}
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


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 3),
    refinements=st.integers(0, 3),
    shape=st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(1, 4)),
    stream=st.integers(0, 2**32 - 1),
)
def test_a_refinement_does_not_depend_on_its_company(batch, refinements, shape, stream):
    args = arguments(batch, refinements, shape, mask_each=True)
    together = inject_noise(**args, stream=stream)
    assert together.shape == (batch, refinements, *shape)
    for b in range(batch):
        for k in range(refinements):
            alone = {
                "x0": args["x0"][b : b + 1],
                "mask": args["mask"][b : b + 1, k],
                "background": args["background"][b : b + 1],
                "seeds": args["seeds"][b : b + 1, k : k + 1],
            }
            assert torch.equal(inject_noise(**(args | alone), stream=stream)[0, 0], together[b, k])


@settings(max_examples=25, deadline=None)
@given(value=st.floats(0, 1, width=32), seed=st.integers(0, 2**63 - 1))
def test_the_result_lies_between_background_and_noised_latents(value, seed):
    args = arguments(1, 1, (2, 3, 3)) | {"seeds": torch.tensor([[seed]])}
    background = args["background"].unsqueeze(1)
    noised = inject_noise(**(args | {"mask": torch.ones(1, 1, 3, 3)}))
    result = inject_noise(**(args | {"mask": torch.full((1, 1, 3, 3), value)}))
    assert (result >= torch.minimum(background, noised) - 1e-6).all()
    assert (result <= torch.maximum(background, noised) + 1e-6).all()


def test_noise_is_philox_normal_of_seed_and_stream():
    args = arguments() | {"signal": 0.0, "noise": 1.0}
    args["mask"].fill_(1)
    noise = philox_normal(args["seeds"], (4, 9, 7), stream=11)
    assert torch.equal(inject_noise(**args, stream=11), noise)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(48, 16), (4, 3, 5, 5)], ids=["packed", "video"])
def test_latents_need_not_be_images(impl, shape):
    args = arguments(shape=shape)
    torch.testing.assert_close(inject_noise(**args, impl=impl), formula(**args), rtol=1e-5, atol=1e-6)


def test_non_contiguous_latents_are_read_in_their_logical_order():
    args = arguments(shape=(4, 8, 8))
    strided = args | {"x0": args["x0"].to(memory_format=torch.channels_last)}
    assert not strided["x0"].is_contiguous()
    assert torch.equal(inject_noise(**strided), inject_noise(**args))


def test_compiles_without_graph_breaks():
    args = arguments()
    compiled = torch.compile(inject_noise, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**args), inject_noise(**args), rtol=1e-6, atol=1e-6)


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
        inject_noise(**(arguments() | changes))
