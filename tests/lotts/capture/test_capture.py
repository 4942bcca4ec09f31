import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

import lotts.capture
from lotts.capture import capture
from lotts.capture.sheet import colorize, contact_sheet


def generate(pipe, prompt, **kwargs):
    arguments = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    return pipe(prompt, **{**arguments, **kwargs}).images


def test_images_are_unchanged_and_maps_are_shares_of_attention(tiny_pipe):
    expected = generate(tiny_pipe, "a red cat")
    with lotts.capture(tiny_pipe, "a red cat", words=["red", "cat"]) as maps:
        actual = generate(tiny_pipe, "a red cat")
    assert np.array_equal(actual, expected)
    assert np.array_equal(generate(tiny_pipe, "a red cat"), expected)
    assert maps.words == ("red", "cat")
    assert maps["cat"].shape == (16, 16)
    assert maps["cat"].dtype == torch.float32
    for quality_map in (maps.original, maps.positive, maps.negative):
        assert quality_map.shape == (1, 16, 16)
        assert quality_map.min() > 0
        assert quality_map.max() < 1
    torch.testing.assert_close(maps.original[0], maps["red"] + maps["cat"])
    assert not torch.equal(maps.positive, maps.negative)
    assert len(maps.report.cross_layers) == 7


def test_only_the_guided_half_of_the_batch_is_mapped(tiny_pipe):
    maps = []
    for negative_prompt in ("", "the blue dog"):
        with capture(tiny_pipe, "a red cat", quality=False) as captured:
            generate(tiny_pipe, "a red cat", negative_prompt=negative_prompt, num_inference_steps=1)
        maps.append(captured.original)
    with capture(tiny_pipe, "a red cat", quality=False) as unguided:
        generate(tiny_pipe, "a red cat", guidance_scale=1.0, num_inference_steps=1)
    torch.testing.assert_close(maps[0], maps[1])
    torch.testing.assert_close(maps[0], unguided.original)


def test_a_batch_of_prompts_with_several_images_each(tiny_pipe):
    prompts = ["a red cat", "a blue dog"]
    with capture(tiny_pipe, prompts, words=["cat", "blue dog"]) as maps:
        generate(tiny_pipe, prompts, num_images_per_prompt=2)
    assert maps["cat"].shape == maps.original.shape == maps.negative.shape == (4, 16, 16)
    assert maps["cat"][:2].min() > 0
    assert maps["cat"][2:].abs().max() == 0
    assert maps["blue dog"][:2].abs().max() == 0
    torch.testing.assert_close(maps["blue dog"][2:], maps.original[2:])
    with capture(tiny_pipe, "a red cat", words=["cat"]) as maps:
        generate(tiny_pipe, "a red cat", num_images_per_prompt=3)
    assert maps["cat"].shape == (3, 16, 16)


def test_batching_does_not_change_the_maps_of_a_prompt(tiny_pipe):
    prompts, latents = ["a red cat", "a blue dog"], torch.randn(2, 4, 16, 16)
    with capture(tiny_pipe, prompts) as together:
        generate(tiny_pipe, prompts, latents=latents)
    for i, prompt in enumerate(prompts):
        with capture(tiny_pipe, prompt) as alone:
            generate(tiny_pipe, prompt, latents=latents[i : i + 1])
        torch.testing.assert_close(together.positive[i : i + 1], alone.positive)
        torch.testing.assert_close(together.original[i : i + 1], alone.original)


def test_other_image_sizes(tiny_pipe):
    with capture(tiny_pipe, "a red cat", words=["cat"], height=32, width=48) as maps:
        generate(tiny_pipe, "a red cat", height=32, width=48)
    assert maps["cat"].shape == (16, 24)
    with pytest.raises(ValueError, match="give the size of the latents"), capture(tiny_pipe, "a red cat"):
        generate(tiny_pipe, "a red cat", height=32, width=48)


def test_layers_narrow_what_is_averaged(tiny_pipe):
    with capture(tiny_pipe, "a red cat", layers=["up_blocks.1"]) as maps:
        generate(tiny_pipe, "a red cat")
    assert maps.report.cross_layers
    assert all(name.startswith("up_blocks.1") for name in maps.report.cross_layers)


def test_a_pipeline_with_a_compiled_unet(tiny_pipe):
    with capture(tiny_pipe, "a red cat", layers=["mid_block"]) as eager:
        expected = generate(tiny_pipe, "a red cat")
    # Only the block with the captured layers, to keep the test short.
    tiny_pipe.unet.mid_block.compile(fullgraph=True, backend="aot_eager")
    with capture(tiny_pipe, "a red cat", layers=["mid_block"]) as compiled:
        assert np.array_equal(generate(tiny_pipe, "a red cat"), expected)
    torch.testing.assert_close(compiled.positive, eager.positive)


