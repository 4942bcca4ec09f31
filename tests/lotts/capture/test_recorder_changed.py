"""Facts about a recorder of a U-Net that was changed: fused, adapted, masked, of foreign processors or compiled."""

import pytest
import torch
from diffusers.models.attention_processor import SlicedAttnProcessor
from unet_recording import TOKENS, arguments, inputs_of, noise, probabilities, quality_prompts, recorder_of


@torch.no_grad()
def test_fused_projections_give_the_same_maps(tiny_unet):
    with recorder_of(tiny_unet) as separate:
        tiny_unet(*arguments())
    tiny_unet.fuse_qkv_projections()
    expected = tiny_unet(*arguments()).sample
    with recorder_of(tiny_unet) as fused:
        actual = tiny_unet(*arguments()).sample
    assert torch.equal(actual, expected)
    torch.testing.assert_close(fused.cross_maps(), separate.cross_maps(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_lora_on_the_key_projection_counts_for_the_quality_prompts(tiny_unet):
    from peft import LoraConfig

    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    with recorder_of(tiny_unet, layers=[name]) as recorder:
        tiny_unet(*arguments())
        before = recorder.layer_maps("cross")[name]
    torch.manual_seed(3)
    tiny_unet.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    expected = tiny_unet(*arguments()).sample
    attn = tiny_unet.get_submodule(name)
    seen = inputs_of(attn)
    recorder.reset()
    with recorder:
        actual = tiny_unet(*arguments()).sample
    assert torch.equal(actual, expected)
    after = recorder.layer_maps("cross")[name]
    (positive, weight_pos), _ = quality_prompts()
    mass = probabilities(attn, seen[0][0], positive) @ weight_pos.double()[:, None, :, None]
    torch.testing.assert_close(after[:, :, 2].double().flatten(2), mass[..., 0], atol=2e-6, rtol=0)
    assert not torch.allclose(after, before, atol=1e-4)


@torch.no_grad()
def test_a_layer_under_a_mask_runs_native_and_is_reported(tiny_unet):
    mask = torch.ones(2, TOKENS, dtype=torch.bool)
    mask[:, -2:] = False
    expected = tiny_unet(*arguments(), encoder_attention_mask=mask).sample
    with recorder_of(tiny_unet) as recorder:
        assert torch.equal(tiny_unet(*arguments(), encoder_attention_mask=mask).sample, expected)
    assert recorder.report.cross_layers == ()
    assert all("mask" in reason for reason in recorder.report.native_layers.values())
    with pytest.raises(RuntimeError, match="under a mask"):
        recorder.cross_maps()


@torch.no_grad()
def test_unsupported_layers_are_reported_and_the_others_recorded(tiny_unet):
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    tiny_unet.get_submodule(name).set_processor(SlicedAttnProcessor(1))
    expected = tiny_unet(*arguments()).sample
    with recorder_of(tiny_unet) as recorder:
        assert torch.equal(tiny_unet(*arguments()).sample, expected)
    assert list(recorder.report.native_layers) == [name]
    assert "SlicedAttnProcessor" in str(recorder.report)
    assert len(recorder.report.cross_layers) == 6


@torch.no_grad()
def test_a_compiled_model_records_the_same_and_many_recorders_share_one_compilation(shallow_unet):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(shallow_unet, fullgraph=True, backend=counter)
    inputs = arguments(4)
    expected = compiled(*inputs).sample

    def record(model):
        recorder = recorder_of(shallow_unet, layers=["mid_block"])
        recorder.rows = lambda rows: slice(rows // 2, rows)
        with recorder:
            for step in range(3):
                recorder.columns, recorder.record_self = noise(2, 1, 16, 16, seed=step), True
                assert torch.equal(model(*inputs).sample, expected)
        return recorder.cross_maps(), recorder.self_maps()

    eager, unpatched = record(shallow_unet), counter.frame_count
    for _ in range(2):
        for actual, reference in zip(record(compiled), eager, strict=True):
            torch.testing.assert_close(actual, reference)
        assert counter.frame_count == unpatched + 2, "one graph makes the buffers, one adds to them"
    assert torch.equal(compiled(*inputs).sample, expected)
    assert counter.frame_count == unpatched + 2
