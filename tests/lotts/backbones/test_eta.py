"""Facts about samplers that draw fresh noise on their way."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)

import lotts

PROMPT, STEPS = "a red cat beside the blue dog", 5


def brightness(images, prompts):
    return [float(image.mean()) for image in images]


def seeded(seed=4):
    return torch.Generator().manual_seed(seed)


def run(pipe, **settings):
    shared = {"num_candidates": 2, "num_refinements": 1, "num_inference_steps": STEPS, "generator": seeded()}
    return lotts.LoTTS(pipe, brightness)(PROMPT, output_type="np", **{**shared, **settings})


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_with_ddim_candidates_are_the_stock_pipelines_pictures(tiny_pipe, eta):
    tiny_pipe.scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    out = run(tiny_pipe, guidance_scale=3.0, eta=eta)
    for sample in out.samples[:2]:
        stock = tiny_pipe(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            eta=eta,
            generator=seeded(sample.seed),
            output_type="np",
        )
        assert np.array_equal(sample.image, stock.images[0])
    assert out.settings["eta"] == eta


def test_euler_with_all_of_it_is_euler_ancestral(tiny_pipe):
    pictures = []
    for kind, eta in ((EulerDiscreteScheduler, 1.0), (EulerAncestralDiscreteScheduler, 0.0)):
        tiny_pipe.scheduler = kind.from_config(tiny_pipe.scheduler.config)
        pictures.append(np.stack([s.image for s in run(tiny_pipe, eta=eta).samples]))
    np.testing.assert_allclose(*pictures, atol=1e-5)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux-dev"])
def test_a_picture_depends_on_its_seed_alone(pipe_of, name):
    pipe = pipe_of(name)
    whole, plain = run(pipe, eta=1.0), run(pipe)
    part = run(pipe, num_candidates=1, generator=seeded(5), eta=1.0)
    assert np.array_equal(part.samples[0].image, whole.samples[1].image)
    assert np.array_equal(part.samples[1].image, whole.samples[3].image)
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(whole.samples, plain.samples, strict=True))
    together = run(pipe, eta=1.0, batch_size=2)
    for a, b in zip(whole.samples, together.samples, strict=True):
        np.testing.assert_allclose(a.image, b.image, atol=1e-4)


def test_a_run_without_it_is_as_if_there_had_been_none_with_it(tiny_pipe):
    lots = lotts.LoTTS(tiny_pipe, brightness)
    settings = {"num_candidates": 1, "num_inference_steps": STEPS, "output_type": "np"}
    before, _, after = (lots(PROMPT, generator=seeded(), eta=eta, **settings) for eta in (0.0, 1.0, 0.0))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(before.samples, after.samples, strict=True))


def test_repair_takes_it_too(tiny_pipe):
    picture = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
    half = np.zeros((32, 32), dtype=bool)
    half[:, :16] = True
    images = [
        lotts.repair(
            tiny_pipe, picture, PROMPT, half, verifier=brightness, num_refinements=1, num_inference_steps=STEPS,
            generator=seeded(), output_type="np", eta=eta,
        ).samples[1].image
        for eta in (0.0, 1.0, 1.0)
    ]  # fmt: skip
    assert np.array_equal(images[1], images[2])
    assert np.array_equal(images[0][:, 20:], images[1][:, 20:])
    assert not np.array_equal(images[0][:, :16], images[1][:, :16])


@pytest.mark.parametrize(
    ("scheduler", "config", "eta", "words"),
    [
        (DDIMScheduler, {}, 1.5, "from 0 to 1"),
        (DDIMScheduler, {}, -0.1, "from 0 to 1"),
        (DDIMScheduler, {"clip_sample": True}, 0.5, "clip_sample=False"),
        (DPMSolverMultistepScheduler, {}, 0.5, "DDIMScheduler"),
        (EulerDiscreteScheduler, {"prediction_type": "sample"}, 0.5, "of prediction_type 'sample'"),
    ],
)
def test_noise_that_a_sampler_cannot_draw_is_refused(tiny_pipe, monkeypatch, scheduler, config, eta, words):
    tiny_pipe.scheduler = scheduler.from_config(tiny_pipe.scheduler.config, **config)
    monkeypatch.setattr(tiny_pipe.unet, "forward", lambda *a, **k: pytest.fail("computed before checking"))
    with pytest.raises(ValueError, match=words):
        run(tiny_pipe, eta=eta)
