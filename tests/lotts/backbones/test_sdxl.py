"""What SDXL has for itself: an autoencoder that overflows in half precision, and no negative prompt that is not an empty one."""

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from lotts.backbones import backbone_for
from lotts.resample import denoise

STEPS = 3


def stock(pipe, **options):
    return pipe(
        "a red cat",
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        **options,
    ).images


@torch.no_grad()
def ours(pipe, **options):
    backbone = backbone_for(pipe)
    text = backbone.encode_prompt("a red cat", guidance_scale=backbone.default_guidance_scale, **options)
    (trajectory,) = denoise(backbone, text, [3], backbone.latent_size(*backbone.default_size), STEPS)
    return trajectory.result[None]


def watched(vae, name, monkeypatch, failing):
    """The precisions in which the autoencoder and what it is given are while it works."""
    seen, original = [], getattr(vae, name)

    def method(tensor, *args, **kwargs):
        seen.append((vae.dtype, tensor.dtype))
        if failing:
            raise KeyError(name)
        return original(tensor, *args, **kwargs)

    monkeypatch.setattr(vae, name, method)
    return seen


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("works", ["encode", "decode"])
@pytest.mark.parametrize(
    ("name", "overflows", "expected"),
    [("sdxl", True, torch.float32), ("sdxl", False, torch.float16), ("sd", True, torch.float16)],
)
@torch.no_grad()
def test_the_autoencoder_works_in_single_precision_where_it_would_overflow(
    pipe_of, monkeypatch, name, overflows, expected, works, failing
):
    """Only SDXL's pipeline asks its autoencoder: Stable Diffusion's decodes as it is, whatever the configuration says."""
    pipe = pipe_of(name).to(dtype=torch.float16)
    pipe.vae.register_to_config(force_upcast=overflows)
    backbone = backbone_for(pipe)
    seen = watched(pipe.vae, works, monkeypatch, failing)
    picture = Image.effect_noise((32, 32), 80)
    latents = torch.randn(1, 4, 16, 16, dtype=torch.float16)
    try:
        out = backbone.encode_image(picture) if works == "encode" else torch.from_numpy(backbone.decode(latents))
        assert out.dtype == (torch.float16 if works == "encode" else torch.float32)
        assert torch.isfinite(out).all()
    except KeyError:
        assert failing
    assert seen == [(expected, expected)]
    assert pipe.vae.dtype == torch.float16


@torch.no_grad()
def test_decoded_in_half_precision_a_picture_is_the_stock_pipelines(pipe_of):
    pipe = pipe_of("sdxl").to(dtype=torch.float16)
    latents = ours(pipe)
    expected = pipe(
        "a red cat", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3), output_type="np"
    )
    assert np.array_equal(backbone_for(pipe).decode(latents), expected.images)


def test_an_empty_negative_prompt_is_none_at_all(pipe_of):
    pipe = pipe_of("sdxl")
    zeros = stock(pipe)
    assert torch.equal(ours(pipe, negative_prompt=""), zeros)
    assert not torch.equal(stock(pipe, negative_prompt=""), zeros)
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    assert torch.equal(ours(pipe, negative_prompt=""), stock(pipe, negative_prompt=""))


def test_the_first_run_under_a_schedule_begins_with_its_noise(pipe_of):
    """With "leading" spacing pure noise is as strong as the steps' schedule says, which is known once it is set."""
    pipe = pipe_of("sdxl")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    latents = ours(pipe)
    assert torch.equal(latents, stock(pipe))
