"""What every family has in common: the stock pipeline's components, driven one step at a time."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from lotts.backbones import schedulers
from lotts.backbones.conditioning import Conditioning, Embedding
from lotts.backbones.prompt_tokens import PromptTokens
from lotts.backbones.schedulers import LinearUpdate
from lotts.localize import LocalizeConfig


def is_diffusers(thing: Any, class_name: str) -> bool:
    """Whether ``thing`` is an instance of the diffusers class of that name, or of a subclass."""
    return any(c.__name__ == class_name and c.__module__.startswith("diffusers.") for c in type(thing).__mro__)


class Backbone(PromptTokens, ABC):
    """A diffusers pipeline as the method sees it.

    Latents are [B, C, h, w] on the grid that masks live on, whatever the pipeline's own layout. The loop supported
    gives the stock pipeline's own numbers: ``LoTTS`` with seed s starts from the picture that
    ``pipe(prompt, generator=torch.Generator().manual_seed(s))`` makes, bit for bit on a CPU and up to rounding on a GPU.
    """

    #: The diffusers class this drives, and the schedulers that it may have.
    pipeline_class: ClassVar[str]
    schedulers: ClassVar[tuple[str, ...]]
    #: The diffusers class of its network.
    denoiser: ClassVar[str]
    #: Of a transformer in which text and image attend to one another: the order of the tokens (``lotts.capture.joint``).
    order: ClassVar[str | None] = None
    #: Whether classifier-free guidance doubles the batch, unconditional rows first; else each prompt has its own pass.
    doubles_rows: ClassVar[bool] = True

    #: What the map sources "attention" and "prediction" take where they are not told (docs/localization.md).
    localize: ClassVar[LocalizeConfig] = LocalizeConfig()
    prediction_levels: ClassVar[tuple[float, ...]] = (0.8,)

    #: What a user should know of the family.
    notes: ClassVar[tuple[str, ...]] = ()

    #: Share of fresh noise in a step, as ``schedulers.linear_update`` takes it.
    eta: float = 0.0

    @classmethod
    def drives(cls, pipe: Any) -> bool:
        """Whether ``pipe`` is of the family's class; tells without importing diffusers."""
        return is_diffusers(pipe, cls.pipeline_class)

    def check_scheduler(self) -> None:
        """ValueError where sampling cannot restart in the middle with the pipeline's scheduler."""
        schedulers.check_restartable(self.scheduler, self.schedulers)

    def check_network(self) -> None:
        """ValueError where the network needs more than noise and prompts."""
        kind = getattr(self.network.config, "encoder_hid_dim_type", None)
        if kind is not None:
            raise ValueError(
                f"expected a network under text alone, got one with encoder_hid_dim_type {kind!r}: its prompts go through "
                "a projection, or come with an image, that is not passed on. Call pipe.unload_ip_adapter() if it comes from there"
            )
        if getattr(self.network, "is_cache_enabled", False):
            raise ValueError(
                "expected a network without a cache, got one whose steps reuse those before: what a picture is would depend on "
                "the ones drawn before it. Call disable_cache() on the pipeline's transformer"
            )
        if type(getattr(self.pipe, "vae", None)).__name__ == "ConsistencyDecoderVAE":
            raise ValueError(
                "expected an autoencoder that decodes the same latents to the same picture, got ConsistencyDecoderVAE, which draws "
                "noise: set pipe.vae to the AutoencoderKL of the model"
            )
        if not self.denoises_latents():
            raise ValueError(
                f"expected a network that takes the autoencoder's {self.pipe.vae.config.latent_channels} channels, got one with "
                f"{self.channels}: it needs more than noise and a prompt, as inpainting, control and upscaling networks do"
            )

    #: Whether the network or the sampler does anything with ``guidance_scale``.
    heeds_guidance = True

    def announce(self, guidance_scale: float, steps: int) -> None:
        """Tell the pipeline what its own call would: callbacks and captures ask it."""
        self.pipe._guidance_scale, self.pipe._num_timesteps, self.pipe._interrupt = guidance_scale, steps, False

    def denoises_latents(self) -> bool:
        """Whether the network takes latents and nothing beside them."""
        vae = getattr(self.pipe, "vae", None)
        return vae is not None and self.channels == vae.config.latent_channels

    # --- what the family is

    @property
    @abstractmethod
    def network(self) -> torch.nn.Module:
        """The denoiser, whose attention is captured."""

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    @property
    def device(self) -> torch.device:
        return self.pipe._execution_device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype  # type: ignore[return-value]

    @property
    @abstractmethod
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained for."""

    @property
    def default_guidance_scale(self) -> float:
        """What the pipeline takes when it is called without one."""
        return float(inspect.signature(type(self.pipe).__call__).parameters["guidance_scale"].default)

    # --- text

    @abstractmethod
    def encode_prompt(
        self, prompt: str, negative_prompt: str = "", guidance_scale: float = 1.0, true_cfg_scale: float = 1.0
    ) -> Conditioning:
        """Embed one prompt; the negative one only under classifier-free guidance, a scale above 1.

        Args:
            true_cfg_scale: classifier-free guidance beside a guidance that the network takes as an input.
        """

    def conditional_rows(self, rows: int) -> slice:
        """Which rows of the stock pipeline's batch are guided towards the prompt: behind the unconditional ones under guidance."""
        return self._after_unconditional(rows, self.pipe.guidance_scale > 1)

    def _after_unconditional(self, rows: int, guided: bool) -> slice:
        # Pipelines with perturbed-attention guidance have the perturbed rows last.
        each = rows // (1 + guided + (getattr(self.pipe, "_pag_scale", 0) > 0))
        return slice(each if guided else 0, each * (1 + guided))

    def ordinary_guidance(self, true_cfg_scale: float) -> None:
        """ValueError where a family without embedded guidance is asked for a second one."""
        if true_cfg_scale != 1.0:
            raise ValueError(
                f"expected true_cfg_scale=1 with a {self.pipeline_class}, got {true_cfg_scale}: its guidance_scale is "
                "classifier-free guidance already"
            )

    # --- latents

    @property
    def cell(self) -> int:
        """Pixels of a latent cell's side."""
        return self.pipe.vae_scale_factor

    @property
    def multiple(self) -> int:
        """What the sides of a picture in pixels must be multiples of."""
        return self.cell

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        if height <= 0 or width <= 0 or height % self.multiple or width % self.multiple:
            fits = (max(1, round(side / self.multiple)) * self.multiple for side in (height, width))
            raise ValueError(
                f"expected a height and width that are multiples of {self.multiple}, got {height} x {width}: the nearest that "
                f"fits is {' x '.join(map(str, fits))}"
            )
        return height // self.cell, width // self.cell

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the autoencoder's latents."""

    def initial_latents(self, seed: int, size: tuple[int, int]) -> torch.Tensor:
        """Pure noise [1, C, h, w], as the stock pipeline draws it from ``torch.Generator().manual_seed(seed)``."""
        from diffusers.utils.torch_utils import randn_tensor

        shape = (1, self.channels, size[0] * self.cell // self.pipe.vae_scale_factor,
                 size[1] * self.cell // self.pipe.vae_scale_factor)  # fmt: skip
        noise = randn_tensor(shape, torch.Generator().manual_seed(seed), self.device, self.dtype)
        return self.from_autoencoder(noise) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def from_autoencoder(self, latents: torch.Tensor) -> torch.Tensor:
        """The autoencoder's layout, scaled, to ours."""
        return latents

    def to_autoencoder(self, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def to_pipeline(self, latents: torch.Tensor) -> torch.Tensor:
        """Our layout to the one that the stock pipeline hands to callbacks."""
        return latents

    def from_pipeline(self, latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return latents

    def encode_image(self, image: Image.Image) -> torch.Tensor:
        """The mode of the autoencoder's posterior, scaled: [1, C, h, w]."""
        with self.autoencoder() as vae:
            pixels = self.pipe.image_processor.preprocess(image.convert("RGB")).to(self._vae_device, vae.dtype)
            encoded = vae.encode(pixels)
            latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return self.from_autoencoder(self._normalised(latents).to(self.device, self.dtype))

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Pictures as float32 [B, H, W, 3] in [0, 1]."""
        with self.autoencoder() as vae:
            unpacked = self.to_autoencoder(latents).to(self._vae_device)
            images = vae.decode(self._denormalised(unpacked), return_dict=False)[0]
        return self.pipe.image_processor.postprocess(images, output_type="np")

    @property
    def _vae_device(self) -> torch.device:
        """Where the autoencoder runs: its components may have been placed by hand."""
        from diffusers.utils import torch_utils

        where = getattr(torch_utils, "get_module_execution_device", None)  # since diffusers 0.42
        return self.device if where is None else where(self.pipe.vae)

    @contextmanager
    def autoencoder(self) -> Iterator[Any]:
        """Within the context the autoencoder is as encoding and decoding need it; afterwards as it was."""
        yield self.pipe.vae

    def _normalised(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the autoencoder makes them, to the network's mean and scale."""
        config = self.pipe.vae.config
        shift = getattr(config, "shift_factor", None)
        return (latents if shift is None else latents - shift) * config.scaling_factor

    def _denormalised(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.pipe.vae.config
        shift = getattr(config, "shift_factor", None)
        latents = latents / config.scaling_factor
        return latents if shift is None else latents + shift

    # --- the sampler

    def restart(self, num_inference_steps: int, step: int, size: tuple[int, int]) -> None:
        """Set the schedule for latents of ``size``, forget what the scheduler remembers and make ``step`` the next one."""
        self.set_timesteps(num_inference_steps, size)
        if len(self.scheduler.timesteps) != num_inference_steps:
            raise ValueError(
                f"the scheduler makes {len(self.scheduler.timesteps)} steps of {num_inference_steps}: expected one a step"
            )
        schedulers.seek(self.scheduler, step)

    def set_timesteps(self, num_inference_steps: int, size: tuple[int, int]) -> None:
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)

    def signal_and_noise(self, step: int) -> tuple[float, float]:
        """(a, s) such that a * x0 + s * noise is distributed as the latents that enter ``step``."""
        return schedulers.signal_and_noise(self.scheduler, step)

    def predict_rows(self, latents: torch.Tensor, step: int, text: Conditioning) -> torch.Tensor:
        """The model's prediction for latents [B, C, h, w]; under guidance [2B, C, h, w], unconditional rows first."""
        schedulers.seek(self.scheduler, step)
        t = self.scheduler.timesteps[step]
        rows = torch.cat([latents, latents]) if text.guided else latents
        both = text.positive if text.negative is None else Embedding.cat([text.negative, text.positive])
        if hasattr(self.scheduler, "scale_model_input"):
            rows = self.scheduler.scale_model_input(rows, t)
        return self.forward(rows, t, both, text.embedded_guidance)

    @abstractmethod
    def forward(
        self, rows: torch.Tensor, t: torch.Tensor, text: Embedding, embedded_guidance: float | None
    ) -> torch.Tensor:
        """The network on rows [R, C, h, w] at timestep ``t``, with R rows of text."""

    def predict(self, latents: torch.Tensor, step: int, text: Conditioning) -> torch.Tensor:
        """The (guided) prediction [B, C, h, w] for latents [B, C, h, w]."""
        return text.guide(self.predict_rows(latents, step, text))

    def linear_update(self, step: int, eta: float | None = None) -> LinearUpdate | None:
        """What is done at ``step``, as factors; None where it is not linear and only ``step`` can do it.

        ``eta``: another than the backbone's own.
        """
        return schedulers.linear_update(self.scheduler, step, self.eta if eta is None else eta)

    def clean_estimate(self, latents: torch.Tensor, prediction: torch.Tensor, step: int) -> torch.Tensor:
        """x0 [B, C, h, w] from the latents that enter ``step`` and the guided prediction there.

        Raises:
            ValueError: the scheduler clamps its estimate, or has none at pure noise.
        """
        factors = schedulers.clean_estimate(self.scheduler, step)
        if factors is None:
            raise ValueError(
                f"{type(self.scheduler).__name__} has no linear estimate of the picture at step {step}: expected one "
                "without clipping, and v- or flow prediction where sampling starts from pure noise"
            )
        return factors[0] * latents + factors[1] * prediction

    def step(
        self, prediction: torch.Tensor, step: int, latents: torch.Tensor, generators: list[torch.Generator] | None
    ) -> torch.Tensor:
        """The scheduler's update; stochastic samplers draw each sample's noise from its own generator."""
        extra: dict[str, Any] = {"generator": generators} if generators and self.stochastic else {}
        if self.eta and not schedulers.always_ancestral(self.scheduler):
            if not schedulers.takes_eta(self.scheduler):
                return schedulers.noisy_step(self.linear_update(step), prediction, latents, generators)
            extra["eta"] = self.eta
        return self.scheduler.step(prediction, self.scheduler.timesteps[step], latents, return_dict=False, **extra)[0]

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return self.eta > 0 or schedulers.stochastic(self.scheduler)

    def check_eta(self, eta: float) -> None:
        """ValueError where the sampler has no stochastic form to take ``eta`` in."""
        schedulers.check_eta(self.scheduler, eta)
