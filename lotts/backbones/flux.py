"""FLUX.1 dev and schnell: a transformer over text and image tokens, T5 and a pooled CLIP embedding, flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lotts.backbones.base import Backbone
from lotts.backbones.conditioning import Conditioning, Embedding
from lotts.backbones.schedulers import FLOW_MATCHING, seek, shift
from lotts.capture.joint import TEXT_IMAGE


class Flux(Backbone):
    """The pipeline packs 2 x 2 latents into one token; here a token is one latent cell with four times the channels."""

    pipeline_class = "FluxPipeline"
    schedulers = FLOW_MATCHING
    denoiser = "FluxTransformer2DModel"
    order = TEXT_IMAGE
    prediction_levels = (0.35,)
    notes = (
        "guidance_scale is the guidance that FLUX.1 dev takes as an input; true_cfg_scale adds classifier-free guidance",
    )
    doubles_rows = False

    @property
    def network(self) -> torch.nn.Module:
        return self.pipe.transformer

    @property
    def default_size(self) -> tuple[int, int]:
        return (self.pipe.default_sample_size * self.pipe.vae_scale_factor,) * 2

    @property
    def default_guidance_scale(self) -> float:
        """The pipeline's own where the network takes it as an input; schnell and the like take none."""
        return super().default_guidance_scale if self.pipe.transformer.config.guidance_embeds else 1.0

    @property
    def heeds_guidance(self) -> bool:  # type: ignore[override]
        return bool(self.pipe.transformer.config.guidance_embeds)

    @property
    def t5_tokens(self) -> int:
        """What the pipeline takes when it is called without ``max_sequence_length``, if its T5 was made for as many."""
        return min(512, self.pipe.tokenizer_2.model_max_length)

    def encode_prompt(self, prompt, negative_prompt="", guidance_scale=1.0, true_cfg_scale=1.0) -> Conditioning:
        guided = true_cfg_scale > 1
        return Conditioning(
            self.embed([prompt]),
            self.embed([negative_prompt]) if guided else None,
            true_cfg_scale,
            guidance_scale if self.pipe.transformer.config.guidance_embeds else None,
        )

    def embed(self, prompts: Sequence[str]) -> Embedding:
        tokens, pooled, _ = self.pipe.encode_prompt(
            list(prompts), None, device=self.device, max_sequence_length=self.t5_tokens
        )
        return Embedding(tokens, pooled)

    @property
    def segments(self) -> list[tuple[Any, int]]:
        return [(self.pipe.tokenizer_2, self.t5_tokens)]

    def conditional_rows(self, rows: int) -> slice:
        return slice(0, rows)

    # --- latents

    @property
    def cell(self) -> int:
        return 2 * self.pipe.vae_scale_factor

    @property
    def channels(self) -> int:
        return self.pipe.transformer.config.in_channels // 4

    def from_autoencoder(self, latents: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = latents.shape
        packed = self.pipe._pack_latents(latents, batch, channels, height, width)
        return _grid(packed, (height // 2, width // 2))

    def to_autoencoder(self, latents: torch.Tensor) -> torch.Tensor:
        height, width = (side * self.cell for side in latents.shape[-2:])
        return self.pipe._unpack_latents(_tokens(latents), height, width, self.pipe.vae_scale_factor)

    def to_pipeline(self, latents: torch.Tensor) -> torch.Tensor:
        return _tokens(latents)

    def from_pipeline(self, latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return _grid(latents, size)

    # --- the sampler

    def set_timesteps(self, num_inference_steps: int, size: tuple[int, int]) -> None:
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, device=self.device, mu=shift(self.scheduler, size[0] * size[1]))

    def predict_rows(self, latents: torch.Tensor, step: int, text: Conditioning) -> torch.Tensor:
        seek(self.scheduler, step)
        t = self.scheduler.timesteps[step]
        # As the pipeline does: under true classifier-free guidance each prompt has a pass of its own, the positive first.
        with self.pipe.transformer.cache_context("cond"):
            rows = self.forward(latents, t, text.positive, text.embedded_guidance)
        if text.negative is None:
            return rows
        with self.pipe.transformer.cache_context("uncond"):
            return torch.cat([self.forward(latents, t, text.negative, text.embedded_guidance), rows])

    def forward(self, rows, t, text, embedded_guidance) -> torch.Tensor:
        size, device = rows.shape[-2:], rows.device
        guidance = None
        if embedded_guidance is not None:
            guidance = torch.full([1], embedded_guidance, device=device, dtype=torch.float32).expand(len(rows))
        prediction = self.pipe.transformer(
            hidden_states=_tokens(rows),
            timestep=t.expand(len(rows)).to(rows.dtype) / 1000,
            guidance=guidance,
            pooled_projections=text.pooled,
            encoder_hidden_states=text.tokens,
            txt_ids=torch.zeros(text.tokens.shape[1], 3, device=device, dtype=text.tokens.dtype),
            img_ids=self.pipe._prepare_latent_image_ids(len(rows), *size, device, text.tokens.dtype),
            return_dict=False,
        )[0]
        return _grid(prediction, size)


def _grid(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, h * w, C] to [B, C, h, w]."""
    return tokens.transpose(1, 2).unflatten(-1, size)


def _tokens(grid: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] to [B, h * w, C]."""
    return grid.flatten(2).transpose(1, 2).contiguous()
