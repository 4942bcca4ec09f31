"""Facts about capture in transformers whose text and image tokens attend to one another."""

import pytest
import tiny
import torch
from joint_recording import NAMES, latents_of, layer_inputs, recorder_of

import lotts
from lotts.capture import AttentionRecorder
from lotts.capture.joint import TEXT_IMAGE
from lotts.capture.patch import attention_modules, patched_attention


@pytest.mark.parametrize("name", NAMES)
def test_the_pipeline_is_unchanged_within_and_after(pipe_of, name):
    pipe = pipe_of(name)
    processors = {n: m.processor for n, m in attention_modules(pipe.transformer).items()}
    expected, before = latents_of(pipe), dict(pipe.transformer.__dict__)
    with lotts.capture(pipe, "a red cat", words=["red", "cat"]) as maps:
        assert torch.equal(latents_of(pipe), expected)
    assert {n: m.processor for n, m in attention_modules(pipe.transformer).items()} == processors
    assert pipe.transformer.__dict__.keys() == before.keys()
    assert all(pipe.transformer.__dict__[attribute] is value for attribute, value in before.items())
    assert torch.equal(latents_of(pipe), expected)
    for found in (maps.original, maps.positive, maps.negative):
        assert found.min() > 0
        assert found.max() < 1
    torch.testing.assert_close(maps.original[0], maps["red"] + maps["cat"])
    assert not torch.equal(maps.positive, maps.negative)
    assert len(maps.report.joint_layers) == len(processors)


def test_everything_comes_back_after_an_exception(pipe_of):
    pipe = pipe_of("flux-dev")
    expected = latents_of(pipe)
    with pytest.raises(KeyError), lotts.capture(pipe, "a red cat"):
        raise KeyError
    assert "forward" not in pipe.transformer.__dict__
    assert torch.equal(latents_of(pipe), expected)


