"""Samplers as arithmetic: what one step of a diffusers scheduler does to the latents, as three factors.

DDIM, Euler and flow-matching steps are linear in the latents, the model's prediction and fresh noise, so that
``lotts.kernels.blend_step`` can do them together with guidance and the blend. Notation: alpha is the cumulative product
of a variance-preserving schedule, sigma the noise level; a step goes from ``sigma`` to ``sigma_next``.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch

#: Schedulers that can begin in the middle of their schedule, by the kind of noising that the network was trained on.
#: DPM++ 2M keeps the prediction before; a restart forgets it, so that the first step is of first order.
VARIANCE_PRESERVING = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
)
FLOW_MATCHING = ("FlowMatchEulerDiscreteScheduler",)
#: Those whose steps can draw noise.
STOCHASTIC = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
)


@dataclass(frozen=True)
class LinearUpdate:
    """``next = latents * x + prediction * p + noise * e``, with e standard normal."""

    latents: float
    prediction: float
    noise: float = 0.0


def linear_update(scheduler: Any, step: int, eta: float = 0.0) -> LinearUpdate | None:
    """The update that ``scheduler.step`` makes at ``scheduler.timesteps[step]``, or None where it is not linear.

    Args:
        scheduler: a diffusers scheduler whose ``set_timesteps`` has been called. The Euler family's ``scale_model_input``
            acts before the model and is not part of the update.
        step: from 0 to the number of steps - 1.
        eta: share of fresh noise, 0 (as the scheduler does) to 1. In DDIM 1 is DDPM, in Euler it is Euler ancestral; in flow
            matching it is the stochastic equation with the same marginals and diffusion g = eta * 3 t^2, but for the last step,
            whose noise nothing would remove.
    """
    name = type(scheduler).__name__
    if name == "DDIMScheduler":
        return _ddim(scheduler, step, eta)
    if name == "EulerDiscreteScheduler":
        return _euler_ancestral(scheduler, step, eta) if eta else _euler(scheduler, step)
    if name == "EulerAncestralDiscreteScheduler":
        return _euler_ancestral(scheduler, step)
    if name == "FlowMatchEulerDiscreteScheduler":
        return _flow_sde(scheduler, step, eta) if eta else _flow_match(scheduler, step)
    return None


def noisy_step(
    update: LinearUpdate | None,
    prediction: torch.Tensor,
    latents: torch.Tensor,
    generators: list[torch.Generator] | None,
) -> torch.Tensor:
    """``update`` made in float32, its noise from each sample's own generator: for schedulers without a stochastic form."""
    from diffusers.utils.torch_utils import randn_tensor

    assert update is not None  # ``check_eta`` refused the samplers that have none
    noise = randn_tensor(latents.shape, generators, latents.device, torch.float32)
    moved = update.latents * latents.float() + update.prediction * prediction.float() + update.noise * noise
    return moved.to(latents.dtype)


def clean_estimate(scheduler: Any, step: int) -> tuple[float, float] | None:
    """x0 as the model sees it when ``step`` begins: factors of the latents and of the prediction. None where it is clamped."""
    name, kind = type(scheduler).__name__, scheduler.config.get("prediction_type", None)
    if name == "DDIMScheduler":
        estimates = _ddim_estimates(scheduler, step)
        return None if estimates is None else estimates[0]
    sigma = float(scheduler.sigmas[step])
    if name in FLOW_MATCHING:
        return 1.0, -sigma
    if name == "DPMSolverMultistepScheduler":
        signal, noise = signal_and_noise(scheduler, step)
        return {"epsilon": (1 / signal, -noise / signal), "v_prediction": (signal, -noise), "sample": (0.0, 1.0)}.get(
            kind
        )
    return _clean_estimate(scheduler, sigma)


def check_restartable(scheduler: Any, names: tuple[str, ...]) -> None:
    """ValueError where ``scheduler`` is none of ``names``, or set to draw noise that cannot be told apart by sample."""
    name = type(scheduler).__name__
    if name not in names:
        wanted = f"expected a scheduler that can restart in the middle ({', '.join(names)}), got {name}"
        if not same_process(scheduler, names[0]):
            raise ValueError(f"{wanted}: none of them makes the same of its configuration")
        given = "".join(f", {key}={value}" for key, value in translated(scheduler, names[0]).items())
        raise ValueError(f"{wanted}: set pipe.scheduler = {names[0]}.from_config(pipe.scheduler.config{given})")
    algorithm = scheduler.config.get("algorithm_type", None)
    if algorithm is not None and algorithm not in ("dpmsolver++", "dpmsolver"):
        raise ValueError(
            f"expected DPMSolverMultistepScheduler with algorithm_type 'dpmsolver++', got {algorithm!r}: set pipe.scheduler = "
            "DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type='dpmsolver++')"
        )
    if algorithm is not None and scheduler.config.get("use_flow_sigmas", False):
        raise ValueError(
            "expected DPMSolverMultistepScheduler with use_flow_sigmas=False, got True: set pipe.scheduler = "
            "DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_flow_sigmas=False)"
        )


