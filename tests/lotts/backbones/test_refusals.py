"""Facts about pipelines that cannot be driven, or whose attention cannot be read: they are refused before any compute."""

import pytest
import torch
from diffusers import ConsistencyDecoderVAE, EDMEulerScheduler, UniPCMultistepScheduler
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

import lotts
from lotts.backbones import backbone_for
from lotts.search import run


def brightness(images, prompts):
    return [float(image.mean()) for image in images]


@pytest.fixture
def idle(tiny_pipe, monkeypatch):
    """The tiny pipeline, which may neither encode a text nor compute."""
    monkeypatch.setattr(tiny_pipe, "encode_prompt", lambda *a, **k: pytest.fail("encoded a text"))
    monkeypatch.setattr(tiny_pipe.unet, "forward", lambda *a, **k: pytest.fail("computed"))
    return tiny_pipe


@pytest.mark.parametrize("kind", ["ip_image_proj", "text_proj"])  # the first as load_ip_adapter leaves it
@pytest.mark.parametrize("name", ["sd", "sdxl", "flux-dev"])
def test_projections_and_image_prompts_are_not_passed_on(pipe_of, name, kind):
    pipe = pipe_of(name)
    backbone_for(pipe).network.config.encoder_hid_dim_type = kind
    with pytest.raises(ValueError, match=rf"'{kind}'.*pipe\.unload_ip_adapter\(\)"):
        backbone_for(pipe)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_unet_with_guidance_distilled_into_it(pipe_of, name):
    pipe = pipe_of(name)
    pipe.unet.register_to_config(time_cond_proj_dim=256)
    with pytest.raises(ValueError, match="time_cond_proj_dim 256"):
        lotts.LoTTS(pipe, brightness)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda unet: unet.set_attn_processor(AttnProcessor()), "nothing to capture"),
        (lambda unet: unet.set_attention_slice("max"), "nothing to capture .*SlicedAttnProcessor"),
        (lambda unet: slice_layers(unet, "attn2"), "no cross-attention to capture .*SlicedAttnProcessor"),
        (lambda unet: slice_layers(unet, "attn1"), "no self-attention to capture .*SlicedAttnProcessor"),
    ],
)
def test_attention_that_cannot_be_read_names_the_remedy(idle, make, words):
    make(idle.unet)
    with pytest.raises(ValueError, match=words + r".*set_attn_processor\(AttnProcessor2_0\(\)\).*source='prediction'"):
        lotts.LoTTS(idle, brightness)("a red cat", num_inference_steps=4)


def slice_layers(unet, end):
    for name, module in unet.named_modules():
        if name.endswith(end):
            module.set_processor(SlicedAttnProcessor(1))


def test_the_prediction_reads_no_attention(tiny_pipe):
    tiny_pipe.enable_attention_slicing()
    out = lotts.LoTTS(tiny_pipe, brightness, source="prediction")("!?", 1, 1, num_inference_steps=4)
    assert len(out.samples) == 2


@pytest.mark.parametrize("prompt", ["🐱🐱", "!? ..."])
def test_a_prompt_without_words_has_no_attention_to_read(idle, prompt):
    with pytest.raises(ValueError, match="expected words among what the text encoder reads"):
        lotts.LoTTS(idle, brightness)(prompt, num_inference_steps=4)


def test_a_search_refuses_them_when_it_first_looks(tiny_pipe, monkeypatch):
    monkeypatch.setattr(tiny_pipe.unet, "forward", lambda *a, **k: pytest.fail("computed"))
    with pytest.raises(ValueError, match="expected words among"):
        run(tiny_pipe, "!?", "lotts", budget="samples=3", verifier=brightness, num_inference_steps=6)


def test_a_size_that_does_not_fit_names_the_nearest_one(tiny_pipe):
    with pytest.raises(ValueError, match="multiples of 2, got 33 x 31: the nearest that fits is 32 x 32"):
        backbone_for(tiny_pipe).latent_size(33, 31)


def test_a_cache_of_steps_before_is_refused(pipe_of):
    from diffusers import FirstBlockCacheConfig

    pipe = pipe_of("flux-dev")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"disable_cache\(\)"):
        lotts.LoTTS(pipe, brightness)
    pipe.transformer.disable_cache()
    lotts.LoTTS(pipe, brightness)


def test_networks_that_take_more_than_latents_are_refused_and_not_offered(tiny_pipe):
    from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel

    config = {name: value for name, value in tiny_pipe.unet.config.items() if not name.startswith("_")}
    tiny_pipe.unet = UNet2DConditionModel(**config | {"in_channels": 9})
    with pytest.raises(ValueError, match="4 channels, got one with 9"):
        lotts.LoTTS(tiny_pipe, brightness)
    inpainting = StableDiffusionInpaintPipeline(
        **{name: part for name, part in tiny_pipe.components.items() if name != "image_encoder"},
        requires_safety_checker=False,
    )
    with pytest.raises(TypeError, match="the closest is StableDiffusionPipeline") as refused:
        lotts.LoTTS(inpainting, brightness)
    assert "from_pipe" not in str(refused.value)


