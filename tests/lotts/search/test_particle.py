"""Particles under a stochastic sampler: which are copied, and what comes with them."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from searching import STEPS, found, scores

from lotts.search import run
from lotts.search.pool import Pool


def test_particles_move_as_their_lineage_says(tiny_pipe):
    always = found(tiny_pipe, "particle", "samples=4", adaptive=False, strength=1e6)
    assert len(set(always.settings["lineage"])) < 4  # a strong preference copies the best over the others
    again = found(tiny_pipe, "particle", "samples=4", adaptive=False, strength=1e6)
    assert scores(again) == scores(always)
    calm = found(tiny_pipe, "particle", "samples=4", strength=1e-6)
    assert calm.settings["lineage"] == [0, 1, 2, 3]


def test_particles_need_a_stochastic_sampler(tiny_pipe):
    tiny_pipe.scheduler = DPMSolverMultistepScheduler.from_config(tiny_pipe.scheduler.config)
    with pytest.raises(ValueError, match=r"stochastic form.*DPMSolver"):
        found(tiny_pipe, "particle")


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_particles_move_under_the_euler_family(tiny_pipe, kind):
    tiny_pipe.scheduler = kind.from_config(tiny_pipe.scheduler.config)
    out = found(tiny_pipe, "particle", "samples=3")
    assert len(set(scores(out))) > 1


def test_without_looks_it_is_best_of_n_under_the_stochastic_sampler(tiny_pipe):
    out = found(tiny_pipe, "particle", "samples=3", resample_at=())
    assert out.settings["lineage"] == [0, 1, 2]
    assert out.cost.verifier_calls == 3
    assert out.best == max(range(3), key=scores(out).__getitem__)
    assert scores(out) != scores(found(tiny_pipe, "best_of_n", "samples=3"))


def test_so_many_particles_at_a_time(tiny_pipe):
    out = found(tiny_pipe, "particle", "samples=5", particles=2, adaptive=False, strength=1e6)
    lineage = out.settings["lineage"]
    assert len(lineage) == 5
    assert {parent // 2 for parent in lineage[2:4]} == {1}  # of its own round
    assert lineage[4] == 4
    assert len({sample.seed for sample in out.samples}) > 1


def test_a_copied_particle_brings_its_past(tiny_pipe, monkeypatch):
    """The third particle is liked at the one look, and nothing tells the others apart: all end with its first half."""
    done = []
    monkeypatch.setattr(Pool, "add", lambda self, kind, ways, *rest: done.append(ways) or ADD(self, kind, ways, *rest))
    calls = []

    def verifier(images, prompts):
        calls.append(len(images))
        return [0.0, 0.0, 100.0, 0.0][: len(images)] if len(calls) == 1 else [1.0] * len(images)

    out = run(
        tiny_pipe, "a red cat", "particle", budget="samples=4", verifier=verifier, num_inference_steps=STEPS,
        guidance_scale=3.0, generator=torch.Generator().manual_seed(3), batch_size=4, resample_at=(0.5,), strength=1.0,
    )  # fmt: skip
    assert out.settings["lineage"] == [2] * 4
    (ways,) = done
    for way in ways:
        assert torch.equal(way.latents[3], ways[0].latents[3])
        assert torch.equal(way.latents[0], ways[0].latents[0])
    assert len({sample.seed for sample in out.samples}) == 1


@pytest.mark.parametrize("resampler", ["systematic", "multinomial"])
def test_particles_are_copied_only_where_few_weigh_anything(tiny_pipe, resampler):
    """Effective sizes of 4 particles: log-weights (0, 0, 0, s) give 2 at s = log(3 + 2 sqrt 3) = 1.866."""

    def lineage(strength):
        def verifier(images, prompts):
            return [0.0, 0.0, 0.0, 1.0][: len(images)]

        return run(
            tiny_pipe, "a red cat", "particle", budget="samples=4", verifier=verifier, num_inference_steps=STEPS,
            guidance_scale=3.0, generator=torch.Generator().manual_seed(5), batch_size=4, resample_at=(0.5,),
            strength=strength, resampler=resampler,
        ).settings["lineage"]  # fmt: skip

    assert lineage(1.8) == [0, 1, 2, 3]
    assert lineage(30.0) == [3] * 4


ADD = Pool.add


def test_adaptive_is_true_or_false_and_no_word(tiny_pipe):
    with pytest.raises(ValueError, match="expected adaptive to be True or False, got 'false'"):
        found(tiny_pipe, "particle", "samples=4", adaptive="false")
