"""Stable Diffusion 1.x and 2.x: a U-Net under one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lotts.backbones.base import Backbone
from lotts.backbones.conditioning import Conditioning, Embedding
from lotts.backbones.schedulers import VARIANCE_PRESERVING


class StableDiffusion(Backbone):
    pipeline_class = "StableDiffusionPipeline"
    schedulers = VARIANCE_PRESERVING
    denoiser = "UNet2DConditionModel"

    def check_network(self) -> None:
        super().check_network()
        size = self.pipe.unet.config.time_cond_proj_dim
        if size is not None:
            raise ValueError(
                "expected a U-Net under classifier-free guidance, got one that takes guidance as an input (time_cond_proj_dim "
                f"{size}, as LCM's): use the pipeline of the model that it was distilled from"
            )

    @property
    def network(self) -> torch.nn.Module:
        return self.pipe.unet

    @property
    def default_size(self) -> tuple[int, int]:
        sample = self.pipe.unet.config.sample_size
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return height * self.cell, width * self.cell

    def encode_prompt(self, prompt, negative_prompt="", guidance_scale=1.0, true_cfg_scale=1.0) -> Conditioning:
        self.ordinary_guidance(true_cfg_scale)
        guided = guidance_scale > 1
        positive, negative = self.pipe.encode_prompt(prompt, self.device, 1, guided, negative_prompt)
        return Conditioning(Embedding(positive), Embedding(negative) if guided else None, guidance_scale)

    def embed(self, prompts: Sequence[str]) -> Embedding:
        return Embedding(self.pipe.encode_prompt(list(prompts), self.device, 1, False)[0])

    @property
    def segments(self) -> list[tuple[Any, int]]:
        tokenizer = self.pipe.tokenizer or self.pipe.tokenizer_2  # SDXL's refiner has the second alone
        return [(tokenizer, tokenizer.model_max_length)]

    def conditional_rows(self, rows: int) -> slice:
        # `pipe.do_classifier_free_guidance` says the same, but torch.compile, which runs this, cannot trace it.
        distilled = self.pipe.unet.config.time_cond_proj_dim is not None
        return self._after_unconditional(rows, self.pipe.guidance_scale > 1 and not distilled)

    @property
    def channels(self) -> int:
        return self.pipe.unet.config.in_channels

    def forward(self, rows, t, text, embedded_guidance) -> torch.Tensor:
        return self.pipe.unet(rows, t, encoder_hidden_states=text.tokens, return_dict=False)[0]
