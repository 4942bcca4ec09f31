import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.kernels import blend_step, inject_noise, philox_normal

IMPLS = ["triton", "portable", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

GUIDANCE = {"guidance_scale": 4.5}
NOISE = ["noise_factor", "seeds", "stream"]
BLEND = ["mask", "background"]
RENOISED = ["background_signal", "background_noise", "background_seeds", "background_stream"]
#: Which parts of a step take part.
PARTS = {
    "update": [],
    "guidance": ["guidance_scale"],
    "noise": NOISE,
    "replay": ["guidance_scale", *BLEND],
    "all": ["guidance_scale", *NOISE, *BLEND, *RENOISED],
}


def on_device(value):
    return value.to(DEVICE) if torch.is_tensor(value) else value


def arguments(batch=2, shape=(4, 9, 7), dtype=torch.float32, parts="all"):
    generator = torch.Generator().manual_seed(0)
    names = PARTS[parts]
    rows = 2 * batch if "guidance_scale" in names else batch
    made = {
        "latents": torch.randn(batch, *shape, generator=generator).to(dtype),
        "prediction": torch.randn(rows, *shape, generator=generator).to(dtype),
        "latents_factor": 1.1,
        "prediction_factor": -0.3,
    }
    optional = {
        "guidance_scale": 4.5,
        "noise_factor": 0.4,
        "seeds": torch.randint(2**63 - 1, (batch,), generator=generator),
        "stream": 5,
        # Soft values, and exact zeros and ones among them.
        "mask": (torch.rand(batch, 1, *shape[1:], generator=generator) * 2 - 0.5).clamp(0, 1),
        "background": torch.randn(batch, *shape, generator=generator).to(dtype),
        "background_signal": 0.8,
        "background_noise": 0.6,
        "background_seeds": torch.randint(2**63 - 1, (batch,), generator=generator),
        "background_stream": 2**32 - 1,
    }
    made |= {name: optional[name] for name in names}
    return {name: on_device(value) for name, value in made.items()}


def formula(a):
    """The equations in the dtype of the latents, as a user of eager PyTorch has them."""
    x, dtype = a["latents"], a["latents"].dtype
    noise = lambda seeds, stream: philox_normal(seeds, x.shape[1:], stream=stream, dtype=dtype, impl="reference")  # noqa: E731
    prediction = a["prediction"]
    if "guidance_scale" in a:
        unconditional, conditional = prediction.chunk(2)
        prediction = unconditional + a["guidance_scale"] * (conditional - unconditional)
    x = a["latents_factor"] * x + a["prediction_factor"] * prediction
    if "seeds" in a:
        x = x + a["noise_factor"] * noise(a["seeds"], a["stream"])
    if "mask" in a:
        background, mask = a["background"], a["mask"].to(dtype)
        if "background_seeds" in a:
            background = a["background_signal"] * background + a["background_noise"] * noise(
                a["background_seeds"], a["background_stream"]
            )
        x = mask * x + (1 - mask) * background
    return x


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", PARTS)
def test_error_is_at_most_twice_that_of_eager_torch(accuracy, impl, dtype, parts):
    args = arguments(dtype=dtype, parts=parts)
    actual = blend_step(**args, impl=impl)
    assert actual.dtype == dtype
    wide = {name: a.double() if torch.is_tensor(a) and a.is_floating_point() else a for name, a in args.items()}
    accuracy(actual, formula(args), formula(wide), rms_bound=torch.finfo(dtype).eps)


@pytest.mark.parametrize("impl", IMPLS)
def test_factors_may_differ_by_sample_and_samples_do_not_depend_on_their_company(impl):
    args = arguments()
    each = {
        name: torch.tensor([value, value + 0.25], device=DEVICE) for name, value in args.items() if type(value) is float
    }
    assert len(each) == 6
    together = blend_step(**(args | each), impl=impl)
    for b in range(2):
        one = {name: a[b : b + 1] if torch.is_tensor(a) else a for name, a in args.items()}
        one |= {name: value[b].item() for name, value in each.items()}
        one["prediction"] = args["prediction"][b::2]
        assert torch.equal(blend_step(**one, impl=impl), together[b : b + 1])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_where_the_mask_is_zero_the_background_returns_whatever_the_update_is(impl, dtype, poison):
    args = arguments(dtype=dtype, parts="replay")
    outside = (args["mask"] == 0).expand(args["latents"].shape)
    assert outside.any()
    args["latents"][outside] = poison
    result = blend_step(**args, impl=impl)
    assert result.isfinite().all()
    assert torch.equal(result[outside], args["background"][outside])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_noised_background_is_that_of_inject_noise_bit_for_bit(impl, dtype):
    args = arguments(dtype=dtype)
    noised = inject_noise(
        args["background"],
        torch.ones_like(args["mask"]),
        args["background"],
        args["background_seeds"][:, None],
        signal=args["background_signal"],
        noise=args["background_noise"],
        stream=args["background_stream"],
        impl=impl,
    )[:, 0]
    outside = (args["mask"] == 0).expand(noised.shape)
    assert torch.equal(blend_step(**args, impl=impl)[outside], noised[outside])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_the_mask_is_one_the_update_returns_whatever_the_background_is(impl, dtype):
    args = arguments(dtype=dtype)
    inside = (args["mask"] == 1).expand(args["latents"].shape)
    assert inside.any()
    alone = blend_step(**{name: a for name, a in args.items() if name not in (*BLEND, *RENOISED)}, impl=impl)
    args["background"][inside] = float("nan")
    assert torch.equal(blend_step(**args, impl=impl)[inside], alone[inside])


@pytest.mark.parametrize("impl", IMPLS)
def test_noise_is_philox_normal_of_seed_and_stream(impl):
    args = arguments(parts="noise") | {"latents_factor": 0.0, "prediction_factor": 0.0, "noise_factor": 1.0}
    noise = philox_normal(args["seeds"], (4, 9, 7), stream=5, impl=impl)
    assert torch.equal(blend_step(**args, impl=impl), noise)


@pytest.mark.parametrize("parts", PARTS)
@settings(max_examples=8, deadline=None)
@given(batch=st.integers(0, 3), shape=st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_implementations_agree_on_odd_shapes(parts, batch, shape):
    args = arguments(batch, tuple(shape), parts=parts)
    expected = blend_step(**args, impl="reference")
    for impl in ("triton", "portable"):
        torch.testing.assert_close(blend_step(**args, impl=impl), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("block", [32, 256, 2048])
def test_numbers_do_not_depend_on_the_launch(block, calls, monkeypatch):
    from lotts.kernels import launch

    args = arguments()
    shipped = blend_step(**args, impl="triton")
    config = {"BLOCK": block, "CALLS": calls, "num_warps": 1, "num_stages": 1}
    monkeypatch.setattr(launch, "config", lambda *_: dict(config))
    assert torch.equal(blend_step(**args, impl="triton"), shipped)


def strided(tensor):
    """The same elements, every second one of a larger tensor that is NaN elsewhere, dims in reverse order in memory."""
    room = tensor.new_full([2 * size for size in reversed(tensor.shape)], float("nan"))
    view = room[tuple(slice(1, None, 2) for _ in tensor.shape)].permute(*reversed(range(tensor.ndim)))
    return view.copy_(tensor)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["latents", "prediction", "mask", "background"])
def test_strided_tensors_are_read_in_their_logical_order(impl, name):
    args = arguments(shape=(4, 6, 5))
    assert torch.equal(blend_step(**(args | {name: strided(args[name])}), impl=impl), blend_step(**args, impl=impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_one_mask_may_serve_all_samples(impl):
    args = arguments()
    one = args["mask"][:1]
    expected = blend_step(**(args | {"mask": one.repeat(2, 4, 1, 1)}), impl=impl)
    assert torch.equal(blend_step(**(args | {"mask": one}), impl=impl), expected)


@pytest.mark.parametrize("name", ["latents", "prediction", "mask", "background"])
def test_offsets_past_two_to_the_31_are_reached(tmp_path, name):
    # A sparse file: rows of which all but the first begin beyond what 32 bits can address.
    apart = 2**31 + 64
    args = {key: a.cpu() if torch.is_tensor(a) else a for key, a in arguments(1, (2, 3, 5), torch.float16).items()}
    args |= {key: torch.cat([a, a]) for key, a in args.items() if torch.is_tensor(a)}
    near = args[name].to(torch.float16)
    whole = torch.from_file(str(tmp_path / name), shared=True, size=near.shape[0] * apart, dtype=torch.float16)
    far = whole.as_strided(near.shape, (apart, *near.stride()[1:])).copy_(near)
    impl = "triton" if DEVICE == "cpu" else "portable"
    assert torch.equal(blend_step(**(args | {name: far}), impl=impl), blend_step(**(args | {name: near}), impl=impl))


@pytest.mark.parametrize("impl", ["triton", "portable"])
def test_two_runs_give_the_same_bits(impl):
    assert torch.equal(blend_step(**arguments(), impl=impl), blend_step(**arguments(), impl=impl))


@pytest.mark.parametrize(("impl", "batches"), [("portable", [2]), ("triton", [2, 3])])
def test_compiles_without_graph_breaks(impl, batches):
    compiled = torch.compile(blend_step, fullgraph=True, backend="aot_eager", dynamic=len(batches) > 1)
    for batch in batches:
        args = arguments(batch, (4, 9, 4 + batch)) | {"guidance_scale": torch.full((batch,), 3.0, device=DEVICE)}
        expected = blend_step(**args, impl=impl)
        torch.testing.assert_close(compiled(**args, impl=impl), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("blended", [False, True])
def test_the_operator_passes_opcheck(blended):
    a = arguments()
    optional = [a[name] if blended else None for name in ("mask", "background", "seeds", "background_seeds")]
    each = [torch.full((2,), 0.5, device=DEVICE), *[None] * 5]
    inputs = a["latents"], a["prediction"], *optional, [0.5] * 6, each, [1, 2], True
    torch.library.opcheck(torch.ops.lotts.blend_step, inputs)


@pytest.mark.gpu
def test_a_replayed_graph_reads_new_seeds_and_factors():
    args = arguments() | {"guidance_scale": torch.full((2,), 3.0, device=DEVICE)}
    blend_step(**args, impl="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = blend_step(**args, impl="triton")
    for name in ("seeds", "background_seeds", "guidance_scale"):
        graph.replay()
        before = result.clone()
        assert torch.equal(before, blend_step(**args, impl="triton"))
        args[name] += 1
        graph.replay()
        assert torch.equal(result, blend_step(**args, impl="triton"))
        assert not torch.equal(result, before)


def test_float64_is_for_other_implementations():
    args = arguments(dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"impl='triton' cannot run here: .* float64"):
        blend_step(**args, impl="triton")
    torch.testing.assert_close(blend_step(**args), formula(args))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"latents": 1.0}, TypeError, "latents: expected a torch.Tensor, got float"),
        ({"prediction": torch.zeros(2, 4, 9, 7)}, ValueError, r"prediction: expected shape \[2B, .*2B=4.*, got \[2, 4"),
        ({"guidance_scale": None}, ValueError, r"prediction: expected shape \[B, .* got \[4, 4, 9, 7\]"),
        ({"prediction": torch.zeros(4, 4, 9, 7).half()}, TypeError, "prediction: expected dtype torch.float32"),
        ({"mask": torch.ones(2, 1, 9, 8)}, ValueError, r"mask: expected shape .*, got \[2, 1, 9, 8\]"),
        ({"mask": torch.ones(2, 1, 9, 7, dtype=torch.bool)}, TypeError, "mask: expected dtype .* got torch.bool"),
        ({"mask": None}, ValueError, "mask: expected together with background, got None"),
        ({"background": torch.ones(2, 4, 9, 7).half()}, TypeError, "background: expected dtype torch.float32"),
        ({"mask": None, "background": None}, ValueError, "background_seeds: expected a background to noise"),
        ({"seeds": None}, ValueError, "seeds: expected together with noise_factor, got None"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, ValueError, "seeds: expected shape .* with B=2, got"),
        ({"background_seeds": torch.zeros(2)}, TypeError, "background_seeds: expected dtype torch.int64"),
        ({"background_signal": None}, ValueError, "background_signal: expected together with background_noise, back"),
        ({"latents_factor": torch.ones(3)}, ValueError, r"latents_factor: expected shape \[B\] with B=2, got \[3\]"),
        ({"guidance_scale": torch.ones(2).double()}, TypeError, "guidance_scale: expected dtype torch.float32"),
        ({"background_stream": -1}, ValueError, "stream: expected 0 to"),
    ],
)
def test_wrong_arguments_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        blend_step(**(arguments() | {name: on_device(value) for name, value in changes.items()}))
