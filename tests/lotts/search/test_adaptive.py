"""What lotts_adaptive does next, and when it gives a refinement up."""

import pytest
import torch
from searching import STEPS

from lotts.resample_config import ResampleConfig
from lotts.search import run
from lotts.search.adaptive import NEW, Gains, _actions, _configs, expected_improvement
from lotts.search.budget import Budget
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


class Fake:
    """A pool of two judged pictures whose refinements cost half as much as pictures."""

    def __init__(self, unit, scores):
        self.budget, self.scores = Budget(unit, 100), scores
        self.drawn = [type("Drawn", (), {"score": score})() for score in scores]
        self.request = type("Request", (), {"steps": STEPS})()

    def __len__(self):
        return len(self.scores)

    def affords(self, steps, localise=True):
        return 1

    def price(self, steps, localise=True):
        return 1 if self.budget.unit == "samples" else 2 * steps

    def localises(self, config):
        return True

    def mask(self, *args):
        return torch.ones(1, 2, 2, dtype=torch.bool)


@pytest.mark.parametrize("unit", ["nfe", "samples"])
def test_the_best_action_is_the_one_worked_out_by_hand(unit):
    pool = Fake(unit, [1.0, 2.0])
    settings = [(0.5, resample_config(STEPS, STEPS // 2))]
    pictures, changes = Gains(1.5, 0.5, seen=[1.0, 2.0]), [Gains(0.1, 0.4)]
    found = {action: value for value, action in _actions(pool, settings, None, pictures, changes)}
    # two outcomes 1 and 2 beside a belief worth two of 1.5 +- 0.5: 1.5 +- sqrt((2 * 0.25 + 2 * 0.25) / 4)
    new = expected_improvement(1.5, 0.5, 2.0) / (12 if unit == "nfe" else 1)
    assert found[NEW] == pytest.approx(new)
    for parent, score in enumerate(pool.scores):
        gain = expected_improvement(score + 0.1, 0.4, 2.0)
        assert found[parent, 0] == pytest.approx(gain / (6 if unit == "nfe" else 1))
    assert max(found, key=found.get) == (1, 0)


def test_a_clock_that_runs_out_between_choice_and_action_ends_the_search(tiny_pipe, monkeypatch):
    monkeypatch.setattr(Pool, "refine", lambda *args, **kwargs: [])
    out, judged = adaptive(tiny_pipe, lambda before: 1.0, budget="seconds=60")
    assert len(out.samples) == judged == 2


def test_refinements_start_where_a_masked_step_is_left():
    for steps in (3, 6, 10, 50):
        starts = [config.noise_step for config in _configs(steps, (0.4, 0.6, 0.8))]
        assert all(ResampleConfig.of(steps, start).masked_steps(steps) for start in starts)
        assert len(set(starts)) == len(starts)


def test_the_search_ends_when_nothing_promises_enough(tiny_pipe):
    out, _ = adaptive(tiny_pipe, lambda before: 1.0 + 0.1 * before, budget="nfe=70")
    assert out.cost.nfe > 55
    ended, _ = adaptive(tiny_pipe, lambda before: 1.0 + 0.1 * before, budget="nfe=70", least_gain=10.0)
    assert ended.cost.nfe == 2 * 2 * STEPS
    assert ended.settings["least_gain"] == 10.0
