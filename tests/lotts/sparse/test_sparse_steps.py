"""Facts about sparse steps of tiny networks of the true classes: what they compute, store and spare."""

import pytest
import torch
from stepping import FAMILIES, STEPS, close, corner, guided, planned, size_of, start

from lotts.backbones import backbone_for
from lotts.capture.patch import attention_modules
from lotts.cost import Cost
from lotts.resample import denoise, refine
from lotts.resample_config import ResampleConfig


def _trace(backbone, size, steps, batch):
    from lotts.sparse import Trace

    return Trace(backbone, size, steps, batch, offload=False)


@pytest.mark.parametrize(
    ("pixels", "dtype", "bound"),
    [(None, torch.float32, 1e-5), ((32, 64), torch.float32, 1e-5), (None, torch.bfloat16, 0.03)],
    ids=["square", "not square", "half precision"],
)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_step_after_a_recorded_one_of_the_same_latents_is_dense_inside_the_mask(pipe_of, name, pixels, dtype, bound):
    backbone = backbone_for(pipe_of(name).to(dtype=dtype))
    size = backbone.latent_size(*(pixels or backbone.default_size))
    text, latents, mask = guided(backbone), start(backbone, size=size), corner(size)
    backbone.restart(STEPS, 0, size)
    expected = backbone.predict_rows(latents, 2, text)
    cost = Cost()
    sparse = planned(backbone, text, mask, cost)
    with sparse.step(2):
        recorded = backbone.predict_rows(latents, 2, text)
    assert cost.sparse_rows == 0
    with sparse.step(3):
        actual = backbone.predict_rows(latents, 2, text)
    assert close(recorded, expected, bound)
    assert close(actual[..., mask[0]], expected[..., mask[0]], bound)
    assert cost.sparse_rows == 2
    assert cost.notes == []


@pytest.mark.parametrize("name", ["sd", "sd3.5", "flux-dev"])
@torch.no_grad()
def test_outside_the_mask_a_step_does_not_look_at_what_changed(backbone_of, name):
    backbone = backbone_of(name)
    size = size_of(backbone)
    # As many tokens as tiles hold, so that none beyond the mask is computed.
    text, latents, mask = guided(backbone), start(backbone), corner(size, 2, 2, 4, 8)
    other = torch.where(mask, latents, start(backbone, [4]))
    backbone.restart(STEPS, 0, size)
    sparse = planned(backbone, text, mask)
    with sparse.step(2):
        backbone.predict_rows(latents, 2, text)
    with sparse.step(3):
        same = backbone.predict_rows(latents, 2, text)
    with sparse.step(3):
        changed = backbone.predict_rows(other, 2, text)
    dense = backbone.predict_rows(other, 2, text)
    if name == "sd":  # convolutions do look
        assert not torch.equal(changed[..., mask[0]], same[..., mask[0]])
    else:
        assert torch.equal(changed[..., mask[0]], same[..., mask[0]])
    assert not close(changed[..., mask[0]], dense[..., mask[0]], 1e-7)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("mode", "other"), [("stale", "box"), ("trace", "box"), ("stale", "scattered"), ("trace", "all")]
)
@torch.no_grad()
def test_masks_of_different_sizes_in_a_batch_equal_runs_one_by_one(backbone_of, name, mode, other):
    """Boxes of two sizes; a box beside cells that fill the coarse levels, and beside everything, which alone are dense there."""
    backbone = backbone_of(name)
    size = size_of(backbone)
    text = guided(backbone)
    config = ResampleConfig(noise_step=1, global_steps=1, sparse=mode)
    trace = _trace(backbone, size, config.masked_steps(STEPS), 2) if mode == "trace" else None
    base = denoise(backbone, text, [5, 9], size, STEPS, trace=trace)
    beside = corner(size, 5, 4, 3, 9) if other == "box" else torch.zeros(1, *size, dtype=torch.bool)
    step = {"box": None, "scattered": 2, "all": 1}[other]
    beside[:, ::step, ::step] |= step is not None
    masks = torch.cat([corner(size), beside])
    assert masks[0].sum() != masks[1].sum()
    cost = Cost()
    together = refine(backbone, text, base, masks, [0, 1], config, STEPS, cost=cost)
    assert cost.sparse_rows > 0
    for row in range(2):
        (alone,) = refine(backbone, text, [base[row]], masks[row : row + 1], [row], config, STEPS)
        assert close(together[row].result, alone.result, 1e-4)


