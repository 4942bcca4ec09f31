"""The three factors of a step do what diffusers' own step does."""

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from lotts.backbones.schedulers import VARIANCE_PRESERVING, LinearUpdate, check_restartable, linear_update

STEPS = 12
SHAPE = (3, 4, 5)
SPACINGS = ["linspace", "leading", "trailing"]


def assert_same_steps(scheduler, *, eta=None, **timesteps):
    scheduler.set_timesteps(**({"num_inference_steps": STEPS} | timesteps))
    # Float32 tables would leave differences such as 1 - alpha with few digits, in diffusers' step as in ours.
    for name in ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    generator = torch.Generator().manual_seed(0)
    for step, t in enumerate(scheduler.timesteps):
        x, prediction = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
        options = {} if eta is None else {"eta": eta}
        update = linear_update(scheduler, step, **options)
        drawn = torch.Generator().manual_seed(step)
        expected = scheduler.step(prediction, t, x, generator=drawn, return_dict=False, **options)[0]
        # Flow matching draws its noise in the dtype it computes in, the others in that of the prediction.
        precision = torch.float32 if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) else torch.float64
        e = torch.randn(SHAPE, generator=torch.Generator().manual_seed(step), dtype=precision)
        actual = update.latents * x + update.prediction * prediction + update.noise * e
        # The Euler family rounds the latents to float32 first.
        assert (actual - expected).norm() <= (1e-9 if eta is not None else 1e-6) * expected.norm()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
def test_ddim(spacing, kind, eta, set_alpha_to_one):
    options = {"steps_offset": 1, "set_alpha_to_one": set_alpha_to_one, "beta_schedule": "scaled_linear"}
    assert_same_steps(
        DDIMScheduler(timestep_spacing=spacing, prediction_type=kind, clip_sample=False, **options), eta=eta
    )


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}, {"final_sigmas_type": "sigma_min"}], ids=str)
def test_euler(spacing, kind, options):
    assert_same_steps(EulerDiscreteScheduler(timestep_spacing=spacing, prediction_type=kind, **options))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_ancestral(spacing, kind):
    assert_same_steps(EulerAncestralDiscreteScheduler(timestep_spacing=spacing, prediction_type=kind))


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(
    ("options", "timesteps"),
    [({}, {}), ({"shift": 3.0}, {}), ({"use_dynamic_shifting": True}, {"mu": 1.1}), ({"use_karras_sigmas": True}, {})],
    ids=str,
)
def test_flow_matching(stochastic, options, timesteps):
    assert_same_steps(FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic, **options), **timesteps)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_zero_terminal_signal_to_noise(scheduler):
    options = {"clip_sample": False} if scheduler is DDIMScheduler else {}
    options |= {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    assert_same_steps(scheduler(**options))


@pytest.mark.parametrize(
    ("scheduler", "step"),
    [
        (DDIMScheduler(clip_sample=True), 0),
        (DDIMScheduler(clip_sample=False, thresholding=True), 0),
        (DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing"), 0),
        (EulerDiscreteScheduler(prediction_type="sample"), 3),
        (diffusers.PNDMScheduler(), 1),
    ],
    ids=["clipped", "thresholded", "noise predicted from noise alone", "other prediction", "other scheduler"],
)
def test_what_is_not_linear_has_no_factors(scheduler, step):
    scheduler.set_timesteps(STEPS)
    assert linear_update(scheduler, step) is None


def test_a_solver_with_the_sigmas_of_flow_matching_is_refused():
    """Its latents are not those whose signal and noise we know."""
    solver = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    with pytest.raises(ValueError, match=r"use_flow_sigmas=False, got True: .*from_config\(.*use_flow_sigmas=False\)"):
        check_restartable(solver, VARIANCE_PRESERVING)
    check_restartable(
        diffusers.DPMSolverMultistepScheduler.from_config(solver.config, use_flow_sigmas=False), VARIANCE_PRESERVING
    )


def test_the_last_step_of_flow_matching_gives_the_clean_estimate():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    update = linear_update(scheduler, STEPS - 1)
    assert update == LinearUpdate(1.0, -float(scheduler.sigmas[-2]))


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_ddim_at_zero_terminal_signal_has_a_step_with_all_the_noise(spacing):
    """What is left of the direction to the noise is nothing there, and rounding must not make it less."""
    for steps in range(1, 101):
        scheduler = DDIMScheduler(
            rescale_betas_zero_snr=True, timestep_spacing=spacing, prediction_type="v_prediction", clip_sample=False,
            set_alpha_to_one=False, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        )  # fmt: skip
        scheduler.set_timesteps(steps)
        assert linear_update(scheduler, 0, eta=1.0).noise >= 0
