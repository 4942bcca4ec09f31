"""Facts about sparse steps of networks that were changed: adapted, fused, captured, offloaded or compiled."""

import pytest
import tiny
import torch
from stepping import STEPS, agrees_inside, close, corner, guided, planned, size_of, start

from lotts.backbones import backbone_for
from lotts.capture.patch import attention_modules
from lotts.cost import Cost


def with_lora(network):
    from peft import LoraConfig

    torch.manual_seed(0)
    network.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))


@torch.no_grad()
def test_blocks_that_are_not_known_run_dense_and_are_named(backbone_of):
    from diffusers.models.attention_processor import AttnProcessor

    backbone, cost = backbone_of("sd"), Cost()
    name, attn = next(iter(attention_modules(backbone.network).items()))
    attn.set_processor(AttnProcessor())
    text, mask = guided(backbone), corner(size_of(backbone))
    with pytest.warns(UserWarning, match="AttnProcessor does not call"):
        sparse = planned(backbone, text, mask, cost)
    assert name.split(".transformer_blocks")[0] in cost.notes[0]
    assert agrees_inside(backbone, text, mask, sparse)


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
    text, mask = guided(backbone), corner(size_of(backbone))
    assert agrees_inside(backbone, text, mask, planned(backbone, text, mask))


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