@pytest.mark.parametrize("name", ["sd", "sd3.5", "flux-dev"])
@torch.no_grad()
def test_a_traced_run_is_the_untraced_one_and_its_own_latents_come_out_dense(backbone_of, name):
    backbone = backbone_of(name)
    size, text, mask = size_of(backbone), guided(backbone), corner(size_of(backbone))
    (plain,) = denoise(backbone, text, [3], size, STEPS)
    (traced,) = denoise(backbone, text, [3], size, STEPS, trace=_trace(backbone, size, range(2, 5), 1))
    assert torch.equal(traced.result, plain.result)
    sparse = planned(backbone, text, mask, mode="trace", traces=[traced.trace])
    latents = traced.latents[3][None]
    with sparse.step(3):
        actual = backbone.predict_rows(latents, 3, text)
    assert close(actual[..., mask[0]], backbone.predict_rows(latents, 3, text)[..., mask[0]])


@pytest.mark.parametrize("name", ["sd", "flux-dev"])
@pytest.mark.parametrize("failing", [False, True])
@torch.no_grad()
def test_the_network_is_as_it_was_afterwards(backbone_of, name, failing):
    backbone = backbone_of(name)
    network = backbone.network
    modules = {key: (type(module), dict(vars(module))) for key, module in network.named_modules()}
    processors = {key: attn.processor for key, attn in attention_modules(network).items()}
    sparse = planned(backbone, guided(backbone), corner(size_of(backbone)))
    try:
        with sparse.step(2):
            assert any("forward" in vars(module) for module in network.modules())
            if failing:
                raise KeyError("in the loop")
    except KeyError:
        assert failing
    assert all(attn.processor is processors[key] for key, attn in attention_modules(network).items())
    for key, module in network.named_modules():
        kind, attributes = modules[key]
        assert type(module) is kind
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[attribute] is value for attribute, value in attributes.items())


@pytest.mark.parametrize("offload", [False, True])
@torch.no_grad()
def test_what_is_stored_is_what_was_said(backbone_of, offload):
    for name in FAMILIES:
        backbone, cost = backbone_of(name), Cost()
        text = guided(backbone)
        sparse = planned(backbone, text, corner(size_of(backbone)), cost, offload=offload)
        backbone.restart(STEPS, 0, size_of(backbone))
        with sparse.step(2):
            backbone.predict_rows(start(backbone), 2, text)
        stored = sum(t.nbytes for tensors in sparse.store.tensors.values() for t in tensors)
        assert stored == cost.stored_bytes > 0


@torch.no_grad()
def test_what_does_not_fit_in_memory_is_dense_and_said(backbone_of, monkeypatch):
    from lotts.sparse import store

    backbone, cost = backbone_of("sd"), Cost()
    monkeypatch.setattr(store, "free_bytes", lambda device: 1000)
    with pytest.warns(UserWarning, match="would take"):
        assert planned(backbone, guided(backbone), corner(size_of(backbone)), cost) is None
    assert "GiB" in cost.notes[0]


@torch.no_grad()
def test_a_step_does_not_search_the_network_for_its_layers(backbone_of, monkeypatch):
    """In FLUX that takes as long as the launches of several blocks."""
    backbone = backbone_of("flux-dev")
    text, latents = guided(backbone), start(backbone)
    backbone.restart(STEPS, 0, size_of(backbone))
    sparse = planned(backbone, text, corner(size_of(backbone)))
    walk = type(backbone.network).named_modules
    walks = []
    monkeypatch.setattr(type(backbone.network), "named_modules", lambda *a, **k: walks.append(1) or walk(*a, **k))
    backbone.predict_rows(latents, 2, text)  # diffusers looks once for its caches
    walks.clear()
    for step in (2, 3):
        with sparse.step(step):
            backbone.predict_rows(latents, step, text)
    assert not walks


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_ledgers_share_is_what_torch_counts(backbone_of, name):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    backbone, cost = backbone_of(name), Cost()
    text, latents, mask = guided(backbone), start(backbone), corner(size_of(backbone))
    backbone.restart(STEPS, 0, size_of(backbone))
    counts = []
    sparse = planned(backbone, text, mask, cost)
    for step in (2, 3):
        # Of the kinds of attention on a CPU, only plain products are counted.
        with sparse.step(step), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            backbone.predict_rows(latents, 2, text)
        counts.append(counter.get_total_flops())
    assert sparse.share == pytest.approx(counts[1] / counts[0], rel=1e-3)
    cells = mask[0].numel()
    assert cost.tokens == -round(2 * cells * (1 - sparse.share))


@torch.no_grad()
def test_no_plan_where_nothing_is_spared(backbone_of):
    backbone = backbone_of("sd")
    text, size = guided(backbone), size_of(backbone)
    for masks in (torch.ones(1, *size, dtype=torch.bool), torch.zeros(1, *size, dtype=torch.bool)):
        assert planned(backbone, text, masks) is None
    assert planned(backbone, text, corner(size), mode="dense") is None
    assert planned(backbone, text, corner(size), steps=range(4, 4)) is None
