"""Facts about searches on a tiny pipeline: what they spend, what they return, and where samples come from."""

import itertools

import numpy as np
import pytest
import torch
from searching import STEPS, brightness, found, scores

import lotts
import lotts.search
from lotts.localize import LocalizeConfig
from lotts.search import METHODS, Budget, check, run
from lotts.search.pool import Pool
from lotts.sources.controls import DefectsSource


@pytest.fixture
def pools(monkeypatch):
    """The pools that searches work with, as they are opened."""
    opened = []

    class Seen(Pool):
        def __init__(self, *args):
            super().__init__(*args)
            opened.append(self)

    monkeypatch.setattr(lotts.search, "Pool", Seen)
    return opened


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
    """What is left would not pay for the method's cheapest sample: half a schedule, or a whole one."""
    cheapest = {"lotts": STEPS, "lotts_chain": STEPS, "lotts_adaptive": 2 * (STEPS - int(0.2 * STEPS))}
    least = cheapest.get(method, 2 * STEPS)
    for budget, limit in (("nfe=50", 50), ("tokens=12288", 12288 / 256)):
        cost = found(tiny_pipe, method, budget).cost
        assert cost.tokens == 256 * cost.nfe
        assert limit - least < cost.nfe <= limit


@pytest.mark.parametrize(
    ("method", "batch_size"),
    [("best_of_n", 3), ("zero_order", 3), ("lotts", 3), ("lotts_chain", 1), ("lotts_adaptive", 1), ("particle", 1)],
)
def test_seconds_are_spent_however_samples_are_batched(tiny_pipe, method, batch_size, monkeypatch):
    """A clock that goes by network rows: 100 of them a second."""

    def read(meter):
        meter.cost.seconds = meter.cost.nfe / 100
        return meter.cost

    monkeypatch.setattr("lotts.meter.Meter.read", read)
    cost = found(tiny_pipe, method, "seconds=0.4", batch_size=batch_size).cost
    most = 2 * STEPS * max(batch_size, 4)  # a batch that began in time ends; particles move four together
    assert 40 <= cost.nfe < 40 + most
    assert found(tiny_pipe, method, "seconds=1e-9", batch_size=batch_size).cost.nfe >= 2 * STEPS


def test_candidates_drawn_late_have_the_seeds_that_come_next(tiny_pipe, monkeypatch):
    monkeypatch.setattr("lotts.search.pool.Pool.best", property(lambda pool: 0))
    masks = itertools.chain([True], itertools.repeat(False))
    whole = lotts.search.pool.Pool.mask
    monkeypatch.setattr(
        "lotts.search.pool.Pool.mask",
        lambda pool, *args: whole(pool, *args) & next(masks),
    )
    out = found(tiny_pipe, "lotts_chain", "samples=5", num_candidates=2)
    assert [sample.kind for sample in out.samples] == ["candidate", "candidate", "refinement", "candidate", "candidate"]
    assert [sample.seed for sample in out.samples if sample.kind == "candidate"] == [3, 4, 5, 6]


def test_candidates_behind_a_list_of_generators_are_others(tiny_pipe):
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 5)]
    out = run(
        tiny_pipe, "a red cat", "best_of_n", budget="samples=5", verifier=brightness, num_inference_steps=1,
        generator=generators,
    )  # fmt: skip
    assert [sample.seed for sample in out.samples] == [3, 5, 4, 6, 7]


def test_lotts_tells_how_many_candidates_it_drew(tiny_pipe):
    assert found(tiny_pipe, "lotts", "samples=6").settings["num_candidates"] == 2


@pytest.mark.parametrize("method", METHODS)
def test_results_do_not_depend_on_the_batch(tiny_pipe, method):
    alone, together = (found(tiny_pipe, method, batch_size=size) for size in (1, 3))
    np.testing.assert_allclose(scores(alone), scores(together), rtol=1e-4)
    assert [(s.parent, s.nfe) for s in alone.samples] == [(s.parent, s.nfe) for s in together.samples]
    assert alone.samples[-1].nfe == alone.cost.nfe


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
    options = {"mask_ratios": []} if method == "lotts_adaptive" else {}
    out = found(tiny_pipe, method, "nfe=60", mask_threshold=2.0, **options)
    assert scores(out) == scores(found(tiny_pipe, "best_of_n", "nfe=60"))
    assert {sample.kind for sample in out.samples} == {"candidate"}