def same_process(scheduler: Any, substitute: str) -> bool:
    """Whether a scheduler's configuration means the same noise to the class ``substitute``."""
    name, config = type(scheduler).__name__, scheduler.config
    flow = (
        config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction" or name.startswith("Flow")
    )
    if substitute.startswith("Flow"):
        return bool(flow)
    return not flow and {"beta_start", "beta_end", "beta_schedule"} <= set(config)


def translated(scheduler: Any, substitute: str) -> dict[str, Any]:
    """Arguments of ``substitute.from_config`` beside a configuration that names them otherwise, or not at all.

    A flow's shift has another name in DPM++ and UniPC. DDIM's defaults are for pixels, which ``StableDiffusionPipeline``
    corrects, and ``from_config`` would not pass that on: it skips what the first scheduler had by default.
    """
    config = scheduler.config
    if substitute.startswith("Flow"):
        return {"shift": config["flow_shift"]} if "flow_shift" in config and "shift" not in config else {}
    if substitute != "DDIMScheduler":
        return {}
    named = set(config) - set(config.get("_use_default_values", ()))
    return {name: value for name, value in (("clip_sample", False), ("steps_offset", 1)) if name not in named}


def check_eta(scheduler: Any, eta: float) -> None:
    """ValueError where ``eta`` is outside [0, 1], or asks for noise of a sampler that has no stochastic form."""
    if not 0 <= eta <= 1:
        raise ValueError(f"expected eta from 0 to 1, got {eta}")
    name, config = type(scheduler).__name__, scheduler.config
    if eta and (name not in STOCHASTIC or config.get("clip_sample", False) or config.get("thresholding", False)):
        raise ValueError(
            f"expected eta=0 with {name}, or a sampler with a stochastic form ({', '.join(STOCHASTIC)}) that clamps nothing, "
            f"got eta={eta}: set pipe.scheduler to one of them, with clip_sample=False"
        )
    kind = config.get("prediction_type", None)
    if eta and name == "EulerDiscreteScheduler" and kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"expected eta=0 with {name} of prediction_type {kind!r}, got eta={eta}")


def takes_eta(scheduler: Any) -> bool:
    """Whether the scheduler itself has a stochastic form that ``eta`` chooses."""
    return "eta" in inspect.signature(scheduler.step).parameters


def always_ancestral(scheduler: Any) -> bool:
    """Whether every step draws all the noise that it could."""
    return type(scheduler).__name__ == "EulerAncestralDiscreteScheduler"