@pytest.mark.parametrize("name", NAMES)
def test_masses_of_the_first_layer_are_those_of_the_definition(pipe_of, name):
    """Probes in the first layer are projections of what rode in, so that its masses can be worked out by hand."""
    pipe = pipe_of(name)
    inputs, size = layer_inputs(pipe)
    recorder = recorder_of(pipe, size, probes=(3, 4))
    with torch.no_grad(), recorder:
        pipe.transformer(**inputs)
    first = next(iter(attention_modules(pipe.transformer)))
    found = recorder.layer_maps("cross")[first].flatten(-2)  # [B, H, words + groups, image]

    seen = {}

    class Tap:
        def attend(self, native, query, key, value, *args, **kwargs):
            seen.setdefault("qk", (query.double(), key.double()))
            return native(query, key, value, *args, **kwargs)

    riding = torch.cat([probe[0] for probe in (recorder.positive, recorder.negative)], 1).expand(2, -1, -1)
    inputs["encoder_hidden_states"] = torch.cat([inputs["encoder_hidden_states"], riding], 1)
    if "txt_ids" in inputs:
        inputs["txt_ids"] = torch.zeros(7 + 7, 3)
    with torch.no_grad(), patched_attention(pipe.transformer, {first: Tap()}):
        pipe.transformer(**inputs)
    query, key = seen["qk"]
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    image = scores.shape[-1] - 14
    text = slice(0, 14) if recorder.order == TEXT_IMAGE else slice(image, image + 14)
    pixels = slice(14, None) if recorder.order == TEXT_IMAGE else slice(0, image)
    rows, words = scores[:, :, pixels], scores[:, :, pixels, text]
    main = torch.cat([words[..., :7], rows[..., pixels]], -1).softmax(-1)
    expected = [main[..., 2], main[..., 3]]
    for group in (slice(7, 10), slice(10, 14)):
        beside = torch.cat([words[..., group], rows[..., pixels]], -1).softmax(-1)
        expected.append(beside[..., : group.stop - group.start].sum(-1))
    torch.testing.assert_close(found.double(), torch.stack(expected, 2), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_are_not_recorded_carry_the_probes_all_the_same(pipe_of, name):
    pipe = pipe_of(name)
    inputs, size = layer_inputs(pipe)
    last = list(attention_modules(pipe.transformer))[-1]
    with torch.no_grad():
        expected = pipe.transformer(**inputs).sample
        maps = []
        for layers in (None, [last]):
            recorder = recorder_of(pipe, size, layers=layers)
            with recorder:
                assert torch.equal(pipe.transformer(**inputs).sample, expected)
            maps.append(recorder.layer_maps("cross"))
    assert list(maps[1]) == [last]
    torch.testing.assert_close(maps[0][last], maps[1][last], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_rows_beside_the_recorded_ones_change_nothing(pipe_of, name):
    pipe = pipe_of(name)
    inputs, size = layer_inputs(pipe)
    with torch.no_grad():
        expected = pipe.transformer(**inputs).sample
        maps = []
        for rows in (None, slice(1, 2)):
            recorder = recorder_of(pipe, size)
            recorder.rows = rows
            with recorder:
                assert torch.equal(pipe.transformer(**inputs).sample, expected)
            maps.append(recorder.cross_maps())
    assert maps[1].shape[0] == 1
    torch.testing.assert_close(maps[0][1:], maps[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_maps_travel_among_image_tokens_alone(pipe_of, name):
    pipe = pipe_of(name)
    inputs, size = layer_inputs(pipe)
    recorder = recorder_of(pipe, size, probes=())
    recorder.record_cross, recorder.record_self = False, True
    recorder.columns = torch.stack([torch.ones(2, *size), torch.rand(2, *size)], 1)
    with torch.no_grad(), recorder:
        pipe.transformer(**inputs)
    spread = recorder.self_maps()
    torch.testing.assert_close(spread[:, 0], torch.ones(2, *size))  # a constant stays
    assert spread[:, 1].min() > recorder.columns[:, 1].min()
    assert spread[:, 1].max() < recorder.columns[:, 1].max()
    if name == "sd3.5":  # its image-only attention propagates as well
        assert any(layer.endswith("attn2") for layer in recorder.layer_maps("self"))


def test_a_pass_of_its_own_for_the_negative_prompt_is_not_recorded(pipe_of):
    pipe = pipe_of("flux-dev")
    expected = latents_of(pipe, negative_prompt="the blue dog", true_cfg_scale=2.0)
    with lotts.capture(pipe, "a red cat"):
        assert torch.equal(latents_of(pipe, negative_prompt="the blue dog", true_cfg_scale=2.0), expected)
    with lotts.capture(pipe, "a red cat") as alone:
        latents_of(pipe, negative_prompt="the blue dog", true_cfg_scale=2.0, num_inference_steps=1)
        first = alone.original.clone()
    with lotts.capture(pipe, "a red cat") as unguided:
        latents_of(pipe, num_inference_steps=1)
    torch.testing.assert_close(first, unguided.original)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_keeps_the_output_and_the_maps_close(pipe_of, name, dtype, error):
    pipe = pipe_of(name)
    inputs, size = layer_inputs(pipe)
    found = []
    for precision in (torch.float32, dtype):
        pipe.transformer.to(precision)
        rows = {n: value if n.endswith("ids") else value.to(precision) for n, value in inputs.items()}
        with torch.no_grad():
            expected = pipe.transformer(**rows).sample
            recorder = recorder_of(pipe, size)
            with recorder:
                assert torch.equal(pipe.transformer(**rows).sample, expected)
        found.append(recorder.cross_maps())
        assert found[-1].dtype == torch.float32
    single, half = found
    assert ((half - single).abs() / single).mean() < error


@pytest.mark.parametrize("pixels", [512, 1024, 2048])
def test_large_pictures_with_heads_as_wide_as_those_of_flux(clip_tokenizer, pixels):
    """4096 tokens at 1024 pixels; one head of 128 channels."""
    from diffusers import FluxTransformer2DModel

    pipe = tiny.flux(clip_tokenizer, blocks=1)
    torch.manual_seed(0)
    pipe.transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=0,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
    ).eval()
    side = pixels // 16
    inputs, _ = layer_inputs(pipe)
    ids = pipe._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
    inputs = {name: value[:1] if name != "txt_ids" else value for name, value in inputs.items()}
    hidden = torch.randn(1, side * side, 16, generator=torch.Generator().manual_seed(2))
    inputs |= {"img_ids": ids, "hidden_states": hidden}
    recorder = recorder_of(pipe, (side, side))
    recorder.record_self, recorder.columns = True, torch.rand(1, 2, side, side)
    with torch.no_grad():
        expected = pipe.transformer(**inputs).sample
        with recorder:
            assert torch.equal(pipe.transformer(**inputs).sample, expected)
    assert recorder.cross_maps().shape[-2:] == recorder.self_maps().shape[-2:] == (side, side)
    # Maps that are carried through attention are means of what they were: they stay within it.
    assert recorder.self_maps().min() > recorder.columns.min()
    assert recorder.self_maps().max() < recorder.columns.max()


def test_errors(pipe_of):
    pipe = pipe_of("flux-dev")
    with pytest.raises(ValueError, match=r"same number of content tokens in positive, got \[1, 2\]"):
        lotts.capture(pipe, ["a red cat", "the dog"]).__enter__()
    with lotts.capture(pipe, ["a red cat", "the dog"], quality=False) as maps:
        latents_of(pipe, ["a red cat", "the dog"])
    assert maps.original.shape[0] == 2
    with pytest.raises(ValueError, match="expected order None"):
        AttentionRecorder(pipe.transformer, torch.ones(1, 7, 1), latent_size=(4, 4), order="image first")
    with pytest.raises(ValueError, match="give the size of the latents"), lotts.capture(pipe, "a red cat"):
        latents_of(pipe, height=32, width=32)