def test_refinements_of_refinements_keep_the_rest_of_their_parent(tiny_pipe, pools):
    dark = lambda images, prompts: [-float(np.asarray(i)[:8].mean()) for i in images]  # noqa: E731
    out = run(
        tiny_pipe, "a red cat", "lotts_chain", budget="samples=6", verifier=dark, num_inference_steps=STEPS,
        global_steps=0, num_candidates=1, mask_ratio=0.25, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert any(sample.parent and out.samples[sample.parent].kind == "refinement" for sample in out.samples)
    latents = [drawn.trajectory.result for drawn in pools[-1].drawn]
    for index, sample in enumerate(out.samples[1:], 1):
        assert sample.mask.float().mean() == 0.25
        assert torch.equal(latents[index][:, ~sample.mask], latents[sample.parent][:, ~sample.mask])
        assert not torch.equal(latents[index][:, sample.mask], latents[sample.parent][:, sample.mask])


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
    config = LocalizeConfig()
    read = {step for name in ("cross_steps", "self_steps") for step in config.step_range(name, STEPS)}
    if source == "prediction":
        assert out.cost.capture_rows == 0
    elif method == "lotts":
        assert out.cost.capture_rows == len(read) * len(mapped)
    else:
        assert out.cost.capture_rows > len(read)
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
        ({"method": "zero_order", "neighbours": 2.5}, "neighbours to be a whole number"),
        ({"method": "particle", "particles": 2.5}, "particles to be a whole number"),
        ({"method": "lotts", "num_refinements": "two"}, "num_refinements to be a whole number"),
        ({"method": "lotts", "num_candidates": 0}, "num_candidates to be a whole number from 1"),
        ({"method": "lotts_chain", "num_candidates": 0}, "num_candidates to be a whole number from 1"),
        ({"method": "lotts_chain", "global_steps": STEPS}, "noise_step .* global_steps"),
        ({"method": "lotts_adaptive", "global_steps": 9}, "0 [+] 9 > 6"),
        ({"method": "lotts_adaptive", "mask_ratios": 0.5}, "mask_ratios as a list"),
    ):
        with pytest.raises(ValueError, match=message):
            found(tiny_pipe, **options)
    for method in METHODS:
        check(tiny_pipe, "a red cat", method, verifier=brightness, num_inference_steps=6)


@pytest.mark.parametrize("method", METHODS)
def test_options_that_a_method_does_not_have_are_named(tiny_pipe, method):
    with pytest.raises(TypeError, match=f"expected options of {method} out of .*, got ring"):
        found(tiny_pipe, method, ring=1)
    refines = METHODS[method].localises
    assert ("soft_ring" in METHODS[method].options) == refines


def test_ensembles_do_not_compare_between_calls(tiny_pipe):
    from lotts.verifiers.ensemble import Ensemble, Member

    pair = Ensemble([Member("bright", brightness), Member("dark", lambda i, p: [-s for s in brightness(i, p)])])
    with pytest.raises(ValueError, match="scores pictures as they come"):
        run(tiny_pipe, "a red cat", verifier=pair)


@pytest.mark.parametrize("source", ["prediction", "defects"])
def test_refinements_are_mapped_as_they_are(pipe_of, pools, source, monkeypatch):
    """Sources that look afterwards see the refined picture, not its parent, also at steps before it began, and when it was sparse."""
    monkeypatch.setattr(DefectsSource, "pixels", lambda self, image, prompt: image[..., 0] > image[..., 0].mean())
    out = run(
        pipe_of("flux-dev"), "a red circle above a blue ring", "lotts_chain", budget="samples=3", verifier=brightness,
        source=source, num_inference_steps=STEPS, num_candidates=1, sparse="stale",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    first, *others = out.samples
    assert not any(torch.equal(sample.heatmaps["P"], first.heatmaps["P"]) for sample in others)


def test_transformers_search_too(pipe_of):
    for method in ("particle", "lotts_chain"):
        out = found(pipe_of("flux-dev"), method, "samples=4")
        assert len(out.samples) == 4
        assert len(set(scores(out))) > 1


def test_budgets():
    assert Budget.parse("nfe=450") == Budget("nfe", 450.0)
    for text in ("tokens=1032192", "tokens=1234567", "seconds=0.1", "nfe=9"):
        assert str(Budget.parse(text)) == text
    assert str(Budget.parse("tokens=1e6")) == "tokens=1000000"
    for text in ("nfe", "luck=3", "nfe=many", "=3"):
        with pytest.raises(ValueError, match="expected a budget like"):
            Budget.parse(text)
    for text in ("samples=0", "nfe=inf", "seconds=nan"):
        with pytest.raises(ValueError, match="above 0"):
            Budget.parse(text)


def test_chance_tries_another_place_each_time(tiny_pipe):
    out = found(tiny_pipe, "lotts", "samples=4", source="random", num_candidates=1, mask_ratio=0.2)
    masks = [sample.mask for sample in out.samples[1:]]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(masks, 2))
    again = found(tiny_pipe, "lotts", "samples=4", source="random", num_candidates=1, mask_ratio=0.2)
    assert all(torch.equal(a, b.mask) for a, b in zip(masks, again.samples[1:], strict=True))
