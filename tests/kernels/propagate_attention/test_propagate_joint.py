"""The joint form: probe tokens ride along in the sequence of an MMDiT, and its own tokens do not notice."""

import pytest
import torch

from lotts.kernels import propagate_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = ["triton", "portable", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Text, probes and image in the orders of FLUX (text first) and of SD3 (image first), and probes amid the image's keys.
JOINT = [
    {"probe_sizes": (7, 13), "probe_start": 20, "context": (40, 150)},
    {"probe_sizes": (7, 13), "probe_start": 130, "context": (0, 110)},
    {"probe_sizes": (1,), "probe_start": 60, "context": (0, 50)},
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("joint", JOINT, ids=str)
def test_the_joint_form_is_as_accurate_as_eager_torch(arguments, accuracy, eager, joint, dtype, impl):
    args = arguments(150, 150, dtype=dtype)
    out, maps = propagate_attention(*args, **joint, impl=impl)
    truth = propagate_attention(*[a.double() for a in args], **joint, impl="reference")
    eager_out, eager_maps = eager(args[0], args[1], args[2], args[3].unsqueeze(1))
    plain = propagate_attention(*[a.double() for a in args], impl="reference")
    # Eager torch has no joint form; its error on the plain one is the measure.
    accuracy(out, eager_out - plain[0] + truth[0], truth[0], rms_bound=max(2e-6, 2 * torch.finfo(dtype).eps))
    accuracy(
        maps[..., :2], eager_maps - plain[1] + truth[1][..., :2], truth[1][..., :2],
        rms_bound=max(2e-6, torch.finfo(dtype).eps / 2),
    )  # fmt: skip
    # The masses of the groups are ratios of sums in float32, accurate relative to their own size.
    torch.testing.assert_close(maps[..., 2:].double(), truth[1][..., 2:], rtol=2e-5, atol=0)


@pytest.mark.parametrize("impl", ["triton", "portable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("joint", JOINT, ids=str)
def test_main_tokens_do_not_notice_the_probes_bit_for_bit(arguments, joint, dtype, impl):
    query, key, value, columns = arguments(150, 150, dtype=dtype)
    stop = joint["probe_start"] + sum(joint["probe_sizes"])
    main = torch.cat([torch.arange(joint["probe_start"]), torch.arange(stop, 150)]).to(DEVICE)
    key[:, :, joint["probe_start"] : stop] *= 100
    out, maps = propagate_attention(query, key, value, columns, **joint, impl=impl)
    # The portable form has two columns of its own beside the user's: as many here, so that the calls are alike.
    beside = torch.cat([columns, columns], -1) if impl == "portable" else columns
    alone = propagate_attention(*(t[:, :, main] for t in (query, key, value)), beside[:, main], impl=impl)
    assert torch.equal(out[:, :, main], alone[0])
    if impl == "triton":
        assert torch.equal(maps[:, :, main, :2], alone[1])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_group_that_hardly_counts_keeps_its_relative_mass(arguments, impl):
    query, key, value, columns = arguments(150, 150)
    query, key = query * 0.1 + 1, key * 0.1
    key[:, :, 20:27] -= 3
    _, maps = propagate_attention(query, key, value, columns, **JOINT[0], impl=impl)
    truth = propagate_attention(*(a.double() for a in (query, key, value, columns)), **JOINT[0], impl="reference")[1]
    main = [*range(20), *range(40, 150)]
    assert truth[:, :, main, 2].max() < 1e-8
    torch.testing.assert_close(maps[:, :, main, 2].double(), truth[:, :, main, 2], rtol=2e-5, atol=0)
    assert (maps[:, :, 20:40, 2:] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("hidden", ["some", "a group", "the context"])
def test_hidden_probes_and_context_do_not_count(arguments, hidden, impl):
    args = arguments(150, 150)
    seen = torch.rand(2, 150, generator=torch.Generator().manual_seed(5)).to(DEVICE) > 0.4
    seen[:, {"some": slice(0), "a group": slice(20, 27), "the context": slice(40, 150)}[hidden]] = False
    out, maps = propagate_attention(*args, **JOINT[0], key_mask=seen, impl=impl)
    truth = propagate_attention(*[a.double() for a in args], **JOINT[0], key_mask=seen, impl="reference")
    torch.testing.assert_close(out.double(), truth[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maps.double(), truth[1], rtol=2e-5, atol=1e-6)
    if hidden == "a group":
        assert (maps[..., 2] == 0).all()


@pytest.mark.parametrize("impl", ["triton", "portable"])
def test_where_the_context_counts_nothing_a_group_has_all(arguments, impl):
    query, key, value, columns = arguments(150, 150)
    key[:, :, 0] = query[:, :, 5] * 60
    _, maps = propagate_attention(query, key, value, columns, **JOINT[0], impl=impl)
    assert maps.isfinite().all()
    assert (maps[:, :, 5, 2:] == 1).all()


@pytest.mark.gpu
def test_a_captured_graph_replays_on_new_inputs(arguments):
    query, key, value, columns = arguments(150, 150, dtype=torch.bfloat16)
    total = torch.zeros(2, 3, 150, 4, device=DEVICE)
    propagate_attention(query, key, value, columns, **JOINT[0], accumulate=total)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = propagate_attention(query, key, value, columns, **JOINT[0], accumulate=total)
    query.normal_()
    total.zero_()
    graph.replay()
    expected = propagate_attention(query, key, value, columns, **JOINT[0])
    assert torch.equal(out, expected[0])
    assert torch.equal(total, expected[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe_sizes": (7, 0)}, "probe_sizes: expected groups of at least 1 within 150 tokens"),
        ({"probe_sizes": (70, 71)}, "probe_sizes: expected groups of at least 1 within 150 tokens"),
        ({"context": (39, 150)}, r"context: expected a range \[from, to\) of 150 tokens without probes"),
        ({"context": (60, 60)}, r"context: expected a range \[from, to\) of 150 tokens without probes"),
    ],
    ids=str,
)
def test_probe_groups_out_of_place_are_refused(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        propagate_attention(*arguments(150, 150), **(JOINT[0] | changes))
