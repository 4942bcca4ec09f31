"""Facts about sparse steps of tiny networks of the true classes, in float32."""

import pytest
import tiny
import torch

from lotts.backbones import backbone_for
from lotts.capture.patch import attention_modules
from lotts.cost import Cost
from lotts.resample import denoise, refine
from lotts.resample_config import ResampleConfig
from lotts.sparse import plan

STEPS = 6
FAMILIES = ["sd", "sdxl", "sd3", "sd3.5", "flux-dev"]


@pytest.fixture
def backbone_of(pipe_of):
    return lambda name: backbone_for(pipe_of(name))


def size_of(backbone):
    return backbone.latent_size(*(side for side in backbone.default_size))


def guided(backbone):
    if backbone.pipeline_class == "FluxPipeline":
        return backbone.encode_prompt("a red cat", "a dog", 3.5, 2.0)
    return backbone.encode_prompt("a red cat", "", 3.0)


def corner(size, top=2, left=2, height=6, width=6):
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, top : top + height, left : left + width] = True
    return mask


def start(backbone, seeds=(3,), size=None):
    size = size or size_of(backbone)
    return torch.cat([backbone.initial_latents(seed, size) for seed in seeds])


def planned(
    backbone, text, masks, cost=None, mode="stale", refresh_every=None, traces=None, steps=range(2, 5), **options
):
    backbone.restart(STEPS, 0, tuple(masks.shape[1:]))
    return plan(
        backbone, masks, text, steps, mode=mode, refresh_every=refresh_every, offload=options.get("offload", False),
        traces=traces or [None] * len(masks), cost=cost or Cost(),
    )  # fmt: skip


def close(actual, expected, bound=1e-5):
    return float((actual - expected).abs().max() / expected.abs().max()) <= bound


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
@pytest.mark.parametrize("mode", ["stale", "trace"])
@torch.no_grad()
def test_masks_of_different_sizes_in_a_batch_equal_runs_one_by_one(backbone_of, name, mode):
    backbone = backbone_of(name)
    size = size_of(backbone)
    text = guided(backbone)
    config = ResampleConfig(noise_step=1, global_steps=1, sparse=mode)
    trace = _trace(backbone, size, config.masked_steps(STEPS), 2) if mode == "trace" else None
    base = denoise(backbone, text, [5, 9], size, STEPS, trace=trace)
    masks = torch.cat([corner(size), corner(size, 5, 4, 3, 9)])
    assert masks[0].sum() != masks[1].sum()
    cost = Cost()
    together = refine(backbone, text, base, masks, [0, 1], config, STEPS, cost=cost)
    assert cost.sparse_rows > 0
    for row in range(2):
        (alone,) = refine(backbone, text, [base[row]], masks[row : row + 1], [row], config, STEPS)
        assert close(together[row].result, alone.result, 1e-4)


def _trace(backbone, size, steps, batch):
    from lotts.sparse import Trace

    return Trace(backbone, size, steps, batch, offload=False)


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
        assert type(module) is modules[key][0]
        assert set(vars(module)) == set(modules[key][1])


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
def test_blocks_that_are_not_known_run_dense_and_are_named(backbone_of):
    from diffusers.models.attention_processor import AttnProcessor

    backbone, cost = backbone_of("sd"), Cost()
    name, attn = next(iter(attention_modules(backbone.network).items()))
    attn.set_processor(AttnProcessor())
    text, latents, mask = guided(backbone), start(backbone), corner(size_of(backbone))
    with pytest.warns(UserWarning, match="AttnProcessor does not call"):
        sparse = planned(backbone, text, mask, cost)
    assert name.split(".transformer_blocks")[0] in cost.notes[0]
    backbone.restart(STEPS, 0, size_of(backbone))
    for step in (2, 3):
        with sparse.step(step):
            actual = backbone.predict_rows(latents, 2, text)
    assert close(actual[..., mask[0]], backbone.predict_rows(latents, 2, text)[..., mask[0]])