def seek(scheduler: Any, step: int) -> None:
    """Make ``step`` the scheduler's next one: it counts its own steps, and some are made without it."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(step)
        scheduler._step_index = None


def stochastic(scheduler: Any) -> bool:
    """Whether a step draws noise by itself."""
    return always_ancestral(scheduler) or bool(scheduler.config.get("stochastic_sampling", False))


def signal_and_noise(scheduler: Any, step: int) -> tuple[float, float]:
    """(a, s) such that a * x0 + s * noise is distributed as the latents that enter ``step``."""
    name = type(scheduler).__name__
    if name == "DDIMScheduler":
        alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[step])])
        return sqrt(alpha), sqrt(1 - alpha)
    sigma = float(scheduler.sigmas[step])
    if name in FLOW_MATCHING:
        return 1 - sigma, sigma
    if name == "DPMSolverMultistepScheduler":
        alpha = 1 / sqrt(1 + sigma**2)
        return alpha, sigma * alpha
    return 1.0, sigma  # the Euler family works on unscaled x0 + sigma * noise


def shift(scheduler: Any, tokens: int, max_shift: float = 1.15) -> float:
    """How far a flow-matching schedule moves towards noise with a picture of ``tokens`` tokens: linear in their number.

    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", section 5.3.2, in the
    form of FLUX's own sampler. ``max_shift`` stands where the scheduler's configuration names none.
    """
    config = scheduler.config
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    slope = (top - base) / (high - low)
    return tokens * slope + (base - slope * low)


# An estimate is linear too: (factor of the latents, factor of the prediction).
Estimate = tuple[float, float]


def _ddim(scheduler: Any, step: int, eta: float) -> LinearUpdate | None:
    """Song et al., "Denoising Diffusion Implicit Models", equation 12; latents are sqrt(alpha) x0 + sqrt(1 - alpha) e."""
    estimates = _ddim_estimates(scheduler, step)
    if estimates is None:
        return None
    x0, e = estimates
    t = int(scheduler.timesteps[step])
    before = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alpha = float(scheduler.alphas_cumprod[t])
    alpha_next = float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod)
    std = eta * sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
    # At zero terminal signal and eta 1 nothing is left, and rounding may make it less.
    direction = sqrt(max(0.0, 1 - alpha_next - std**2))
    return LinearUpdate(
        sqrt(alpha_next) * x0[0] + direction * e[0], sqrt(alpha_next) * x0[1] + direction * e[1], noise=std
    )


def _ddim_estimates(scheduler: Any, step: int) -> tuple[Estimate, Estimate] | None:
    """x0 and the noise."""
    config = scheduler.config
    alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[step])])
    signal, noise = sqrt(alpha), sqrt(1 - alpha)
    if config.clip_sample or config.thresholding:
        return None  # the clean estimate is clamped
    if config.prediction_type == "epsilon" and alpha > 0:  # pure noise has no clean estimate
        return (1 / signal, -noise / signal), (0.0, 1.0)
    if config.prediction_type == "v_prediction":
        return (signal, -noise), (noise, signal)
    if config.prediction_type == "sample":
        return (0.0, 1.0), (1 / noise, -signal / noise)
    return None


def _euler(scheduler: Any, step: int) -> LinearUpdate | None:
    """Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 2 without churn."""
    sigma, sigma_next = _sigmas(scheduler, step)
    return _euler_to(sigma_next, sigma, _clean_estimate(scheduler, sigma))


def _euler_ancestral(scheduler: Any, step: int, eta: float = 1.0) -> LinearUpdate | None:
    """Euler to below sigma_next, then fresh noise up to it; variances add up: down**2 + up**2 = sigma_next**2."""
    sigma, sigma_next = _sigmas(scheduler, step)
    up = eta * sigma_next * sqrt(1 - (sigma_next / sigma) ** 2)
    down = sqrt(sigma_next**2 - up**2)
    return _euler_to(down, sigma, _clean_estimate(scheduler, sigma), noise=up)


def _flow_match(scheduler: Any, step: int) -> LinearUpdate:
    """Latents are (1 - sigma) x0 + sigma e, and the model predicts the velocity e - x0."""
    sigma, sigma_next = _sigmas(scheduler, step)
    if scheduler.config.stochastic_sampling:
        return LinearUpdate(1 - sigma_next, -sigma * (1 - sigma_next), noise=sigma_next)
    return LinearUpdate(1.0, sigma_next - sigma)


def _flow_sde(scheduler: Any, step: int, eta: float) -> LinearUpdate:
    """Euler-Maruyama on dx = (-v + g^2 score / 2) dt + g dW, with score = -(x + (1 - t) v) / t and g = eta * 3 t^2."""
    t, t_next = _sigmas(scheduler, step)
    if t_next == 0:
        return LinearUpdate(1.0, -t)
    g, dt = eta * 3 * t**2, t - t_next
    drift = 0.5 * g**2 * dt / t if t > 0 else 0.0
    return LinearUpdate(1 - drift, -dt - drift * (1 - t), noise=g * sqrt(dt))


def _euler_to(target: float, sigma: float, x0: Estimate | None, noise: float = 0.0) -> LinearUpdate | None:
    """``x + (x - x0) / sigma * (target - sigma)``: the share target / sigma of x stays, the rest becomes x0."""
    if x0 is None:
        return None
    stays = target / sigma
    return LinearUpdate(stays + (1 - stays) * x0[0], (1 - stays) * x0[1], noise)


def _clean_estimate(scheduler: Any, sigma: float) -> Estimate | None:
    """x0 of the Euler family, whose latents are x0 + sigma e."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return 1.0, -sigma
    if kind == "v_prediction":
        return 1 / (sigma**2 + 1), -sigma / sqrt(sigma**2 + 1)
    return None


def _sigmas(scheduler: Any, step: int) -> tuple[float, float]:
    return float(scheduler.sigmas[step]), float(scheduler.sigmas[step + 1])
