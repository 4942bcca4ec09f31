"""What trains together for each embedded pipeline: how its networks start, their loss, the pipeline that they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from lotts.shapes import build, build_flux, build_sdxl
from lotts.shapes.draw import SIDE
from lotts.shapes.grounding import Grounding, words_of
from lotts.shapes.loop import Worker
from lotts.shapes.train_text import TextLoss, train_text


class Family(nn.Module, ABC):
    """The parts that train together, named as the pipeline names them, under one roof for optimiser and checkpoint.

    ``folder`` is where the finished pipeline goes, ``base`` is that of ``shapes-sd``, from which others may start.
    """

    #: Pictures, and what ``Recipe`` takes for them.
    images: ClassVar[int] = 400_000
    batch_size: ClassVar[int] = 16  # a process
    recipe: ClassVar[dict[str, float]] = {"learning_rate": 1e-3, "warmup": 10_000, "ema": 0.9995}
    #: Pictures of half the side that come before those.
    small_images: ClassVar[int] = 0

    def __init__(self, folder: Path, base: Path) -> None:
        super().__init__()
        self.folder, self.base = folder, base
        self.tokenizer = build.load_tokenizer(base / "tokenizer")

    @property
    def autoencoder_folder(self) -> Path:
        return self.base / "vae"

    def grow(self, worker: Worker, runs: Path) -> None:
        """Start from what is there already, where the family does; otherwise from scratch."""

    @abstractmethod
    def loss(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        shares: torch.Tensor,
        texts: list[str],
        owners: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss on latents [B, C, h, w] under ``noise``, at times that uniform ``shares`` [B] in (0, 1) choose, and figures.

        ``owners`` [B, cells, cells]: see ``grounding.owners_of``.
        """

    @abstractmethod
    def pipeline(self, vae: Any) -> Any: ...

    def ids(self, texts: list[str], device: torch.device) -> torch.Tensor:
        return self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)

    def load(self) -> None:
        """Take the weights of the finished pipeline in ``folder``."""
        for name, part in self.named_children():
            if not hasattr(part, "from_pretrained"):
                continue
            kept = type(part).from_pretrained(self.folder / name, torch_dtype=torch.float32)  # type: ignore[attr-defined]
            part.load_state_dict(kept.state_dict())


class StableDiffusionFamily(Family):
    def __init__(self, folder: Path, base: Path) -> None:
        super().__init__(folder, base)
        self.text_encoder, self.unet = build.text_encoder(len(self.tokenizer)), build.unet()

    def loss(self, latents, noise, shares, texts, owners):
        noisy, t, target = build.v_path(latents, noise, shares)
        embeds = self.text_encoder(self.ids(texts, latents.device))[0]
        return (self.unet(noisy, t, embeds).sample.float() - target).square().mean(), {}

    def pipeline(self, vae):
        return build.pipeline(vae, self.text_encoder, self.tokenizer, self.unet)


class StableDiffusionXLFamily(Family):
    images = 80_000
    recipe: ClassVar[dict[str, float]] = {"learning_rate": 5e-4, "warmup": 4_000, "ema": 0.998}

    def __init__(self, folder: Path, base: Path) -> None:
        super().__init__(folder, base)
        size = len(self.tokenizer)
        # The first stays as it grew: a step would be far too long for weights that are scaled down.
        self.text_encoder = build_sdxl.text_encoder(size).requires_grad_(False)
        self.text_encoder_2 = build_sdxl.text_encoder_2(size)
        self.unet = build_sdxl.unet()

    def grow(self, worker: Worker, runs: Path) -> None:
        old = StableDiffusionFamily(self.base, self.base)
        old.load()
        build_sdxl.grow(old.text_encoder, old.unet, self.text_encoder, self.unet)

    def loss(self, latents, noise, shares, texts, owners):
        noisy, t, target = build.v_path(latents, noise, shares)
        ids = self.ids(texts, latents.device)
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids, output_hidden_states=True)
        embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        size = torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE], device=latents.device).expand(len(texts), -1)
        added = {"text_embeds": second.text_embeds, "time_ids": size}
        return (self.unet(noisy, t, embeds, added_cond_kwargs=added).sample.float() - target).square().mean(), {}

    def pipeline(self, vae):
        return build_sdxl.pipeline(vae, self.text_encoder, self.text_encoder_2, self.tokenizer, self.unet)


class FluxFamily(Family):
    """Image tokens are told which words are about them while they train: see ``grounding``."""

    GROUNDING = 0.1

    images = 68_000
    batch_size = 8
    recipe: ClassVar[dict[str, float]] = {"learning_rate": 1e-3, "warmup": 4_000, "ema": 0.9995}
    small_images = 30_000
    captions: ClassVar[int] = 60_000  # for T5 alone, before

    def __init__(self, folder: Path, base: Path) -> None:
        super().__init__(folder, base)
        self.tokenizer_2 = build_flux.load_t5_tokenizer(folder / "tokenizer_2")
        self.text_encoder = build.text_encoder(len(self.tokenizer))
        self.text_encoder_2 = build_flux.t5_encoder(len(self.tokenizer_2))
        self.transformer = build_flux.transformer()

    @property
    def autoencoder_folder(self) -> Path:
        return self.folder / "vae"

    def grow(self, worker: Worker, runs: Path) -> None:
        old = StableDiffusionFamily(self.base, self.base)
        old.load()
        self.text_encoder.load_state_dict(old.text_encoder.state_dict())
        lesson = TextLoss(self.text_encoder_2, self.tokenizer_2, build_flux.waves(), build_flux.TOKENS)
        train_text(worker, lesson.to(worker.device), runs / "flux-text", self.captions)

    def loss(self, latents, noise, shares, texts, owners):
        noisy, t, target = build_flux.flow_path(latents, noise, shares)
        device, side = latents.device, latents.shape[-1] // 2
        # Captions fill a third of T5's length; the pipeline pads them to all of it.
        padding = "max_length" if side == build_flux.TOKENS else "longest"
        read = self.tokenizer_2(
            texts, padding=padding, truncation=True, return_tensors="pt", return_offsets_mapping=True
        )
        ids, places = read.input_ids.to(device), build_flux.places(side, device)
        with Grounding(self.transformer) as grounding:
            predicted = self.transformer(
                hidden_states=build_flux.pack(noisy),
                timestep=t,
                pooled_projections=self.text_encoder(self.ids(texts, device)).pooler_output,
                encoder_hidden_states=self.text_encoder_2(ids)[0],
                txt_ids=torch.zeros(ids.shape[1], 3, device=device),
                img_ids=places,
            ).sample
        error = (predicted.float() - build_flux.pack(target)).square().mean()
        words = words_of(texts, read.offset_mapping).to(device)
        astray = grounding.error(places, owners.flatten(1), words)
        return error + self.GROUNDING * astray, {"error": float(error.detach()), "astray": float(astray.detach())}

    def pipeline(self, vae):
        return build_flux.pipeline(
            vae, self.text_encoder, self.tokenizer, self.text_encoder_2, self.tokenizer_2, self.transformer
        )


FAMILIES: dict[str, type[Family]] = {
    "sd": StableDiffusionFamily,
    "sdxl": StableDiffusionXLFamily,
    "flux": FluxFamily,
}
