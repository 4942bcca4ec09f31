"""Facts about the arithmetic of searches, worked out by hand or by integration."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lotts.backbones.schedulers import clean_estimate, linear_update, signal_and_noise
from lotts.search.particle import Weights, systematic

REWARDS = [torch.tensor(r, dtype=torch.float64) for r in ([1.0, 2.0], [3.0, 1.0], [2.0, 2.5])]


@pytest.mark.parametrize(
    ("potential", "steps"),
    [
        # log-weights of each look by hand, strength 2
        ("diff", [[2, 4], [4, -2], [-2, 3]]),
        ("max", [[2, 4], [6, 4], [6 - 8, 5 - 8]]),
        ("add", [[2, 4], [8, 6], [12 - 10, 11 - 10]]),
        ("rt", [[2, 4], [6, 2], [4 - 8, 5 - 6]]),
    ],
)
def test_weights_by_hand(potential, steps):
    weights, total = Weights(2, potential, 2.0), np.zeros(2)
    for i, (rewards, expected) in enumerate(zip(REWARDS, steps, strict=True)):
        weights.update(rewards, last=i == 2)
        total = total + expected
        assert weights.pending.tolist() == pytest.approx(total.tolist())
    likelihood = np.exp(total - total.max())
    share = likelihood / likelihood.sum()
    assert weights.normalised.tolist() == pytest.approx(share.tolist())
    assert weights.effective_size == pytest.approx(1 / (share**2).sum())


def test_resampled_particles_weigh_alike_and_keep_their_lineage():
    weights = Weights(2, "rt", 1.0)
    weights.update(REWARDS[0])
    weights.take(torch.tensor([1, 1]))
    assert weights.pending.tolist() == [0, 0]
    assert weights.lineage.tolist() == [2, 2]
    assert weights.effective_size == pytest.approx(2)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20), st.floats(0, 0.999))
def test_systematic_resampling_keeps_each_particle_as_often_as_its_weight_says(raw, offset):
    share = torch.tensor(raw, dtype=torch.float64)
    share = share / share.sum()
    counts = torch.bincount(systematic(share, offset), minlength=len(raw))
    assert counts.sum() == len(raw)
    expected = share * len(raw)
    assert ((counts - expected).abs() < 1 + 1e-9).all()


def test_the_last_step_of_the_stochastic_flow_adds_no_noise():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    assert linear_update(scheduler, 9, eta=1.0) == linear_update(scheduler, 9)
    assert linear_update(scheduler, 8, eta=1.0).noise > 0


def test_eulers_stochastic_form_is_euler_ancestral():
    from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

    plain, ancestral = EulerDiscreteScheduler(), EulerAncestralDiscreteScheduler()
    for scheduler in (plain, ancestral):
        scheduler.set_timesteps(7)
    for step in range(7):
        update, expected = linear_update(plain, step, eta=1.0), linear_update(ancestral, step)
        assert (update.latents, update.prediction, update.noise) == pytest.approx(
            (expected.latents, expected.prediction, expected.noise), rel=1e-4
        )
    assert linear_update(plain, 3).noise == 0


def test_the_stochastic_flow_keeps_the_marginals():
    """Of normal data the velocity is known: E[e - x0 | x_t] = (2t - 1) x / ((1 - t)^2 + t^2)."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(400)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, generator=generator, dtype=torch.float64)
    for step in range(400):
        t, t_next = (float(s) for s in scheduler.sigmas[step : step + 2])
        v = (2 * t - 1) * x / ((1 - t) ** 2 + t**2)
        update = linear_update(scheduler, step, eta=1.0)
        x = (
            update.latents * x
            + update.prediction * v
            + update.noise * torch.randn(x.shape, generator=generator).double()
        )
        if step % 50 == 49:
            assert float(x.var()) == pytest.approx((1 - t_next) ** 2 + t_next**2, rel=0.05)
    plain = linear_update(scheduler, 7)
    assert linear_update(scheduler, 7, eta=0.0) == plain
    assert plain.noise == 0


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "name", ["DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "FlowMatchEulerDiscrete"]
)
def test_clean_estimates_give_back_what_was_noised(name, prediction):
    import diffusers

    kind = getattr(diffusers, f"{name}Scheduler")
    flow = name.startswith("Flow")
    scheduler = (
        kind() if flow else kind(prediction_type=prediction, **({"clip_sample": False} if name == "DDIM" else {}))
    )
    scheduler.set_timesteps(10)
    x0, e = 0.7, -1.3
    for step in (0, 4, 9):
        signal, noise = signal_and_noise(scheduler, step)
        latents = signal * x0 + noise * e
        if flow:
            output = e - x0
        elif prediction == "epsilon":
            output = e
        else:  # v of the variance-preserving form
            norm = math.hypot(signal, noise)
            output = (signal * e - noise * x0) / norm
        factors = clean_estimate(scheduler, step)
        assert factors[0] * latents + factors[1] * output == pytest.approx(x0, abs=2e-3)
