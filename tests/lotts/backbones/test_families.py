"""Facts about every family's pipeline, on tiny ones of the true classes."""

import dataclasses

import numpy as np
import pytest
import torch

import lotts
from lotts.backbones import FAMILIES, backbone_for, capturable
from lotts.localize import quality_mask
from lotts.resample import denoise, refine
from lotts.resample_config import ResampleConfig

NAMES = ["sd", "sdxl", "sd3", "sd3.5", "flux-dev", "flux-schnell"]
STEPS = 4


def brightness(images, prompts):
    return [float(np.asarray(image).mean()) for image in images]


def stock_latents(pipe, seed=3, **options):
    return pipe(
        "a red cat",
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **options,
    ).images


def candidate(pipe, seed=3, size=None, **guidance):
    backbone = backbone_for(pipe)
    guidance = {"guidance_scale": backbone.default_guidance_scale, **guidance}
    size = backbone.latent_size(*(size or backbone.default_size))
    with torch.no_grad():
        text = backbone.encode_prompt("a red cat", **guidance)
        (trajectory,) = denoise(backbone, text, [seed], size, STEPS)
    return backbone, text, trajectory


@pytest.mark.parametrize("name", NAMES)
def test_candidates_are_the_stock_pipelines_pictures(pipe_of, name):
    pipe = pipe_of(name)
    backbone, _, ours = candidate(pipe)
    assert torch.equal(backbone.to_pipeline(ours.result[None]), stock_latents(pipe))
    stock = pipe("a red cat", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3), output_type="np")
    with torch.no_grad():
        assert np.array_equal(backbone.decode(ours.result[None]), stock.images)


