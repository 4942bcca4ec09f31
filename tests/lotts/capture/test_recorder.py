"""Facts about what a recorder finds in a U-Net: masses of cross-attention, and columns that self-attention carried."""

import pytest
import torch
import torch.nn.functional as F
from unet_recording import TOKENS, arguments, inputs_of, noise, probabilities, quality_prompts, recorder_of, tokens_of

from lotts.capture import AttentionRecorder
from lotts.capture.grids import resize_maps


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (12, 20), (17, 9)])
@pytest.mark.parametrize("rows", [None, slice(2, 4), slice(1, 3)])
def test_the_output_is_bit_identical_while_recording(tiny_unet, size, rows):
    inputs = arguments(4, size)
    expected = tiny_unet(*inputs).sample
    recorded = 4 if rows is None else 2
    with recorder_of(tiny_unet, recorded, size) as recorder:
        recorder.rows = rows
        assert torch.equal(tiny_unet(*inputs).sample, expected)
        recorder.columns, recorder.record_self = recorder.cross_maps()[:, -2:], True
        assert torch.equal(tiny_unet(*inputs).sample, expected)
    assert torch.equal(tiny_unet(*inputs).sample, expected)
    assert recorder.cross_maps().shape == (recorded, 4, *size)
    assert recorder.self_maps().shape == (recorded, 2, *size)


@torch.no_grad()
def test_cross_maps_of_a_layer_are_the_masses_computed_in_fp64(tiny_unet):
    name = "up_blocks.0.attentions.1.transformer_blocks.0.attn2"
    attn = tiny_unet.get_submodule(name)
    seen = inputs_of(attn)
    recorder = recorder_of(tiny_unet, layers=[name])
    with recorder:
        tiny_unet(*arguments())
    hidden_states, text = seen[0]
    (positive, weight_pos), (negative, weight_neg) = quality_prompts()
    expected = torch.cat(
        [
            probabilities(attn, hidden_states, text) @ tokens_of(2, TOKENS, 2).double().unsqueeze(1),
            probabilities(attn, hidden_states, positive) @ weight_pos.double()[:, None, :, None],
            probabilities(attn, hidden_states, negative) @ weight_neg.double()[:, None, :, None],
        ],
        dim=-1,
    )
    maps = recorder.layer_maps("cross")
    assert list(maps) == [name]
    assert maps[name].shape == (2, attn.heads, 4, 8, 8)
    assert maps[name].dtype == torch.float32
    torch.testing.assert_close(maps[name].double().flatten(3).transpose(2, 3), expected, atol=2e-6, rtol=0)
    assert maps[name].min() >= 0
    assert maps[name].max() <= 1 + 1e-6
    on_latent_grid = F.interpolate(maps[name].mean(1), (16, 16), mode="bilinear")
    torch.testing.assert_close(recorder.cross_maps(), on_latent_grid)


@torch.no_grad()
def test_self_maps_of_a_layer_are_its_attention_times_the_columns(tiny_unet):
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    attn = tiny_unet.get_submodule(name)
    seen = inputs_of(attn)
    recorder = AttentionRecorder(tiny_unet, latent_size=(16, 16), layers=[name])
    columns = noise(2, 3, 16, 16, seed=9).abs()
    with recorder:
        recorder.columns, recorder.record_self = columns, True
        tiny_unet(*arguments())
    hidden_states, text = seen[0]
    assert text is None
    coarse = F.avg_pool2d(columns, 2).flatten(2).transpose(1, 2).double()
    expected = probabilities(attn, hidden_states, hidden_states) @ coarse.unsqueeze(1)
    actual = recorder.layer_maps("self")[name].double().flatten(3).transpose(2, 3)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


@torch.no_grad()
def test_maps_are_means_over_layers_and_forwards(tiny_unet):
    first, second = arguments(), (arguments()[0], 400, arguments()[2])
    alone = []
    for inputs in (first, second):
        with recorder_of(tiny_unet) as recorder:
            tiny_unet(*inputs)
        alone.append(recorder.cross_maps())
    with recorder_of(tiny_unet) as both:
        tiny_unet(*first)
        tiny_unet(*second)
    torch.testing.assert_close(both.cross_maps(), (alone[0] + alone[1]) / 2)
    up = [resize_maps(maps.mean(1), (16, 16)) for name, maps in both.layer_maps("cross").items() if "up_" in name]
    torch.testing.assert_close(both.cross_maps(layers=["up_blocks"]), torch.stack(up).mean(0))
    torch.testing.assert_close(both.cross_maps(layers=lambda name: "up_" in name), torch.stack(up).mean(0))
    both.reset()
    with pytest.raises(RuntimeError, match="no cross-attention maps were recorded"):
        both.cross_maps()


