"""Stable Diffusion 3 and 3.5: a transformer over image and text tokens, two CLIP encoders and T5, flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lotts.backbones.base import Backbone
from lotts.backbones.conditioning import Conditioning, Embedding
from lotts.backbones.schedulers import FLOW_MATCHING, shift
from lotts.capture.joint import IMAGE_TEXT


class StableDiffusion3(Backbone):
    pipeline_class = "StableDiffusion3Pipeline"
    schedulers = FLOW_MATCHING
    denoiser = "SD3Transformer2DModel"
    order = IMAGE_TEXT
    prediction_levels = (0.35,)  # FLUX's, the nearest relative that was measured
    notes = ("no skip-layer guidance",)

    #: Tokens of T5, as the pipeline takes when it is called without ``max_sequence_length``.
    T5_TOKENS = 256

    @property
    def network(self) -> torch.nn.Module:
        return self.pipe.transformer

    @property
    def default_size(self) -> tuple[int, int]:
        return (self.pipe.default_sample_size * self.cell,) * 2

    def encode_prompt(self, prompt, negative_prompt="", guidance_scale=1.0, true_cfg_scale=1.0) -> Conditioning:
        self.ordinary_guidance(true_cfg_scale)
        guided = guidance_scale > 1
        positive, negative, pooled, negative_pooled = self.pipe.encode_prompt(
            prompt, None, None, device=self.device, do_classifier_free_guidance=guided, negative_prompt=negative_prompt
        )
        negative = Embedding(negative, negative_pooled) if guided else None
        return Conditioning(Embedding(positive, pooled), negative, guidance_scale)

    def embed(self, prompts: Sequence[str]) -> Embedding:
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), None, None, device=self.device, do_classifier_free_guidance=False
        )
        return Embedding(tokens, pooled)

    @property
    def segments(self) -> list[tuple[Any, int]]:
        pipe = self.pipe
        # Both CLIP tokenizers give the same tokens, joined in one embedding each. Without T5 zeros stand in its place.
        t5 = None if pipe.text_encoder_3 is None else pipe.tokenizer_3
        return [(pipe.tokenizer, pipe.tokenizer_max_length), (t5, self.T5_TOKENS)]

    @property
    def multiple(self) -> int:
        return self.cell * self.pipe.transformer.config.patch_size

    @property
    def channels(self) -> int:
        return self.pipe.transformer.config.in_channels

    def set_timesteps(self, num_inference_steps: int, size: tuple[int, int]) -> None:
        patch, extra = self.pipe.transformer.config.patch_size, {}
        if self.scheduler.config.get("use_dynamic_shifting", None):
            extra["mu"] = shift(self.scheduler, (size[0] // patch) * (size[1] // patch), max_shift=1.16)
        self.scheduler.set_timesteps(num_inference_steps, device=self.device, **extra)

    def forward(self, rows, t, text, embedded_guidance) -> torch.Tensor:
        return self.pipe.transformer(
            hidden_states=rows,
            timestep=t.expand(len(rows)),
            encoder_hidden_states=text.tokens,
            pooled_projections=text.pooled,
            return_dict=False,
        )[0]