@pytest.mark.parametrize("name", ["sdxl", "sd3.5", "flux-dev"])
def test_pictures_that_are_not_square(pipe_of, name):
    pipe = pipe_of(name)
    backbone, _, ours = candidate(pipe, size=(32, 64))
    assert torch.equal(backbone.to_pipeline(ours.result[None]), stock_latents(pipe, height=32, width=64))
    assert ours.result.shape[-1] == 2 * ours.result.shape[-2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sdxl", "sd3.5", "flux-dev"])
def test_half_precision(pipe_of, name, dtype):
    pipe = pipe_of(name).to(dtype=dtype)
    backbone, _, ours = candidate(pipe)
    assert ours.result.dtype == dtype
    assert torch.isfinite(ours.result).all()
    assert torch.equal(backbone.to_pipeline(ours.result[None]), stock_latents(pipe))


@pytest.mark.parametrize("negative", ["", "the blue dog"])
def test_negative_prompts(pipe_of, negative):
    for name in ("sdxl", "sd3.5"):
        pipe = pipe_of(name)
        backbone, _, ours = candidate(pipe, negative_prompt=negative)
        assert torch.equal(
            ours.result[None], stock_latents(pipe, **({"negative_prompt": negative} if negative else {}))
        )
    pipe = pipe_of("flux-dev")
    backbone, text, ours = candidate(pipe, negative_prompt=negative, true_cfg_scale=2.5)
    assert text.guided
    stock = stock_latents(pipe, negative_prompt=negative, true_cfg_scale=2.5)
    assert torch.equal(backbone.to_pipeline(ours.result[None]), stock)


@pytest.mark.parametrize("name", NAMES)
def test_refinements_keep_the_candidate_outside_the_mask(pipe_of, name):
    backbone, text, base = candidate(pipe_of(name))
    mask = torch.zeros(1, *base.result.shape[-2:], dtype=torch.bool)
    mask[:, 2:6, 3:9] = True
    config = ResampleConfig(noise_step=1, global_steps=1)
    with torch.no_grad():
        (out,) = refine(backbone, text, [base], mask, [0], config, STEPS)
    for step in range(1, STEPS):
        kept, given = out.latents[step], base.latents[step]
        assert torch.equal(kept[:, ~mask[0]], given[:, ~mask[0]])
        assert not torch.equal(kept[:, mask[0]], given[:, mask[0]])


@pytest.mark.parametrize("name", ["sdxl", "sd3.5", "flux-dev"])
def test_the_whole_method_and_repair(pipe_of, name):
    pipe = pipe_of(name)
    calls = []

    def callback(pipe, step, timestep, kwargs):
        calls.append(kwargs["latents"].shape)

    out = lotts.LoTTS(pipe, brightness)(
        "a red cat",
        num_candidates=2,
        num_refinements=1,
        num_inference_steps=STEPS,
        global_steps=1,
        generator=torch.Generator().manual_seed(3),
        callback_on_step_end=callback,
    )
    assert [sample.kind for sample in out.samples] == ["candidate"] * 2 + ["refinement"] * 2
    assert set(calls) == {stock_latents(pipe).shape}
    stock = pipe("a red cat", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(4)).images[0]
    assert np.array_equal(np.asarray(out.samples[1].image), np.asarray(stock))
    fixed = lotts.repair(
        pipe, stock, "a red cat", verifier=brightness, num_refinements=1, num_inference_steps=STEPS, global_steps=1
    )
    assert fixed.samples[0].kind == "original"
    assert fixed.improvement >= 0


@pytest.mark.parametrize("name", ["sd", "sd3.5", "flux-dev"])
@pytest.mark.parametrize("source", ["prediction", "batch"])
def test_sources_that_cost_rows_say_how_many(pipe_of, name, source):
    pipe = pipe_of(name)
    chosen = lotts.PredictionSource((0.5,)) if source == "prediction" else lotts.AttentionSource(contrast="batch")
    out = lotts.LoTTS(pipe, brightness, source=chosen)(
        "a red cat", num_candidates=1, num_refinements=0, num_inference_steps=STEPS
    )
    # Two quality prompts: at one level, or at each of the steps 1 and 2 of the default window.
    assert out.cost.localization_rows == (2 if source == "prediction" else 4)
    assert float(out.samples[0].heatmaps["P"].max()) > 0
    assert quality_mask(out.samples[0].heatmaps["P"][None], 0.25).float().mean() == 0.25


@pytest.mark.parametrize(("name", "step"), [("sd", 16), ("sdxl", 16), ("sd3", 7), ("flux-dev", 7)])
def test_sources_look_where_the_family_says_unless_they_are_told(pipe_of, name, step):
    backbone, text, sample = candidate(pipe_of(name))
    size, asked = tuple(sample.result.shape[-2:]), []

    def latents_at(index):
        asked.append(index)
        return sample.result[None]

    for source in (lotts.PredictionSource(), lotts.PredictionSource((0.5, 0.1))):
        backbone.restart(20, 0, size)
        with torch.no_grad():
            source.watch(backbone, "a red cat", [0], size, 20, text).maps(latents_at)
    assert asked == [step, 2, 10]
    narrow = lotts.LocalizeConfig(cross_steps=(0.5, 0.6))
    backbone.localize = dataclasses.replace(backbone.localize, cross_steps=(0.4, 0.8))
    assert lotts.AttentionSource(contrast="batch").rows(backbone, 20) == 16
    assert lotts.AttentionSource(narrow, contrast="batch").rows(backbone, 20) == 4


def test_dpm_solver_restarts_and_forgets_its_history(pipe_of):
    from diffusers import DPMSolverMultistepScheduler

    for name in ("sd", "sdxl"):
        pipe = pipe_of(name)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            pipe.scheduler.config, use_karras_sigmas=name == "sdxl"
        )
        backbone, text, base = candidate(pipe)
        assert torch.equal(base.result[None], stock_latents(pipe))
        with torch.no_grad():
            backbone.restart(STEPS, 0, base.result.shape[-2:])
            first = backbone.step(backbone.predict(base.latents[0][None], 0, text), 0, base.latents[0][None], None)
            assert torch.equal(first[0], base.latents[1])  # the first step has no history to forget
            again = []
            for _ in range(2):
                backbone.restart(STEPS, 2, base.result.shape[-2:])
                latents = base.latents[2][None]
                again.append(backbone.step(backbone.predict(latents, 2, text), 2, latents, None))
            assert torch.equal(*again)
        signal, noise = backbone.signal_and_noise(2)
        assert signal**2 + noise**2 == pytest.approx(1)
    sde = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type="sde-dpmsolver++")
    pipe.scheduler = sde
    with pytest.raises(ValueError, match=r"algorithm_type 'dpmsolver\+\+', got 'sde-dpmsolver\+\+'"):
        backbone_for(pipe)


