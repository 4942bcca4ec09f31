"""Facts about capture where a step has more passes than the prompt's: only that one is recorded."""

import pytest
import torch
from PIL import Image

import lotts


def taken(pipe, **options):
    """The maps of a pipeline's call and what it returned."""
    arguments = {"output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    with lotts.capture(pipe, "a red cat", words=["cat"]) as maps:
        latents = pipe("a red cat", **arguments, **options).images
    return torch.stack([maps["cat"], maps.original[0], maps.positive[0], maps.negative[0]]), latents


@pytest.fixture(params=["FluxImg2ImgPipeline", "FluxInpaintPipeline"])
def edited(pipe_of, request):
    """A pipeline that starts from a picture and gives its passes no names, and its arguments for one step."""
    import diffusers

    pipe = getattr(diffusers, request.param).from_pipe(pipe_of("flux-dev"))
    pipe.default_sample_size = 32
    pipe.set_progress_bar_config(disable=True)
    picture = Image.effect_noise((64, 64), 80).convert("RGB")
    options = {"image": picture, "height": 64, "width": 64, "num_inference_steps": 4, "strength": 0.25}
    if request.param == "FluxInpaintPipeline":
        options["mask_image"] = Image.new("L", (64, 64), 255)
    return pipe, options


def test_a_pass_without_a_name_on_the_same_latents_is_the_negative_prompts(edited):
    pipe, options = edited
    unguided, plain = taken(pipe, **options)
    guided, latents = taken(pipe, **options, negative_prompt="the blue dog", true_cfg_scale=2.0)
    assert not torch.equal(latents, plain)
    assert torch.equal(guided, unguided)


def test_every_step_of_several_is_recorded(edited):
    """Guided away from the prompt itself nothing is guided, so that the steps are those of an unguided run."""
    pipe, options = edited
    options["strength"] = 0.75
    unguided, plain = taken(pipe, **options)
    guided, latents = taken(pipe, **options, negative_prompt="a red cat", true_cfg_scale=2.0)
    assert torch.equal(latents, plain)
    assert torch.equal(guided, unguided)
    one, _ = taken(pipe, **options | {"strength": 0.25})
    assert not torch.allclose(one, unguided)


def test_passes_without_some_layers_are_not_recorded(pipe_of):
    pipe = pipe_of("sd3.5")
    plain, latents = taken(pipe, num_inference_steps=2)
    skipping = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    skipped, others = taken(pipe, num_inference_steps=2, **skipping)
    assert not torch.equal(others, latents)
    assert torch.equal(skipped, plain)  # the passes differ after the last prediction alone