@torch.no_grad()
def test_recorded_rows_do_not_depend_on_the_other_rows(tiny_unet):
    latents, timestep, text = arguments(4)
    with recorder_of(tiny_unet) as guided:
        guided.rows = lambda rows: slice(rows // 2, rows)
        tiny_unet(latents, timestep, text)
    with recorder_of(tiny_unet) as alone:
        tiny_unet(latents[2:], timestep, text[2:])
    torch.testing.assert_close(guided.cross_maps(), alone.cross_maps())


@torch.no_grad()
def test_several_images_of_a_prompt_share_its_weights(tiny_unet):
    latents, timestep, text = arguments(4)
    per_prompt = tokens_of(2, TOKENS, 2)
    maps = []
    for weight in (per_prompt, per_prompt.repeat_interleave(2, dim=0)):
        with AttentionRecorder(tiny_unet, weight, *quality_prompts(len(weight)), latent_size=(16, 16)) as recorder:
            recorder.record_cross = True
            recorder.positive = recorder.negative = None
            tiny_unet(latents, timestep, text)
        maps.append(recorder.cross_maps())
    assert torch.equal(*maps)


@torch.no_grad()
def test_switches_off_record_nothing_and_a_layer_filter_records_only_its_layers(tiny_unet):
    with recorder_of(tiny_unet, layers=["mid_block"]) as recorder:
        recorder.record_cross = False
        tiny_unet(*arguments())
        assert recorder.layer_maps("cross") == {}
        recorder.record_cross = True
        tiny_unet(*arguments())
    assert list(recorder.layer_maps("cross")) == ["mid_block.attentions.0.transformer_blocks.0.attn2"]
    assert recorder.report.cross_layers == ("mid_block.attentions.0.transformer_blocks.0.attn2",)
    assert recorder.report.self_layers == ("mid_block.attentions.0.transformer_blocks.0.attn1",)


@torch.no_grad()
def test_inference_mode_and_gradients(tiny_unet):
    with recorder_of(tiny_unet) as recorder:
        with torch.inference_mode():
            tiny_unet(*arguments())
        tiny_unet(*arguments())
        first = recorder.cross_maps()
        with torch.enable_grad():
            latents, timestep, text = arguments()
            latents.requires_grad_()
            tiny_unet(latents, timestep, text).sample.sum().backward()
    assert latents.grad is not None
    assert not recorder.cross_maps().requires_grad
    torch.testing.assert_close(recorder.cross_maps(), first)


@torch.no_grad()
def test_misfits_are_named(tiny_unet):
    with pytest.raises(ValueError, match=r"weight \[B, L, C\]"):
        AttentionRecorder(tiny_unet, torch.ones(2, 7), latent_size=(16, 16))
    with pytest.raises(ValueError, match="expected positive"):
        AttentionRecorder(tiny_unet, positive=(torch.ones(1, 9, 32), torch.ones(1, 8)), latent_size=(16, 16))
    with pytest.raises(ValueError, match="expected columns"):
        recorder_of(tiny_unet).columns = torch.ones(1, 1, 8, 8)
    with recorder_of(tiny_unet, size=(20, 20)), pytest.raises(ValueError, match="256 query tokens"):
        tiny_unet(*arguments())
    latents, timestep, text = arguments()
    with recorder_of(tiny_unet), pytest.raises(ValueError, match="attends to 6 text tokens"):
        tiny_unet(latents, timestep, text[:, :6])
    with recorder_of(tiny_unet), pytest.raises(ValueError, match="multiple of 2 prompts"):
        tiny_unet(*arguments(3))
    with recorder_of(tiny_unet) as recorder:
        tiny_unet(*arguments(2))
        with pytest.raises(RuntimeError, match="call reset"):
            tiny_unet(*arguments(4))
    with pytest.raises(ValueError, match='"cross" or "self"'):
        recorder.layer_maps("joint")
    with pytest.raises(RuntimeError, match="no self-attention maps"):
        recorder.self_maps()