def test_flow_matching_restarts_exactly(pipe_of):
    backbone, text, base = candidate(pipe_of("flux-dev"))
    with torch.no_grad():
        backbone.restart(STEPS, 2, base.result.shape[-2:])
        latents = base.latents[2][None]
        for step in (2, 3):
            latents = backbone.step(backbone.predict(latents, step, text), step, latents, None)
    assert torch.equal(latents[0], base.result)
    signal, noise = backbone.signal_and_noise(0)
    assert (signal, noise) == pytest.approx((0.0, 1.0))


def test_errors_say_what_to_do(pipe_of):
    from diffusers import DDPMScheduler, StableDiffusion3Img2ImgPipeline

    with pytest.raises(TypeError, match=r"expected a pipeline out of .*, got int"):
        backbone_for(1)
    img2img = StableDiffusion3Img2ImgPipeline.from_pipe(pipe_of("sd3"))
    with pytest.raises(
        TypeError, match=r"closest is StableDiffusion3Pipeline; StableDiffusion3Pipeline\.from_pipe\(pipe\)"
    ):
        backbone_for(img2img)
    assert type(capturable(img2img)) is FAMILIES["StableDiffusion3Pipeline"]
    pipe = pipe_of("sdxl")
    with pytest.raises(ValueError, match="true_cfg_scale=1 with a StableDiffusionXLPipeline, got 2"):
        lotts.LoTTS(pipe, brightness)("a red cat", true_cfg_scale=2.0)
    pipe.scheduler = DDPMScheduler()
    with pytest.raises(ValueError, match=r"pipe\.scheduler = DDIMScheduler\.from_config"):
        backbone_for(pipe)
    with pytest.raises(ValueError, match="multiples of 4"):
        backbone_for(pipe_of("flux-dev")).latent_size(30, 32)


def test_components_are_offered_only_to_a_family_with_the_same_network(pipe_of):
    from diffusers import DDPMPipeline, DDPMScheduler, FluxControlPipeline, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    pipe = DDPMPipeline(UNet2DModel(sample_size=8, norm_num_groups=4, **blocks), DDPMScheduler())
    with pytest.raises(TypeError, match="the closest is ") as refused:
        backbone_for(pipe)
    assert "from_pipe" not in str(refused.value)
    flux = pipe_of("flux-dev")
    control = FluxControlPipeline(**{name: part for name, part in flux.components.items() if part is not None})
    control.transformer = torch.compile(flux.transformer, backend="eager")
    with pytest.raises(TypeError, match=r"FluxPipeline\.from_pipe\(pipe\)"):
        backbone_for(control)


def test_supported_names_every_family_and_its_schedulers():
    entries = {entry.pipeline: entry for entry in lotts.supported()}
    assert list(entries) == list(FAMILIES)
    assert "forgets its history" in str(entries["StableDiffusionXLPipeline"])
    assert entries["FluxPipeline"].schedulers == ("FlowMatchEulerDiscreteScheduler",)
    assert "prediction maps: at 35% of the steps" in str(entries["FluxPipeline"])


def test_guidance_defaults_are_the_pipelines_own(pipe_of):
    names = ("sd", "sdxl", "sd3", "flux-dev", "flux-schnell")
    assert {name: backbone_for(pipe_of(name)).default_guidance_scale for name in names} == {
        "sd": 7.5,
        "sdxl": 5.0,
        "sd3": 7.0,
        "flux-dev": 3.5,
        "flux-schnell": 1.0,  # its network has no input for one
    }


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux-dev"])
def test_an_autoencoder_may_be_on_a_device_of_its_own(pipe_of, name, monkeypatch):
    """Here one that computes nothing: what counts is where it is given the latents."""
    pipe = pipe_of(name)
    pipe.vae.to("meta")
    given = []

    def decode(latents, return_dict):
        given.append(latents.device.type)
        return (torch.zeros(len(latents), 3, 32, 32),)

    monkeypatch.setattr(pipe.vae, "decode", decode)
    lotts.LoTTS(pipe, lambda images, prompts: [0.0] * len(images), source="prediction")(
        "a red cat", num_inference_steps=4, num_candidates=1, num_refinements=0
    )
    assert set(given) == {"meta"}
