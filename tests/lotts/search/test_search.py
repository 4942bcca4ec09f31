"""Facts about searches on a tiny pipeline: what they spend, what they return, and where samples come from."""

import numpy as np
import pytest
import torch

import lotts
import lotts.search
from lotts.search import METHODS, Budget, check, run
from lotts.search.pool import Pool

STEPS = 6


@pytest.fixture
def tiny_unet(shallow_unet):
    """Searches do not look inside the network: one level of it is enough, and takes a quarter less time."""
    return shallow_unet


def brightness(images, prompts):
    return [float(np.asarray(image).mean()) for image in images]


def found(pipe, method, budget="samples=6", seed=3, **options):
    return run(
        pipe,
        "a red cat",
        method,
        budget=budget,
        verifier=brightness,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def scores(output):
    return [sample.score for sample in output.samples]


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_samples_is_spent_exactly(tiny_pipe, method):
    out = found(tiny_pipe, method)
    assert len(out.samples) == 6
    assert out.samples[out.best].score == pytest.approx(
        brightness([out.samples[out.best].image], [""])[0] / 255, abs=2e-3
    )
    looks = 5 * 6 if method == "particle" else 0  # predicted pictures, decoded and judged on the way
    assert out.cost.vae_decodes == out.cost.verifier_calls == 6 + looks
    refined = sum(sample.kind == "refinement" for sample in out.samples)
    rows = 2 * STEPS * (6 - refined)
    if method != "lotts_adaptive":
        assert out.cost.nfe == rows + 2 * (STEPS // 2) * refined
    assert out.cost.tokens == out.cost.nfe * 16 * 16
    assert out.settings["method"] == method


@pytest.mark.parametrize("method", METHODS)
def test_no_budget_is_overspent(tiny_pipe, method):
    for budget in ("nfe=50", "tokens=12800"):
        cost = found(tiny_pipe, method, budget).cost
        spent, limit = (cost.nfe, 50) if budget.startswith("nfe") else (cost.tokens, 12800)
        assert limit / 2 < spent <= limit
    assert found(tiny_pipe, method, "seconds=0.001").cost.nfe >= 2 * STEPS


@pytest.mark.parametrize("method", METHODS)
def test_results_do_not_depend_on_the_batch(tiny_pipe, method):
    alone, together = (found(tiny_pipe, method, batch_size=size) for size in (1, 3))
    np.testing.assert_allclose(scores(alone), scores(together), rtol=1e-4)
    assert [s.parent for s in alone.samples] == [s.parent for s in together.samples]


def test_best_of_n_is_the_best_and_resampling_the_last(tiny_pipe):
    best, last = found(tiny_pipe, "best_of_n"), found(tiny_pipe, "resampling")
    assert scores(best) == scores(last)
    assert best.best == int(np.argmax(scores(best)))
    assert last.best == 5
    # Candidates are the pipeline's own pictures of the seeds from the generator's on.
    stock = tiny_pipe(
        "a red cat", num_inference_steps=STEPS, guidance_scale=3.0, generator=torch.Generator().manual_seed(5)
    )
    assert np.array_equal(np.asarray(best.samples[2].image), np.asarray(stock.images[0]))


def test_lotts_within_a_search_is_lotts(tiny_pipe):
    searched = found(tiny_pipe, "lotts", "samples=9")
    called = lotts.LoTTS(tiny_pipe, brightness)(
        "a red cat", num_inference_steps=STEPS, guidance_scale=3.0, generator=torch.Generator().manual_seed(3)
    )
    assert sorted(scores(searched)) == pytest.approx(sorted(scores(called)), rel=1e-6)
    assert searched.cost.nfe == called.cost.nfe
    assert [s.kind for s in searched.samples] == ["candidate"] * 3 + ["refinement"] * 6


def test_a_chain_refines_the_best_so_far(tiny_pipe):
    out = found(tiny_pipe, "lotts_chain", "samples=8", num_candidates=2)
    values = scores(out)
    for index in range(2, 8):
        assert out.samples[index].parent == int(np.argmax(values[:index]))
    numbers = [(sample.parent, sample.refinement) for sample in out.samples[2:]]
    assert len(set(numbers)) == len(numbers)  # each refinement of one parent is another


@pytest.mark.parametrize("method", ["lotts", "lotts_chain", "lotts_adaptive"])
def test_where_nothing_is_above_the_threshold_pictures_are_drawn(tiny_pipe, method):
    out = found(tiny_pipe, method, "nfe=60", mask_threshold=2.0)
    assert scores(out) == scores(found(tiny_pipe, "best_of_n", "nfe=60"))
    assert {sample.kind for sample in out.samples} == {"candidate"}


def adaptive(pipe, told, stop_at=0.5, budget="nfe=200"):
    """A search whose verifier says ``told(judged before)`` whatever it sees; and how many pictures it judged."""
    judged = []

    def verifier(images, prompts):
        judged.extend(images)
        return [told(len(judged) - len(images) + k) for k in range(len(images))]

    out = run(
        pipe,
        "a red cat",
        "lotts_adaptive",
        budget=budget,
        verifier=verifier,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3),
        stop_at=stop_at,
        noise_shares=(0.34,),
        mask_ratios=(0.5,),
    )
    return out, len(judged)


def test_a_refinement_that_looks_hopeless_is_given_up(tiny_pipe):
    """Every picture after the first two looks far worse: two of a refinement's four steps are taken, and no sample is made of it."""
    out, judged = adaptive(tiny_pipe, lambda before: [1.0, 1.1][before] if before < 2 else -50.0)
    given_up = out.settings["given_up"]
    assert given_up > 0
    candidates = len(out.samples)
    assert all(sample.kind == "candidate" for sample in out.samples)
    assert out.cost.nfe == 2 * STEPS * candidates + 2 * 2 * given_up
    assert judged == out.cost.verifier_calls == candidates + given_up
    assert out.settings["stop_at"] == 0.5


def test_a_refinement_that_looks_well_is_finished(tiny_pipe):
    out, judged = adaptive(tiny_pipe, lambda before: 1.0 + 0.1 * before)
    refined = [sample for sample in out.samples if sample.kind == "refinement"]
    assert refined
    assert out.settings["given_up"] == 0
    assert judged == len(out.samples) + len(refined)  # each was looked at once on its way


@pytest.mark.parametrize(("stop_at", "budget"), [(None, "nfe=100"), (0.5, "samples=6")])
def test_nothing_is_given_up_where_that_is_not_asked_for_or_saves_nothing(tiny_pipe, stop_at, budget):
    out, judged = adaptive(tiny_pipe, lambda before: [1.0, 1.1][before] if before < 2 else -50.0, stop_at, budget)
    assert out.settings["given_up"] == 0
    assert judged == len(out.samples)


def test_what_is_looked_at_is_the_parent_outside_the_mask(tiny_pipe, monkeypatch):
    shown = []
    monkeypatch.setattr(Pool, "judge", lambda self, latents: shown.append(latents) or JUDGE(self, latents))
    out, _ = adaptive(tiny_pipe, lambda before: 1.0 + 0.1 * before, budget="nfe=32")
    (refined,) = [sample for sample in out.samples if sample.kind == "refinement"]
    *candidates, looked, finished = [latents for batch in shown for latents in batch]
    before, mask = candidates[refined.parent], refined.mask
    assert torch.equal(looked[:, ~mask], before[:, ~mask])
    assert not torch.equal(looked[:, mask], before[:, mask])
    assert not torch.equal(looked, finished)


JUDGE = Pool.judge


def test_refinements_of_refinements_keep_the_rest_of_their_parent(tiny_pipe):
    dark = lambda images, prompts: [-float(np.asarray(i)[:8].mean()) for i in images]  # noqa: E731
    out = run(
        tiny_pipe, "a red cat", "lotts_chain", budget="samples=6", verifier=dark, num_inference_steps=STEPS,
        global_steps=0, num_candidates=1, mask_ratio=0.25, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert all(sample.mask.float().mean() == 0.25 for sample in out.samples[1:])
    assert any(sample.parent and out.samples[sample.parent].kind == "refinement" for sample in out.samples)


def test_neighbours_are_as_far_as_asked(tiny_pipe, monkeypatch):
    from lotts.search import baselines

    seen = []
    original = baselines._neighbour

    def spy(pool, pivot, turn, index, distance):
        noise = original(pool, pivot, turn, index, distance)
        seen.append((pivot, noise))
        return noise

    monkeypatch.setattr(baselines, "_neighbour", spy)
    found(tiny_pipe, "zero_order", "samples=6", starts=2, neighbours=2, distance=0.5)
    for pivot, noise in seen:
        cosine = float((pivot * noise).sum() / pivot.norm() / noise.norm())
        assert cosine == pytest.approx(0.75**0.5, abs=0.08)
        assert float(noise.std()) == pytest.approx(1, abs=0.08)


def test_particles_move_as_their_lineage_says(tiny_pipe):
    always = found(tiny_pipe, "particle", "samples=4", adaptive=False, strength=1e6)
    assert len(set(always.settings["lineage"])) < 4  # a strong preference copies the best over the others
    again = found(tiny_pipe, "particle", "samples=4", adaptive=False, strength=1e6)
    assert scores(again) == scores(always)
    calm = found(tiny_pipe, "particle", "samples=4", strength=1e-6)
    assert calm.settings["lineage"] == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["lotts", "lotts_chain"])
@pytest.mark.parametrize("source", ["prediction", "attention"])
def test_localisation_is_charged_where_it_is_used(tiny_pipe, source, method):
    """A chain refines refinements; plain LoTTS never does, so it looks for defects in candidates alone."""
    out = found(tiny_pipe, method, "nfe=60", source=source)
    mapped = [sample for sample in out.samples if method == "lotts_chain" or sample.kind == "candidate"]
    assert [bool(sample.heatmaps) for sample in out.samples] == [
        any(sample is one for one in mapped) for sample in out.samples
    ]
    per_sample = 2 if source == "prediction" else 0
    assert out.cost.localization_rows == per_sample * len(mapped)
    assert out.cost.nfe <= 60


def test_errors_come_first(tiny_pipe, monkeypatch):
    monkeypatch.setattr(tiny_pipe.unet, "forward", lambda *args, **kwargs: pytest.fail("computed something"))
    for options, message in (
        ({"method": "luck"}, "expected a method out of resampling"),
        ({"method": "best_of_n", "budget": "9"}, "expected a budget like samples=9"),
        ({"method": "best_of_n", "budget": "nfe=11"}, r"one picture at least \(12 network rows\), got nfe=11"),
        ({"method": "particle", "potential": "sum"}, "expected potential to be one of diff"),
        ({"method": "lotts", "mask_ratio": 0.0}, "mask_ratio"),
        ({"method": "lotts_chain", "mask_threshold": -1.0}, "mask_threshold"),
        ({"method": "zero_order", "distance": 0.0}, "distance in"),
    ):
        with pytest.raises(ValueError, match=message):
            found(tiny_pipe, **options)
    for method in METHODS:
        check(tiny_pipe, "a red cat", method, verifier=brightness, num_inference_steps=6)


def test_ensembles_do_not_compare_between_calls(tiny_pipe):
    from lotts.verifiers.ensemble import Ensemble, Member

    pair = Ensemble([Member("bright", brightness), Member("dark", lambda i, p: [-s for s in brightness(i, p)])])
    with pytest.raises(ValueError, match="scores pictures as they come"):
        run(tiny_pipe, "a red cat", verifier=pair)


def test_particles_need_a_stochastic_sampler(tiny_pipe):
    from diffusers import EulerDiscreteScheduler

    tiny_pipe.scheduler = EulerDiscreteScheduler.from_config(tiny_pipe.scheduler.config)
    with pytest.raises(ValueError, match="stochastic form"):
        found(tiny_pipe, "particle")


def test_transformers_search_too(pipe_of):
    for method in ("particle", "lotts_chain"):
        out = found(pipe_of("flux-dev"), method, "samples=4")
        assert len(out.samples) == 4
        assert len(set(scores(out))) > 1


def test_budgets():
    assert Budget.parse("nfe=450") == Budget("nfe", 450.0)
    assert str(Budget.parse("tokens=1e6")) == "tokens=1e+06"
    for text in ("nfe", "luck=3", "nfe=many", "=3"):
        with pytest.raises(ValueError, match="expected a budget like"):
            Budget.parse(text)
    with pytest.raises(ValueError, match="above 0"):
        Budget.parse("samples=0")
