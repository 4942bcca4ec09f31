"""What lotts_adaptive does next, and when it gives a refinement up."""

from types import SimpleNamespace

import pytest
import torch
from searching import STEPS, found

from lotts.resample_config import ResampleConfig
from lotts.search import run
from lotts.search.adaptive import Place, _configs, _Looks, _places
from lotts.search.independent import resample_config
from lotts.search.pool import Pool

JUDGE = Pool.judge


def adaptive(pipe, told, stop_at=0.5, budget="nfe=90", **options):
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
        **options,
    )
    return out, len(judged)


def test_a_refinement_that_looks_hopeless_is_given_up(tiny_pipe):
    """Every picture after the first looks far worse. One refinement in four is finished; of the others two of four steps are taken,
    and no sample is made of them."""
    out, judged = adaptive(tiny_pipe, lambda before: -50.0 if before else 1.0, budget="nfe=200")
    given_up = out.settings["given_up"]
    candidates = sum(sample.kind == "candidate" for sample in out.samples)
    finished = len(out.samples) - candidates
    assert finished == -(-(given_up + finished) // 4)
    assert given_up > finished > 0
    assert out.cost.nfe == 2 * STEPS * candidates + 2 * 4 * finished + 2 * 2 * given_up
    assert judged == out.cost.verifier_calls == candidates + 2 * finished + given_up
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
    out, _ = adaptive(tiny_pipe, lambda before: 1.0 + 0.1 * before, budget="nfe=22")
    (refined,) = [sample for sample in out.samples if sample.kind == "refinement"]
    *candidates, looked, finished = [latents for batch in shown for latents in batch]
    before, mask = candidates[refined.parent], refined.mask
    assert torch.equal(looked[:, ~mask], before[:, ~mask])
    assert not torch.equal(looked[:, mask], before[:, mask])
    assert not torch.equal(looked, finished)


def test_a_chance_is_the_one_worked_out_by_hand():
    place = Place(0.2, tries=3, successes=2)
    assert place.chance(0) == pytest.approx((2 * 0.4 + 2) / 5)
    assert place.chance(4) == pytest.approx((2 * 0.4 + 2) / 5 / 3)
    assert Place(0.5, 0.5, prior=0.75).chance(0) == 0.75


@pytest.mark.parametrize("budget", ["nfe=500", "samples=36"])
def test_where_refinements_bring_nothing_most_is_spent_on_pictures(tiny_pipe, monkeypatch, budget):
    keep = Pool._keep

    def worse(self, kind, *rest):
        indices = keep(self, kind, *rest)
        for index in indices:
            self.drawn[index].score = float(index) if kind == "candidate" else -1000.0
        return indices

    monkeypatch.setattr(Pool, "_keep", worse)
    out = found(tiny_pipe, "lotts_adaptive", budget, batch_size=1)
    kinds = [sample.kind for sample in out.samples]
    # each is tried two or three times on each leader, less and less
    assert kinds.count("candidate") >= (0.5 if budget.startswith("samples") else 0.35) * len(kinds)
    assert out.samples[out.best].kind == "candidate"


def test_where_refinements_help_they_are_what_is_drawn(tiny_pipe, monkeypatch):
    keep = Pool._keep

    def better(self, kind, *rest):
        indices = keep(self, kind, *rest)
        for index in indices:
            self.drawn[index].score = 0.0 if kind == "candidate" else float(index)
        return indices

    monkeypatch.setattr(Pool, "_keep", better)
    out = found(tiny_pipe, "lotts_adaptive", "nfe=300")
    assert [sample.kind for sample in out.samples].count("candidate") == 1
    assert [sample.parent for sample in out.samples[1:]] == list(range(len(out.samples) - 1))  # always the best


def test_a_source_that_is_sure_adds_a_place(tiny_pipe):
    class Half:
        """Sure of the left half, in which the mask then is; a cell around joins it."""

        name, sure = "half", 0.5

    for source, ratios, expected in (
        (Half(), (0.2,), [(0.5, 0.5), (0.2, None)]),
        (Half(), (), [(0.5, 0.5)]),
        (object(), (0.2, 0.5), [(0.2, None), (0.5, None)]),
    ):
        pool = SimpleNamespace(request=SimpleNamespace(source=source))
        assert [(place.ratio, place.threshold) for place in _places(pool, ratios, None)] == expected
    with pytest.raises(ValueError, match="mask_ratios as a list"):
        _places(SimpleNamespace(request=SimpleNamespace(source=object())), (), None)
    seen = torch.zeros(1, 6, 6, dtype=torch.bool)
    seen[:, 2:4, 2:4] = True
    pool = SimpleNamespace(mask=lambda *arguments: seen)
    assert Place(0.5, 0.5).mask(pool, 0).sum() == 16
    assert torch.equal(Place(0.5).mask(pool, 0), seen)


def test_looks_come_late_and_learn_their_bias(tiny_pipe):
    pool = SimpleNamespace(request=SimpleNamespace(steps=20), scores=[1.0, 2.0])
    looks = _Looks(pool, 0.5)
    assert [looks.step(resample_config(20, start)) for start in (0, 4, 8, 12, 19)] == [11, 11, 13, 15, None]
    assert _Looks(pool, None).step(resample_config(20, 8)) is None
    look = looks.begin(resample_config(20, 8))
    assert look(-5.0)  # the first is finished whatever it looks like
    looks.learn(look.predicted, -2.0)
    assert [looks.begin(resample_config(20, 8))(score) for score in (-0.9, -1.1, 0.0, -9.0, -1.1)] == [
        *(True, False, True),
        *(True, False),  # the fifth of all is finished anyway
    ]


def test_a_clock_that_runs_out_between_choice_and_action_ends_the_search(tiny_pipe, monkeypatch):
    monkeypatch.setattr(Pool, "refine", lambda *args, **kwargs: [])
    out, judged = adaptive(tiny_pipe, lambda before: 1.0, budget="seconds=60")
    assert len(out.samples) == judged == 1


def test_refinements_start_where_a_masked_step_is_left():
    for steps in (3, 6, 10, 50):
        starts = [config.noise_step for config in _configs(steps, (0.4, 0.6, 0.8))]
        assert all(ResampleConfig.of(steps, start).masked_steps(steps) for start in starts)
        assert len(set(starts)) == len(starts)


def test_the_search_ends_when_nothing_is_likely_enough(tiny_pipe):
    out, _ = adaptive(tiny_pipe, lambda before: 1.0, budget="nfe=120")
    assert out.cost.nfe > 100
    ended, _ = adaptive(tiny_pipe, lambda before: 1.0, budget="nfe=120", least_chance=0.3)
    assert ended.cost.nfe < 80
    assert ended.settings["least_chance"] == 0.3
    with pytest.raises(ValueError, match="least_chance in"):
        adaptive(tiny_pipe, lambda before: 1.0, least_chance=2.0)