@torch.no_grad()
def test_while_maps_are_captured_steps_are_dense_and_that_is_said(backbone_of):
    import lotts

    backbone, cost = backbone_of("sd"), Cost()
    text, latents = guided(backbone), start(backbone)
    backbone.restart(STEPS, 0, size_of(backbone))
    expected = backbone.predict_rows(latents, 2, text)
    backbone.pipe._guidance_scale = 3.0
    sparse = planned(backbone, text, corner(size_of(backbone)), cost)
    with lotts.capture(backbone.pipe, "a red cat", quality=False):
        with pytest.warns(UserWarning, match="captured"), sparse.step(2):
            assert torch.equal(backbone.predict_rows(latents, 2, text), expected)
        with pytest.warns(UserWarning, match="captured"):
            assert planned(backbone, text, corner(size_of(backbone))) is None
    assert (cost.sparse_rows, len(cost.notes)) == (0, 1)


def with_lora(network):
    from peft import LoraConfig

    torch.manual_seed(0)
    network.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("flux-dev", with_lora),
        ("flux-dev", lambda network: network.fuse_qkv_projections()),
        ("sd3", lambda network: network.fuse_qkv_projections()),
        ("sd", lambda network: network.fuse_qkv_projections()),
    ],
    ids=["LoRA", "fused FLUX", "fused SD3", "fused U-Net"],
)
@torch.no_grad()
def test_changed_projections_work_inside(backbone_of, name, change):
    backbone = backbone_of(name)
    change(backbone.network)
    text, latents, mask = guided(backbone), start(backbone), corner(size_of(backbone))
    backbone.restart(STEPS, 0, size_of(backbone))
    sparse = planned(backbone, text, mask)
    for step in (2, 3):
        with sparse.step(step):
            actual = backbone.predict_rows(latents, 2, text)
    assert close(actual[..., mask[0]], backbone.predict_rows(latents, 2, text)[..., mask[0]])


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


@torch.no_grad()
def test_an_ip_adapter_reads_normalised_queries_inside(backbone_of):
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    backbone = backbone_of("flux-dev")
    torch.manual_seed(0)
    for name, attn in attention_modules(backbone.network).items():
        if not name.startswith("single"):
            attn.set_processor(FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=16, scale=3.0))
    extra = {"ip_hidden_states": [torch.randn(2, 4, 16)]}
    forward = backbone.network.forward
    backbone.network.forward = lambda *args, **kwargs: forward(*args, joint_attention_kwargs=extra, **kwargs)
    text, latents, mask = guided(backbone), start(backbone, (3, 4)), corner(size_of(backbone)).expand(2, -1, -1)
    backbone.restart(STEPS, 0, size_of(backbone))
    sparse = planned(backbone, text, mask)
    assert all(name.startswith("single") for name in sparse.stretches[0].norms)
    for step in (2, 3):
        with sparse.step(step):
            actual = backbone.predict_rows(latents, 2, text)
    expected = backbone.predict_rows(latents, 2, text)
    assert close(actual[..., mask[0]], expected[..., mask[0]])
    extra["ip_hidden_states"] = [torch.randn(2, 4, 16)]
    assert not close(backbone.predict_rows(latents, 2, text), expected, 1e-3), "the adapter has no say"


def test_norms_that_offloading_moves_in_are_left_to_their_layers(backbone_of):
    from diffusers.hooks import apply_group_offloading

    backbone = backbone_of("flux-dev")

    def taken_over():
        backbone.restart(STEPS, 0, size_of(backbone))
        return planned(backbone, guided(backbone), corner(size_of(backbone))).stretches[0].norms

    assert set(taken_over()) == set(attention_modules(backbone.network))
    assert {len(norms) for norms in taken_over().values()} == {2, 4}
    cpu = torch.device("cpu")
    apply_group_offloading(backbone.network, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert not taken_over()


@torch.no_grad()
def test_a_compiled_network_is_sparse_without_graph_breaks(clip_tokenizer):
    backbone = backbone_for(tiny.flux(clip_tokenizer, blocks=1))
    text, latents = backbone.encode_prompt("a red cat"), start(backbone)
    backbone.restart(STEPS, 0, size_of(backbone))
    found = []
    for network in (backbone.network, torch.compile(backbone.network, backend="aot_eager", fullgraph=True)):
        backbone.pipe.transformer = network
        sparse = planned(backbone, text, corner(size_of(backbone)))
        for step in (2, 3):
            with sparse.step(step):
                found.append(backbone.predict_rows(latents, 2, text))
    for eager, compiled in zip(found[:2], found[2:], strict=True):
        assert close(compiled, eager, 1e-6)


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
