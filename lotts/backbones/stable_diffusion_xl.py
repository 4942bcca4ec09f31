"""SDXL, base model: a U-Net under two CLIP text encoders, a pooled embedding, and the picture's size as a condition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lotts.backbones.conditioning import Conditioning, Embedding
from lotts.backbones.stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    pipeline_class = "StableDiffusionXLPipeline"
    notes = (
        "the base model alone: no refiner, and the picture's own size as original and target size",
        "an empty negative_prompt is none at all: zeros where the checkpoint asks for them",
    )

    def encode_prompt(self, prompt, negative_prompt="", guidance_scale=1.0, true_cfg_scale=1.0) -> Conditioning:
        self.ordinary_guidance(true_cfg_scale)
        guided = guidance_scale > 1
        # None, not "": the base model's checkpoint asks for zeros where there is no negative prompt.
        positive, negative, pooled, negative_pooled = self.pipe.encode_prompt(
            prompt, None, self.device, 1, guided, negative_prompt or None
        )
        negative = Embedding(negative, negative_pooled) if guided else None
        return Conditioning(Embedding(positive, pooled), negative, guidance_scale)

    def embed(self, prompts: Sequence[str]) -> Embedding:
        tokens, _, pooled, _ = self.pipe.encode_prompt(list(prompts), None, self.device, 1, False)
        return Embedding(tokens, pooled)

    def forward(self, rows, t, text, embedded_guidance) -> torch.Tensor:
        assert text.pooled is not None
        size = (rows.shape[-2] * self.cell, rows.shape[-1] * self.cell)
        encoder = self.pipe.text_encoder_2
        projected = int(text.pooled.shape[-1]) if encoder is None else encoder.config.projection_dim
        ids = self.pipe._get_add_time_ids(
            size, (0, 0), size, dtype=text.tokens.dtype, text_encoder_projection_dim=projected
        )
        added = {"text_embeds": text.pooled.to(rows.device), "time_ids": ids.to(rows.device).repeat(len(rows), 1)}
        return self.pipe.unet(
            rows, t, encoder_hidden_states=text.tokens, added_cond_kwargs=added, return_dict=False
        )[0]  # fmt: skip

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Pictures as float32 [B, H, W, 3] in [0, 1], with the pipeline's own watermark where it has one."""
        pipe = self.pipe
        with self.autoencoder() as vae:
            images = vae.decode(self._denormalised(latents.to(self._vae_device, vae.dtype)), return_dict=False)[0]
        if getattr(pipe, "watermark", None) is not None:
            images = pipe.watermark.apply_watermark(images)
        return pipe.image_processor.postprocess(images, output_type="np")

    @contextmanager
    def autoencoder(self) -> Iterator[Any]:
        """In float32 where it says so and would work in float16: the first one that SDXL came with overflows there."""
        vae = self.pipe.vae
        upcast = vae.dtype == torch.float16 and vae.config.force_upcast
        if upcast:
            vae.to(dtype=torch.float32)
        try:
            yield vae
        finally:
            if upcast:
                vae.to(dtype=torch.float16)

    def _normalised(self, latents: torch.Tensor) -> torch.Tensor:
        statistics = self._statistics(latents)
        if statistics is None:
            return super()._normalised(latents)
        mean, std = statistics
        return (latents - mean) / std * self.pipe.vae.config.scaling_factor

    def _denormalised(self, latents: torch.Tensor) -> torch.Tensor:
        statistics = self._statistics(latents)
        if statistics is None:
            return super()._denormalised(latents)
        mean, std = statistics
        return latents * std / self.pipe.vae.config.scaling_factor + mean

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean and standard deviation [1, C, 1, 1] that some checkpoints carry for their latents."""
        config = self.pipe.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or std is None:
            return None
        return torch.tensor(mean).view(1, -1, 1, 1).to(latents), torch.tensor(std).view(1, -1, 1, 1).to(latents)