def test_errors_come_before_any_computation(tiny_pipe, monkeypatch):
    monkeypatch.setattr(tiny_pipe, "encode_prompt", lambda *args, **kwargs: pytest.fail("computed something"))

    def entering(pipe, prompt, **kwargs):
        with capture(pipe, prompt, **kwargs):
            pass

    with pytest.raises(TypeError, match="expected a pipeline out of StableDiffusionPipeline"):
        entering(object(), "a red cat")
    with pytest.raises(ValueError, match="empty"):
        entering(tiny_pipe, " ")
    with pytest.raises(TypeError, match="list of prompts"):
        entering(tiny_pipe, [])
    with pytest.raises(TypeError, match="one string"):
        entering(tiny_pipe, "a red cat", words="cat")
    with pytest.raises(ValueError, match=r"no prompt contains \['dog'\]"):
        entering(tiny_pipe, "a red cat", words=["cat", "dog"])
    with pytest.raises(ValueError, match="no attention layer matches"):
        entering(tiny_pipe, "a red cat", layers=["no_such_block"])
    with pytest.raises(ValueError, match=r"expected words among .* got none of '!\?'"):
        entering(tiny_pipe, ["a red cat", "!?"])
    tiny_pipe.unet.set_attn_processor(AttnProcessor())
    with pytest.raises(ValueError, match="nothing to capture"):
        entering(tiny_pipe, "a red cat")


def test_capturing_nothing_is_an_error(tiny_pipe):
    with pytest.raises(RuntimeError, match="was the pipeline called"), capture(tiny_pipe, "a red cat") as maps:
        pass
    with pytest.raises(RuntimeError, match="no cross-attention maps"):
        _ = maps.original


def test_an_error_of_the_user_is_not_replaced_by_ours(tiny_pipe):
    with pytest.raises(ZeroDivisionError), capture(tiny_pipe, "a red cat"):
        _ = 1 / 0


def test_maps_that_were_not_asked_for(tiny_pipe):
    with capture(tiny_pipe, "a red cat", words=["cat"], quality=False) as maps:
        generate(tiny_pipe, "a red cat")
    with pytest.raises(KeyError, match="was not captured"):
        _ = maps["red"]
    with pytest.raises(AttributeError, match="quality=True"):
        _ = maps.positive


def test_the_contact_sheet_has_a_panel_for_each_map(tiny_pipe, tmp_path):
    with capture(tiny_pipe, ["a red cat", "a blue dog"], words=["red", "dog"]) as maps:
        generate(tiny_pipe, ["a red cat", "a blue dog"])
    maps.save(tmp_path / "maps.png")
    with Image.open(tmp_path / "maps.png") as sheet:
        assert sheet.size == (16 + 5 * 240, 16 + 2 * 280)


def test_a_panel_is_brightest_where_its_map_is_and_a_flat_map_is_dark():
    ramp = colorize(np.linspace(0, 1, 100, dtype=np.float32)[None])
    lightness = ramp[0].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -1).all()
    peak = np.zeros((8, 8), dtype=np.float32)
    peak[2, 5] = 1
    sheet = np.asarray(contact_sheet([[peak, np.ones_like(peak)]], ["peak", "a label too long for its panel" * 3]))
    panel = sheet[16:240, 16:240].sum(-1)
    row, column = np.unravel_index(panel.argmax(), panel.shape)
    assert (row // 28, column // 28) == (2, 5)
    assert (sheet[16:240, 256:480] == ramp[0, 0]).all()


@pytest.mark.parametrize(
    "imports",
    [
        "import lotts.capture",
        "from lotts.capture import AttentionRecorder; import lotts",
        "import lotts.capture.api; from lotts.capture import capture; import lotts",
        "import lotts; import lotts.capture.recorder",
    ],
)
def test_the_package_is_the_function_in_any_import_order(imports):
    check = (
        f"{imports}\nimport sys\n"
        "from lotts.capture import AttentionRecorder, capture\n"
        "assert callable(lotts.capture) and lotts.capture.AttentionRecorder is AttentionRecorder\n"
        "try:\n    lotts.capture(object(), 'a red cat').__enter__()\n"
        "except TypeError as error:\n    assert 'StableDiffusionPipeline' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
        "assert 'diffusers' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)


def test_help_shows_the_signature_of_the_function():
    assert inspect.signature(lotts.capture) == inspect.signature(capture)


def test_a_word_that_one_prompt_has_too_late_is_read_of_the_others(tiny_pipe):
    late = f"{'a red dog and ' * 12}a cat"
    with capture(tiny_pipe, ["a red cat", late], words=["cat"]) as maps:
        tiny_pipe(["a red cat", late], num_inference_steps=1, output_type="latent")
    # Two prompts: [B, h, w].
    assert maps["cat"][0].max() > 0
    assert maps["cat"][1].max() == 0
    with pytest.raises(ValueError, match="'cat' lies beyond"), capture(tiny_pipe, [late], words=["cat"]):
        pass
