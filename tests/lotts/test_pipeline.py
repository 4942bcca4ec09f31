"""Facts about whole runs of LoTTS and repair on a tiny pipeline of the true classes."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler
from PIL import Image

import lotts

PROMPT = "a red cat beside the blue dog"
SETTINGS = {"num_inference_steps": 6, "guidance_scale": 3.0, "output_type": "np"}


def brightness(images, prompts):
    return [float(image.mean()) for image in images]


def seeded(seed=4):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def run(tiny_pipe):
    def call(verifier=brightness, source="attention", **settings):
        return lotts.LoTTS(tiny_pipe, verifier, source=source)(
            PROMPT, **{"generator": seeded(), **SETTINGS, **settings}
        )

    return call


@pytest.mark.parametrize("source", ["attention", "prediction"])
def test_the_pool_holds_every_candidate_and_its_refinements(run, source):
    out = run(source=source)
    assert [s.kind for s in out.samples] == ["candidate"] * 3 + ["refinement"] * 6
    assert [s.parent for s in out.samples] == [None] * 3 + [0, 0, 1, 1, 2, 2]
    assert [s.seed for s in out.samples] == [4, 5, 6, 4, 4, 5, 5, 6, 6]
    assert {tuple(s.mask.shape) for s in out.samples} == {(16, 16)}
    assert {int(s.mask.sum()) for s in out.samples} == {128}
    names = {"attention": ["CA_orig", "CA_diff", "CA'_orig", "CA'_diff", "P"], "prediction": ["P"]}[source]
    assert all(list(s.heatmaps) == names for s in out.samples[:3])
    assert all(m.shape == (16, 16) and m.isfinite().all() for s in out.samples for m in s.heatmaps.values())


def test_the_best_sample_is_never_worse_than_the_best_candidate(run):
    for verifier in (brightness, lambda images, prompts: [-float(i.mean()) for i in images]):
        out = run(verifier)
        assert out.samples[out.best].score == max(s.score for s in out.samples)
        assert out.improvement >= 0
        assert out.image is out.samples[out.best].image


def test_a_verifier_without_opinion_keeps_the_first_candidate(run):
    out = run(lambda images, prompts: [0.0] * len(images))
    assert out.best == 0
    assert out.improvement == 0


def test_candidates_are_the_stock_pipelines_pictures(run, tiny_pipe):
    out = run(num_candidates=2)
    for sample in out.samples[:2]:
        stock = tiny_pipe(PROMPT, generator=seeded(sample.seed), **SETTINGS).images[0]
        assert np.array_equal(sample.image, stock)


def test_an_image_depends_on_its_seed_alone(run):
    whole = run()
    part = run(num_candidates=1, generator=seeded(5))
    assert np.array_equal(part.samples[0].image, whole.samples[1].image)
    assert np.array_equal(part.samples[1].image, whole.samples[5].image)
    assert np.array_equal(part.samples[2].image, whole.samples[6].image)
    shuffled = run(generator=[seeded(6), seeded(4), seeded(5)])
    assert np.array_equal(shuffled.samples[0].image, whole.samples[2].image)
    assert np.array_equal(shuffled.samples[5].image, whole.samples[3].image)


def test_larger_batches_agree_to_rounding(run):
    for one, many in zip(run().samples, run(batch_size=4).samples, strict=True):
        np.testing.assert_allclose(one.image, many.image, atol=1e-4)


def test_costs_are_counted(run):
    cost = run(noise_step=2).cost
    assert cost.network_rows == 2 * (3 * 6 + 6 * 4)
    assert cost.localization_rows == 0
    assert cost.vae_decodes == cost.verifier_calls == 9
    unguided = run(noise_step=2, guidance_scale=1.0, source="prediction").cost
    assert unguided.network_rows == 3 * 6 + 6 * 4
    assert unguided.localization_rows == 3 * 2
    assert unguided.nfe == unguided.network_rows + unguided.localization_rows


def test_no_refinements_is_best_of_n(run):
    out = run(num_refinements=0)
    assert len(out.samples) == 3
    assert out.improvement == 0


def test_pixel_paste_keeps_the_candidates_pixels_outside_the_mask(run):
    out = run(pixel_paste=True)
    for sample in out.samples[3:]:
        outside = ~np.kron(sample.mask.numpy(), np.ones((2, 2), bool))
        parent = out.samples[sample.parent].image
        assert np.array_equal(sample.image[outside], parent[outside])
        assert not np.array_equal(sample.image[~outside], parent[~outside])


def test_the_callback_sees_every_step_of_every_stage(run):
    seen = []

    def callback(pipe, step, timestep, values):
        seen.append((values["stage"], step))
        return values

    run(num_candidates=2, num_refinements=1, noise_step=4, callback_on_step_end=callback)
    assert seen == [("candidate", i) for i in range(6)] * 2 + [("refinement", i) for i in (4, 5)] * 2


@pytest.mark.parametrize(("kind", "type_"), [("pil", Image.Image), ("np", np.ndarray), ("pt", torch.Tensor)])
def test_output_types(run, kind, type_):
    out = run(num_candidates=1, num_refinements=1, output_type=kind)
    assert isinstance(out.image, type_)
    assert out.samples[0].pixels.shape == (32, 32, 3)


def test_euler_works_too(tiny_pipe, run):
    tiny_pipe.scheduler = EulerDiscreteScheduler.from_config(tiny_pipe.scheduler.config)
    out = run(num_candidates=1)
    stock = tiny_pipe(PROMPT, generator=seeded(), **SETTINGS).images[0]
    assert np.array_equal(out.samples[0].image, stock)
    for one, other in itertools.combinations(out.samples, 2):
        assert not np.array_equal(one.image, other.image)


def test_the_processors_are_restored(run, tiny_pipe):
    before = {name: id(p) for name, p in tiny_pipe.unet.attn_processors.items()}
    run()
    assert {name: id(p) for name, p in tiny_pipe.unet.attn_processors.items()} == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask_ratio": 0}, "mask_ratio"),
        ({"mask_ratio": 1.2}, "mask_ratio"),
        ({"noise_step": 6}, "noise_step"),
        ({"noise_step": -1}, "noise_step"),
        ({"num_candidates": 0}, "num_candidates"),
        ({"num_refinements": -1}, "num_refinements"),
        ({"batch_size": 0}, "batch_size"),
        ({"background": "white"}, "background"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"height": 33}, "multiples of 2"),
        ({"generator": [seeded()]}, "list of 3"),
    ],
)
def test_bad_arguments_are_refused_before_any_compute(run, tiny_pipe, monkeypatch, settings, words):
    monkeypatch.setattr(tiny_pipe.unet, "forward", lambda *a, **k: pytest.fail("computed before checking"))
    with pytest.raises(ValueError, match=words):
        run(**settings)


def test_bad_prompts_verifiers_sources_and_pipelines(tiny_pipe):
    with pytest.raises(ValueError, match="prompt"):
        lotts.LoTTS(tiny_pipe, brightness)("  ")
    with pytest.raises(TypeError, match="prompt"):
        lotts.LoTTS(tiny_pipe, brightness)(["a cat"])
    with pytest.raises(ValueError, match="shapes"):
        lotts.LoTTS(tiny_pipe, "beauty")
    with pytest.raises(TypeError, match="verifier"):
        lotts.LoTTS(tiny_pipe, 3)
    with pytest.raises(ValueError, match="attention"):
        lotts.LoTTS(tiny_pipe, brightness, source="magic")
    with pytest.raises(TypeError, match="StableDiffusionPipeline"):
        lotts.LoTTS(object(), brightness)
    tiny_pipe.scheduler = PNDMScheduler.from_config(tiny_pipe.scheduler.config)
    with pytest.raises(ValueError, match="DDIMScheduler"):
        lotts.LoTTS(tiny_pipe, brightness)


def test_a_verifier_that_returns_nonsense_is_named(run):
    with pytest.raises(ValueError, match="picture 0"):
        run(lambda images, prompts: [float("nan")] * len(images))
    with pytest.raises(ValueError, match="one score"):
        run(lambda images, prompts: [1.0])


class TestRepair:
    picture = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32)

    def repair(self, pipe, **settings):
        options = {"verifier": brightness, "generator": seeded(), "num_refinements": 2, **SETTINGS, **settings}
        return lotts.repair(pipe, options.pop("image", self.picture), PROMPT, options.pop("mask", None), **options)

    @pytest.mark.parametrize("source", ["attention", "prediction"])
    def test_the_original_stays_in_the_pool(self, tiny_pipe, source):
        out = self.repair(tiny_pipe, source=source)
        assert [s.kind for s in out.samples] == ["original", "refinement", "refinement"]
        assert np.array_equal(out.samples[0].image, self.picture)
        assert out.samples[out.best].score >= out.samples[0].score
        assert out.improvement == out.samples[out.best].score - out.samples[0].score

    def test_pixels_outside_a_given_mask_do_not_change(self, tiny_pipe):
        mask = np.zeros((32, 32), bool)
        mask[8:20, 4:16] = True
        out = self.repair(tiny_pipe, mask=mask)
        assert out.samples[0].heatmaps == {}
        assert np.array_equal(out.samples[1].image[~mask], self.picture[~mask])
        assert not np.array_equal(out.samples[1].image[mask], self.picture[mask])

    def test_masks_may_be_pictures_pixels_or_latent_cells(self, tiny_pipe, tmp_path):
        cells = np.zeros((16, 16), bool)
        cells[2:5, 7:9] = True
        pixels = np.kron(cells, np.ones((2, 2), bool))
        Image.fromarray(pixels.astype(np.uint8) * 255).save(tmp_path / "mask.png")
        for mask in (cells, pixels, torch.from_numpy(cells), pixels.astype(np.float32), tmp_path / "mask.png"):
            assert np.array_equal(self.repair(tiny_pipe, mask=mask).samples[0].mask.numpy(), cells)

    def test_an_empty_mask_returns_the_picture(self, tiny_pipe):
        out = self.repair(tiny_pipe, mask=np.zeros((32, 32), bool))
        assert all(np.array_equal(s.image, self.picture) for s in out.samples)
        assert out.cost.notes == ["nothing was resampled: the mask is empty"]

    @pytest.mark.parametrize(
        ("settings", "error", "words"),
        [
            ({"mask": np.zeros((5, 5))}, ValueError, "32 x 32 pixels"),
            ({"background": "replay"}, ValueError, "fixed"),
            ({"image": np.zeros((32, 32))}, TypeError, r"\[H, W, 3\]"),
            ({"image": np.zeros((33, 32, 3))}, ValueError, "multiples of 2"),
            ({"image": "/nowhere/picture.png"}, FileNotFoundError, "nowhere"),
            ({"num_refinements": -1}, ValueError, "num_refinements"),
        ],
    )
    def test_bad_arguments_are_refused_before_any_compute(self, tiny_pipe, monkeypatch, settings, error, words):
        monkeypatch.setattr(tiny_pipe.vae, "encode", lambda *a, **k: pytest.fail("computed before checking"))
        with pytest.raises(error, match=words):
            self.repair(tiny_pipe, **settings)
