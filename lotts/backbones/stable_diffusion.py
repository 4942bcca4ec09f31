"""Stable Diffusion 1.x and 2.x: everything the method needs to know about the family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from lotts.backbones.schedulers import LinearUpdate, linear_update

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

RESTARTABLE = ("DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")


@dataclass(frozen=True)
class Conditioning:
    """Text embeddings of a batch of samples: ``positive`` [B, L, E] and, under guidance, ``negative`` [B, L, E]."""

    positive: torch.Tensor
    negative: torch.Tensor | None

    def repeat(self, count: int) -> Conditioning:
        """The same text for ``count`` samples."""
        negative = None if self.negative is None else self.negative.expand(count, -1, -1)
        return Conditioning(self.positive.expand(count, -1, -1), negative)


def guide(rows: torch.Tensor, guidance_scale: float | None) -> torch.Tensor:
    """Classifier-free guidance: [2B, ...], unconditional rows first, to [B, ...]. None: the rows are not doubled."""
    if guidance_scale is None:
        return rows
    unconditional, conditional = rows.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


class StableDiffusion:
    """The stock pipeline's components, driven one step at a time.

    The loop it supports gives the stock pipeline's own numbers: ``LoTTS`` with seed s starts from the picture that
    ``pipe(prompt, generator=torch.Generator().manual_seed(s))`` makes, bit for bit.

    Raises:
        TypeError: ``pipe`` is not a ``StableDiffusionPipeline``.
        ValueError: its scheduler keeps history between steps, so that sampling cannot restart in the middle.
    """

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        from diffusers import StableDiffusionPipeline

        if not isinstance(pipe, StableDiffusionPipeline):
            raise TypeError(
                f"expected a diffusers StableDiffusionPipeline, got {type(pipe).__name__}: load one with "
                "lotts.load_pipeline('shapes-sd') or StableDiffusionPipeline.from_pretrained(...)"
            )
        name = type(pipe.scheduler).__name__
        if name not in RESTARTABLE:
            raise ValueError(
                f"expected a scheduler that can restart in the middle ({', '.join(RESTARTABLE)}), got {name}: set "
                "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)"
            )
        self.pipe = pipe
        self.unet: torch.nn.Module = pipe.unet
        self.scheduler: Any = pipe.scheduler

    @property
    def device(self) -> torch.device:
        return self.pipe._execution_device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipe.unet.dtype

    @property
    def default_side(self) -> int:
        """Side in pixels that the model was trained for."""
        return self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    def encode_prompt(self, prompt: str, negative_prompt: str = "", guidance: bool = True) -> Conditioning:
        """Embed one prompt ([1, L, E]); the negative one only under guidance."""
        positive, negative = self.pipe.encode_prompt(prompt, self.device, 1, guidance, negative_prompt)
        return Conditioning(positive, negative)

    # --- latents

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        factor = self.pipe.vae_scale_factor
        if height <= 0 or width <= 0 or height % factor or width % factor:
            raise ValueError(f"expected a height and width that are multiples of {factor}, got {height} x {width}")
        return height // factor, width // factor

    def initial_latents(self, seed: int, size: tuple[int, int]) -> torch.Tensor:
        """Pure noise [1, C, h, w], as the stock pipeline draws it from ``torch.Generator().manual_seed(seed)``."""
        from diffusers.utils.torch_utils import randn_tensor

        shape = (1, self.pipe.unet.config.in_channels, *size)
        noise = randn_tensor(shape, torch.Generator().manual_seed(seed), self.device, self.dtype)
        return noise * self.scheduler.init_noise_sigma

    def encode_image(self, image: Image.Image) -> torch.Tensor:
        """The mode of the autoencoder's posterior, scaled: [1, C, h, w]."""
        pixels = self.pipe.image_processor.preprocess(image.convert("RGB")).to(self.device, self.pipe.vae.dtype)
        latents = self.pipe.vae.encode(pixels).latent_dist.mode()
        return (latents * self.pipe.vae.config.scaling_factor).to(self.dtype)

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Pictures as float32 [B, H, W, 3] in [0, 1]."""
        images = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(images, output_type="np")

    # --- the sampler

    def timesteps(self, num_inference_steps: int) -> torch.Tensor:
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        timesteps = self.scheduler.timesteps
        if len(timesteps) != num_inference_steps:
            raise ValueError(
                f"the scheduler makes {len(timesteps)} steps of {num_inference_steps}: expected one a step"
            )
        return timesteps

    def restart(self, num_inference_steps: int, step: int) -> None:
        """Forget what the scheduler remembers and make ``step`` the next one."""
        self.timesteps(num_inference_steps)
        self._seek(step)

    def signal_and_noise(self, step: int) -> tuple[float, float]:
        """(a, s) such that a * x0 + s * noise is distributed as the latents that enter ``step``."""
        if hasattr(self.scheduler, "sigmas"):  # the Euler family works on unscaled x0 + sigma * noise
            return 1.0, float(self.scheduler.sigmas[step])
        alpha = float(self.scheduler.alphas_cumprod[int(self.scheduler.timesteps[step])])
        return alpha**0.5, (1 - alpha) ** 0.5

    def predict_rows(self, latents: torch.Tensor, step: int, text: Conditioning) -> torch.Tensor:
        """The model's prediction for latents [B, C, h, w]; under guidance [2B, C, h, w], unconditional rows first."""
        self._seek(step)
        t = self.scheduler.timesteps[step]
        guided = text.negative is not None
        rows = torch.cat([latents, latents]) if guided else latents
        embeds = text.positive if text.negative is None else torch.cat([text.negative, text.positive])
        rows = self.scheduler.scale_model_input(rows, t)
        return self.unet(rows, t, encoder_hidden_states=embeds, return_dict=False)[0]

    def predict(self, latents: torch.Tensor, step: int, text: Conditioning, guidance_scale: float) -> torch.Tensor:
        """The (guided) prediction [B, C, h, w] for latents [B, C, h, w]."""
        return guide(self.predict_rows(latents, step, text), None if text.negative is None else guidance_scale)

    def linear_update(self, step: int) -> LinearUpdate | None:
        """What the scheduler does at ``step``, as factors; None where it is not linear and only ``step`` can do it."""
        return linear_update(self.scheduler, step)

    def _seek(self, step: int) -> None:
        """Make ``step`` the scheduler's next one: it counts its own steps, and some are made without it."""
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(step)
            self.scheduler._step_index = None

    def step(
        self, prediction: torch.Tensor, step: int, latents: torch.Tensor, generators: list[torch.Generator] | None
    ) -> torch.Tensor:
        """The scheduler's update; stochastic samplers draw each sample's noise from its own generator."""
        extra = {"generator": generators} if generators and self.stochastic else {}
        return self.scheduler.step(prediction, self.scheduler.timesteps[step], latents, return_dict=False, **extra)[0]

    @property
    def stochastic(self) -> bool:
        return type(self.scheduler).__name__ == "EulerAncestralDiscreteScheduler"
