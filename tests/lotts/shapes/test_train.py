"""What the embedded pipelines learn from, and that each recipe ends in a pipeline that loads and draws."""

from pathlib import Path

import numpy as np
import pytest
import torch

import lotts
from lotts import models
from lotts.shapes import build, build_flux, build_sdxl, train
from lotts.shapes.families import FluxFamily, StableDiffusionFamily, StableDiffusionXLFamily
from lotts.shapes.loop import Recipe, Worker, fit
from lotts.shapes.scenes import QUALITY_PREFIX, caption, sample_scene
from lotts.shapes.train_denoiser import WEIGHTS, LatentPool, captioned, train_denoiser
from lotts.shapes.train_text import TextLoss
from lotts.shapes.train_vae import train_vae

WORKER = Worker(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def weights(tmp_path):
    """A place for weights that has those of ``shapes-sd`` already."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "sd").symlink_to(WEIGHTS / "sd")
    return tmp_path / "weights"


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_v_gives_the_latents_back():
    latents, noise = normal(64, 8, 4, 4), normal(64, 8, 4, 5)[..., :4]
    noisy, t, v = build.v_path(latents, noise, torch.arange(64) / 64)
    alphas = build.scheduler().alphas_cumprod[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(alphas.sqrt() * noisy - (1 - alphas).sqrt() * v, latents, rtol=1e-4, atol=1e-4)
    assert t.tolist() == sorted(t.tolist())


def test_the_flow_leads_from_noise_to_latents():
    latents, noise = normal(64, 4, 8, 8), normal(64, 4, 8, 9)[..., :8]
    noisy, t, velocity = build_flux.flow_path(latents, noise, (torch.arange(64) + 0.5) / 64)
    assert ((t > 0) & (t < 1)).all()
    assert t.tolist() == sorted(t.tolist())
    torch.testing.assert_close(noisy - t.view(-1, 1, 1, 1) * velocity, latents, rtol=1e-4, atol=1e-4)
    # Half of the times lie above the middle of the path as the sampler shifts it.
    assert float(t.median()) == pytest.approx(np.exp(0.5) / (1 + np.exp(0.5)), abs=0.02)


def test_latents_are_packed_as_the_pipeline_packs_them():
    from diffusers import FluxPipeline

    latents = normal(2, 4, 6, 8)
    assert torch.equal(build_flux.pack(latents), FluxPipeline._pack_latents(latents, 2, 4, 6, 8))


def test_positions_of_any_size_span_the_same_frame():
    full, half = (build_flux.places(side, WORKER.device) for side in (16, 8))
    assert full.tolist() == [[0, row, column] for row in range(16) for column in range(16)]
    # A token of half the size stands amid the four whose place it takes.
    assert torch.equal(half.view(8, 8, 3), full.view(8, 2, 8, 2, 3).mean((1, 3)))


@torch.no_grad()
def test_an_untrained_transformer_passes_its_input_through_and_says_nothing():
    model, inner = build_flux.transformer().eval(), {}
    model.norm_out.register_forward_hook(lambda layer, given, out: inner.update(entering=given[0]))
    tokens = normal(2, 16, 16)
    out = model(
        hidden_states=tokens, timestep=torch.tensor([0.2, 0.9]), pooled_projections=normal(2, 128),
        encoder_hidden_states=normal(2, 5, 128), txt_ids=torch.zeros(5, 3), img_ids=build_flux.places(4, WORKER.device),
    ).sample  # fmt: skip
    assert torch.equal(inner["entering"], model.x_embedder(tokens))
    assert not out.any()


def test_t5_learns_places_as_the_angles_by_which_the_transformer_turns_its_tokens():
    rotation = build_flux.transformer().pos_embed(build_flux.places(build_flux.TOKENS, WORKER.device))[0]
    cosines = rotation.view(build_flux.TOKENS, build_flux.TOKENS, -1)[3, 5, 8:].view(2, 6, 2)  # of rows and columns
    waves, angles = build_flux.waves(), torch.tensor([3.0, 5.0])
    for pair in cosines.unbind(-1):
        torch.testing.assert_close(pair[:, : len(waves)], (angles[:, None] * waves).cos())
    assert ((waves * build_flux.TOKENS > 0.5) & (waves <= 1)).all()


def test_a_lesson_repeated_is_learned(monkeypatch):
    monkeypatch.setattr(TextLoss, "BATCH", 4)
    torch.manual_seed(0)
    tokenizer = build_flux.load_t5_tokenizer(WEIGHTS / "flux" / "tokenizer_2")
    lesson = TextLoss(build_flux.t5_encoder(len(tokenizer)), tokenizer, build_flux.waves(), build_flux.TOKENS)
    optimiser = torch.optim.Adam(lesson.parameters(), lr=5e-3)
    figures = []
    for _ in range(40):
        loss, read = lesson(np.random.default_rng(1), torch.Generator())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        figures.append(read)
    assert figures[0]["misread"] > np.log(8) * 2
    assert figures[-1]["misread"] < figures[0]["misread"] / 4
    assert figures[-1]["astray"] < figures[0]["astray"] / 2


def test_t5_reads_every_caption_word_by_word(tmp_path):
    build_flux.write_t5_tokenizer(tmp_path, captions=3_000)
    tokenizer = build_flux.load_t5_tokenizer(tmp_path)
    rng = np.random.default_rng(5)
    texts = [QUALITY_PREFIX["low"].format(caption(sample_scene(rng, 16), rng)) for _ in range(50)]
    ids = tokenizer(texts).input_ids
    assert max(map(len, ids)) <= tokenizer.model_max_length
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a red circle, a blue ring").input_ids)[:5] == [
        "▁a", "▁red", "▁circle", ",", "▁a",
    ]  # fmt: skip


@torch.no_grad()
def test_a_grown_network_computes_what_the_old_one_did(tmp_path):
    base = WEIGHTS / "sd"
    family, old = StableDiffusionXLFamily(WEIGHTS / "sdxl", base), StableDiffusionFamily(base, base)
    old.load()
    family.grow(WORKER, tmp_path)
    texts = ["a red circle left of a blue ring", "", "scattered: a pink star, a small green heart, a black cross"]
    ids, latents, t = old.ids(texts, WORKER.device), normal(3, 8, 16, 16), torch.tensor([10, 500, 900])
    expected = old.unet(latents, t, old.text_encoder(ids)[0]).sample
    first, second = (e(ids, output_hidden_states=True) for e in (family.text_encoder, family.text_encoder_2))
    found = family.unet(
        latents,
        t,
        torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1),
        added_cond_kwargs={"text_embeds": second.text_embeds, "time_ids": torch.full((3, 6), 128)},
    ).sample
    # The scaled-down stream remains beside what is normalised: a tenth of it for the first token, a fiftieth for the others.
    assert (found - expected).square().mean() < 2e-3 * expected.square().mean()


def test_weights_that_do_not_fit_are_refused():
    unet = build.unet()
    unet.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"unexpected \['extra"):
        build_sdxl.grow(build.text_encoder(300), unet, build_sdxl.text_encoder(300), build_sdxl.unet())


def test_an_autoencoder_of_flux_starts_with_the_fine_levels_of_shapes_sd():
    from diffusers import AutoencoderKL

    old, new = AutoencoderKL.from_pretrained(WEIGHTS / "sd" / "vae"), build_flux.autoencoder()
    build_flux.grow_autoencoder(old, new)
    for name, other in (("encoder.conv_in", None), ("encoder.down_blocks.1", None),
                        ("decoder.up_blocks.2", "decoder.up_blocks.3"), ("decoder.conv_out", None)):  # fmt: skip
        for mine, theirs in zip(
            new.get_submodule(name).parameters(), old.get_submodule(other or name).parameters(), strict=True
        ):
            assert torch.equal(mine, theirs.float())


def test_captions_are_dropped_and_latents_reused():
    class Encoder(torch.nn.Module):
        drawn = 0

        def encode(self, pictures):
            from types import SimpleNamespace as Thing

            Encoder.drawn += len(pictures)
            return Thing(latent_dist=Thing(mean=pictures[:, :1, ::8, ::8], std=0 * pictures[:, :1, ::8, ::8]))

        config = type("Config", (), {"scaling_factor": 2.0})

    pool, rng = LatentPool(Encoder(), 12, WORKER.device), np.random.default_rng(0)
    batches = [pool.batch(rng) for _ in range(20)]
    assert Encoder.drawn == 12 * 8 + 19 * 2
    texts = [text for *_, texts in batches for text in texts]
    assert 0.03 < np.mean([text == "" for text in texts]) < 0.2
    assert all(float(mean.abs().max()) > 1 for mean, *_ in batches)  # scaled


def test_low_quality_captions_go_with_damage():
    made = [captioned(np.random.default_rng(i)) for i in range(400)]
    low, high = (QUALITY_PREFIX[side].split("{")[0] for side in ("low", "high"))
    assert {quality for text, _, quality in made if text.startswith(low)} == {"low"}
    assert {quality for text, _, quality in made if text.startswith(high) or not text} == {"high"}
    assert 0.08 < np.mean([text.startswith(low) for text, *_ in made]) < 0.22


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_recipe_ends_in_a_pipeline_that_is_driven(name, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(LatentPool, "AHEAD", 1)
    if name == "flux":
        train_vae(WORKER, name, tmp_path / "runs", 4, weights)
        build_flux.write_t5_tokenizer(weights / name / "tokenizer_2", captions=500)
        monkeypatch.setattr(FluxFamily, "captions", 64)
        monkeypatch.setattr(FluxFamily, "small_images", 32)
    train_denoiser(WORKER, name, tmp_path / "runs", 16, weights=weights)
    monkeypatch.setitem(models.EMBEDDED, f"shapes-{name}", (Path(weights / name), name))
    pipe = lotts.load_pipeline(f"shapes-{name}", device="cpu")
    settings = models.default_settings(f"shapes-{name}") | {"num_inference_steps": 4}
    settings.pop("verifier")
    out = lotts.LoTTS(pipe, verifier="shapes")(
        "a red circle left of a blue ring",
        num_candidates=1,
        num_refinements=1,
        **settings,
    )
    assert [sample.image.size for sample in out.samples] == [(128, 128)] * 2
    assert out.samples[1].mask.shape == (16, 16)
    state = torch.load(tmp_path / "runs" / name / "state.pt", weights_only=True)
    assert state["seen"] == 16
    if name == "flux":
        before = {stage: torch.load(tmp_path / "runs" / stage / "state.pt", weights_only=True)["seen"]
                  for stage in ("flux-text", "flux-small")}  # fmt: skip
        assert before == {"flux-text": 64, "flux-small": 32}


def test_training_goes_onward_from_the_weights_that_are_there(weights, tmp_path):
    start = StableDiffusionFamily(weights / "sd", weights / "sd")
    start.load()
    from diffusers import UNet2DConditionModel

    kept = UNet2DConditionModel.from_pretrained(WEIGHTS / "sd" / "unet")
    for mine, theirs in zip(start.unet.parameters(), kept.parameters(), strict=True):
        assert torch.equal(mine, theirs.float())


def test_a_run_goes_on_with_its_own_seed_alone(tmp_path):
    def train(seed, images):
        model = torch.nn.Linear(1, 1)
        recipe = Recipe(images=images, batch_size=2, learning_rate=1e-3, seed=seed)
        worker = Worker(0, 1, seed, torch.device("cpu"))
        return fit(worker, model, lambda rng, noise: (model(torch.ones(2, 1)).square().mean(), {}), recipe, tmp_path)

    train(3, 4)
    train(3, 8)
    with pytest.raises(ValueError, match="its own seed, 3, got 4"):
        train(4, 12)


@pytest.mark.parametrize("arguments", [["vae", "--onward"], ["sd", "--images", "0"]])
def test_arguments_that_mean_nothing_are_refused(arguments, monkeypatch, capsys):
    monkeypatch.setattr(train, "launch", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(SystemExit):
        train.main(arguments)
    assert "expected --" in capsys.readouterr().err