def test_a_pipeline_on_pixels_is_refused_as_any_other(tiny_pipe):
    from diffusers import DDPMScheduler, IFPipeline

    missing = dict.fromkeys(("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker"))
    pixels = IFPipeline(unet=tiny_pipe.unet, scheduler=DDPMScheduler(), requires_safety_checker=False, **missing)
    with pytest.raises(TypeError, match="got IFPipeline") as refused:
        backbone_for(pixels)
    assert "from_pipe" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"num_inference_steps": 1001}, ValueError, "1000"),
        ({"negative_prompt": ["the", "dog"]}, TypeError, "negative_prompt as one string, got list"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale to be a number, got nan"),
        ({"guidance_scale": True}, ValueError, "guidance_scale to be a number, got True"),
    ],
)
def test_what_cannot_run_is_told_before_a_text_is_encoded(idle, changes, error, words):
    with pytest.raises(error, match=words):
        lotts.LoTTS(idle, brightness)("a red cat", **{"num_inference_steps": 4, **changes})


def test_the_checkers_masks_need_a_scene_of_shapes(idle):
    with pytest.raises(ValueError, match="cannot read"):
        lotts.LoTTS(idle, brightness, source="defects")("a red cat", num_inference_steps=4)


def test_no_negative_prompt_is_an_empty_one(pipe_of):
    pipe = pipe_of("flux-dev")
    settings = {
        "num_candidates": 1,
        "num_refinements": 0,
        "num_inference_steps": 1,
        "true_cfg_scale": 2.0,
        "output_type": "np",
    }
    none, empty = (
        lotts.LoTTS(pipe, brightness)(
            "a red cat", negative_prompt=given, generator=[torch.Generator().manual_seed(1)], **settings
        )
        for given in (None, "")
    )
    assert (none.image == empty.image).all()


def test_an_autoencoder_that_draws_noise_is_refused(tiny_pipe):
    tiny_pipe.vae = ConsistencyDecoderVAE(
        encoder_block_out_channels=(8, 8), encoder_down_block_types=("DownEncoderBlock2D",) * 2, encoder_layers_per_block=1,
        decoder_block_out_channels=(8, 8), decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2, decoder_layers_per_block=1, decoder_norm_num_groups=4,
        encoder_norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="got ConsistencyDecoderVAE, which draws noise"):
        backbone_for(tiny_pipe)


def test_a_pipeline_that_was_changed_since_it_was_wrapped_is_checked_again(tiny_pipe, monkeypatch):
    wrapped = lotts.LoTTS(tiny_pipe, brightness)
    tiny_pipe.scheduler = UniPCMultistepScheduler.from_config(tiny_pipe.scheduler.config)
    monkeypatch.setattr(tiny_pipe.unet, "forward", lambda *a, **k: pytest.fail("computed"))
    with pytest.raises(
        ValueError, match=r"got UniPCMultistepScheduler: set pipe\.scheduler = DDIMScheduler\.from_config"
    ):
        wrapped("a red cat", num_inference_steps=4)


def test_a_scheduler_of_another_process_gets_no_wrong_advice(tiny_pipe):
    tiny_pipe.scheduler = EDMEulerScheduler()
    with pytest.raises(ValueError, match="got EDMEulerScheduler: none of them makes the same of its configuration"):
        lotts.LoTTS(tiny_pipe, brightness)


def test_a_flows_shift_is_part_of_the_advice(pipe_of):
    pipe = pipe_of("sd3")
    pipe.scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    with pytest.raises(
        ValueError, match=r"FlowMatchEulerDiscreteScheduler\.from_config\(pipe\.scheduler\.config, shift=3\.0\)"
    ):
        lotts.LoTTS(pipe, brightness)


@pytest.mark.parametrize("callback", [SDCFGCutoffCallback(cutoff_step_ratio=0.5), "a function"])
def test_a_callback_is_a_function_of_latents(idle, callback):
    with pytest.raises(TypeError, match="expected callback_on_step_end as a function"):
        lotts.LoTTS(idle, brightness)("a red cat", num_inference_steps=4, callback_on_step_end=callback)


def test_a_callback_may_ask_the_pipeline_how_it_is_driven(pipe_of):
    for name in ("sd", "sdxl", "sd3", "flux-dev"):
        asked = []

        def callback(pipe, step, timestep, kwargs, asked=asked):
            asked.append((pipe.num_timesteps, pipe.guidance_scale, pipe.interrupt))
            return {}

        lotts.LoTTS(pipe_of(name), brightness, source="prediction")(
            "a red cat", num_inference_steps=4, guidance_scale=2.5, num_candidates=1, num_refinements=1,
            callback_on_step_end=callback,
        )  # fmt: skip
        assert set(asked) == {(4, 2.5, False)}


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("sd", {"negative_prompt": "a dog", "guidance_scale": 1.0}, "the negative prompt does nothing"),
        ("flux-schnell", {"guidance_scale": 4.0}, "guidance_scale does nothing"),
    ],
)
def test_what_does_nothing_is_told(pipe_of, name, given, words):
    run_ = {"num_inference_steps": 4, "num_candidates": 1, "num_refinements": 0}
    with pytest.warns(UserWarning, match=words):
        out = lotts.LoTTS(pipe_of(name), brightness, source="prediction")("a red cat", **run_, **given)
    assert any(words in note for note in out.cost.notes)
    quiet = lotts.LoTTS(pipe_of(name), brightness, source="prediction")("a red cat", **run_, guidance_scale=1.0)
    assert not quiet.cost.notes
