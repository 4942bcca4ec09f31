"""Training of the embedded pipelines' networks: text encoders and U-Net or transformer together, on encoded drawings.

A family is a module of the parts that train, named as the pipeline names them. It says how they start, what their loss
is and which pipeline they make.
"""

from __future__ import annotations

import collections
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lotts.shapes import build, build_flux, build_sdxl
from lotts.shapes.draw import SIDE, Drawing, draw
from lotts.shapes.loop import Recipe, Worker, autocast, averaged, fit
from lotts.shapes.sampling import sample_images
from lotts.shapes.scenes import (
    COLOURS,
    MAX_OBJECTS,
    MIN_OBJECTS,
    QUALITY_PREFIX,
    SHAPES,
    Scene,
    caption,
    sample_scene,
)
from lotts.shapes.train_text import TextLoss, train_text
from lotts.shapes.train_vae import contact_sheet, pixels

#: Ground and every colour, ground and every shape.
CLASSES = (1 + len(COLOURS), 1 + len(SHAPES))

WEIGHTS = Path(__file__).parent / "weights"
BATCH = 16  # a process
LOW_QUALITY, HIGH_QUALITY, EMPTY = 0.15, 0.2, 0.1  # shares of captions; the rest is plain
PLAIN_DAMAGED = 0.08  # plain captions describe the world as it is: some of its pictures are flawed


class Family(nn.Module, ABC):
    """The parts that train together, under one roof for the optimiser and the checkpoint.

    ``folder`` is where the finished pipeline goes, ``base`` is that of ``shapes-sd``, from which others may start.
    """

    #: Pictures, and what ``Recipe`` takes for them.
    images: ClassVar[int] = 400_000
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
        contents: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss on latents [B, C, h, w] under ``noise``, at times that uniform ``shares`` [B] in (0, 1) choose, and figures.

        ``contents`` [B, 2, cells, cells]: see ``contents_of``.
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

    def loss(self, latents, noise, shares, texts, contents):
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

    def loss(self, latents, noise, shares, texts, contents):
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
    """Image tokens tell from the text which object is theirs, and a plain transformer is slow to find out how.

    So while it trains, a linear layer behind the double blocks reads colour and shape off each token, which is an error that
    reaches the text at once; much as REPA (Yu et al., 2024) aligns a transformer's tokens with another network's features.
    """

    READING = 0.3

    images = 80_000
    recipe: ClassVar[dict[str, float]] = {"learning_rate": 1e-3, "warmup": 8_000, "ema": 0.9995}
    small_images = 100_000
    captions: ClassVar[int] = 60_000  # for T5 alone, before

    def __init__(self, folder: Path, base: Path) -> None:
        super().__init__(folder, base)
        self.tokenizer_2 = build_flux.load_t5_tokenizer(folder / "tokenizer_2")
        self.text_encoder = build.text_encoder(len(self.tokenizer))
        self.text_encoder_2 = build_flux.t5_encoder(len(self.tokenizer_2))
        self.transformer = build_flux.transformer()
        self.reader = nn.Linear(self.transformer.inner_dim, sum(CLASSES))

    @property
    def autoencoder_folder(self) -> Path:
        return self.folder / "vae"

    def grow(self, worker: Worker, runs: Path) -> None:
        old = StableDiffusionFamily(self.base, self.base)
        old.load()
        self.text_encoder.load_state_dict(old.text_encoder.state_dict())
        lesson = TextLoss(self.text_encoder_2, self.tokenizer_2, old.text_encoder, old.tokenizer).to(worker.device)
        train_text(worker, lesson, runs / "flux-text", self.captions)

    def loss(self, latents, noise, shares, texts, contents):
        noisy, t, target = build_flux.flow_path(latents, noise, shares)
        device, side = latents.device, latents.shape[-1] // 2
        # Captions fill a third of T5's length; the pipeline pads them to all of it.
        padding = "max_length" if side == build_flux.TOKENS else "longest"
        ids = self.tokenizer_2(texts, padding=padding, truncation=True, return_tensors="pt").input_ids.to(device)
        seen: list[torch.Tensor] = []
        hook = self.transformer.transformer_blocks[-1].register_forward_hook(lambda *call: seen.append(call[-1][1]))
        predicted = self.transformer(
            hidden_states=build_flux.pack(noisy),
            timestep=t,
            pooled_projections=self.text_encoder(self.ids(texts, device)).pooler_output,
            encoder_hidden_states=self.text_encoder_2(ids)[0],
            txt_ids=torch.zeros(ids.shape[1], 3, device=device),
            img_ids=build_flux.places(side, device),
        ).sample
        hook.remove()
        error = (predicted.float() - build_flux.pack(target)).square().mean()
        read = self.reader(F.layer_norm(seen[0], seen[0].shape[-1:])).float().split(CLASSES, dim=-1)
        misread = torch.stack(
            [
                F.cross_entropy(logits.transpose(1, 2), truth)
                for logits, truth in zip(read, contents.flatten(2).unbind(1), strict=True)
            ]
        ).sum()
        return error + self.READING * misread, {"error": float(error.detach()), "misread": float(misread.detach())}

    def pipeline(self, vae):
        return build_flux.pipeline(
            vae, self.text_encoder, self.tokenizer, self.text_encoder_2, self.tokenizer_2, self.transformer
        )


FAMILIES: dict[str, type[Family]] = {
    "sd": StableDiffusionFamily,
    "sdxl": StableDiffusionXLFamily,
    "flux": FluxFamily,
}


class LatentPool:
    """Encoded drawings with captions, made as training goes.

    They wait in a pool and are each used about ``REUSE`` times, under new noise, before fresh ones replace them: drawing
    and encoding then cost a tenth of a training step. ``AHEAD`` batches are made before the first is given. Pictures may
    be shrunk by a whole number.
    """

    REUSE, SIZE, AHEAD = 6, 12_288, 8

    def __init__(self, vae: Any, batch_size: int, device: torch.device, shrink: int = 1) -> None:
        self.vae, self.batch_size, self.device, self.shrink = vae, batch_size, device, shrink
        self.entries: collections.deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]] = collections.deque(
            maxlen=self.SIZE
        )

    def refill(self, rng: np.random.Generator, count: int) -> None:
        images, contents, texts = [], [], []
        for _ in range(count):
            text, scene, damaged = captioned(rng)
            drawing = draw(scene, rng, damaged=damaged)
            images.append(drawing.image)
            contents.append(torch.from_numpy(contents_of(drawing, scene, SIDE // (8 * self.shrink))).to(self.device))
            texts.append(text)
        with torch.no_grad():
            small = F.avg_pool2d(pixels(images, self.device), self.shrink)
            posterior = self.vae.encode(small).latent_dist
        scale = self.vae.config.scaling_factor
        entries = zip((posterior.mean * scale).float(), (posterior.std * scale).float(), contents, texts, strict=True)
        self.entries.extend(entries)

    def batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
        """Means and standard deviations [B, C, h, w] of latents, their contents, and captions, some of them dropped."""
        first = self.batch_size * self.AHEAD
        self.refill(rng, first if len(self.entries) < first else -(-self.batch_size // self.REUSE))
        chosen = [self.entries[int(i)] for i in rng.choice(len(self.entries), self.batch_size, replace=False)]
        means, stds, contents, texts = zip(*chosen, strict=True)
        kept = ["" if rng.random() < EMPTY else text for text in texts]
        return torch.stack(means), torch.stack(stds), torch.stack(contents), kept


class DenoiserLoss(nn.Module):
    def __init__(self, family: Family, pool: LatentPool) -> None:
        super().__init__()
        self.family, self.pool = family, pool

    def forward(self, rng: np.random.Generator, noise: torch.Generator):
        mean, std, contents, texts = self.pool.batch(rng)

        def random(*shape: int, draw=torch.randn) -> torch.Tensor:
            return draw(*shape, generator=noise, device=mean.device)

        latents, e = mean + std * random(*mean.shape), random(*mean.shape)
        # One stratum of the times each: less variance in the loss for the same batch.
        count = len(texts)
        shares = (torch.arange(count, device=mean.device) + random(count, draw=torch.rand)) / count
        return self.family.loss(latents, e, shares, texts, contents)


def contents_of(drawing: Drawing, scene: Scene, cells: int) -> np.ndarray:
    """int64 [2, cells, cells]: number of the colour and of the shape of what covers most of a cell, from 1; 0 for ground."""
    cover = drawing.objects.reshape(-1, cells, SIDE // cells, cells, SIDE // cells).mean((2, 4))
    numbers = [[list(COLOURS).index(item.colour) + 1, SHAPES.index(item.shape) + 1] for item in scene.items]
    return np.where(cover.max(0) > 0.15, np.array(numbers)[cover.argmax(0)].transpose(2, 0, 1), 0)


def captioned(rng: np.random.Generator) -> tuple[str, Scene, bool]:
    """A caption to train on, its scene, and whether the drawing is to be damaged."""
    # Every number of objects gets an equal share of the objects drawn, so that the large shapes of small scenes are seen
    # as often as the small ones of crowded scenes: scenes of n objects come up in proportion to 1 / n.
    numbers = np.arange(MIN_OBJECTS, MAX_OBJECTS + 1)
    number = int(rng.choice(numbers, p=(1 / numbers) / (1 / numbers).sum()))
    scene = sample_scene(rng, number)
    if scene.kind == "rows" and rng.random() < 0.5:
        scene = sample_scene(rng, number)  # a second chance of a relation or a free scene: they are learned last
    text, chance = caption(scene, rng), rng.random()
    if chance < LOW_QUALITY:
        return QUALITY_PREFIX["low"].format(text), scene, True
    if chance < LOW_QUALITY + HIGH_QUALITY:
        return QUALITY_PREFIX["high"].format(text), scene, False
    return text, scene, bool(rng.random() < PLAIN_DAMAGED)


def train_denoiser(
    worker: Worker, name: str, runs: Path, images: int, onward: bool = False, weights: Path = WEIGHTS
) -> None:
    """Train the family ``name`` as it starts by itself, or ``onward`` from its weights in the package, and export."""
    from diffusers import AutoencoderKL

    torch.manual_seed(worker.seed)
    family = FAMILIES[name](weights / name, weights / "sd")
    if onward:
        family.load()
    else:
        family.grow(worker, runs)
    family.to(worker.device)
    vae = AutoencoderKL.from_pretrained(family.autoencoder_folder, torch_dtype=torch.float32).to(worker.device).eval()

    def loss(shrink: int) -> DenoiserLoss:
        return DenoiserLoss(family, LatentPool(vae, BATCH, worker.device, shrink))

    common: dict[str, Any] = {"batch_size": BATCH, "seed": worker.seed, **family.recipe}
    if family.small_images and not onward:
        small = Recipe(images=family.small_images, cooldown=0.1, **common)
        fit(worker, family, loss(shrink=2), small, runs / f"{name}-small")

    def preview(_, path: Path) -> None:
        pipe = family.pipeline(vae)
        pipe.set_progress_bar_config(disable=True)
        numbers = [2, 3, 4, 6, 9, 16] * 2
        scenes = [sample_scene(np.random.default_rng([9, i]), n, held_out=True) for i, n in enumerate(numbers)]
        with autocast(worker.device):
            images = list(sample_images(pipe, [caption(scene) for scene in scenes], range(len(scenes))))
        contact_sheet(np.stack(images), 6).save(path)

    recipe = Recipe(images=images, **common)
    fit(worker, family, loss(shrink=1), recipe, runs / name, preview=preview, preview_every=25_000)
    if worker.rank == 0:
        export_denoiser(name, runs, weights)


def export_denoiser(name: str, runs: Path, weights: Path = WEIGHTS) -> None:
    """Write the newest checkpoint's averaged parts as a folder that ``from_pretrained`` reads."""
    from diffusers import AutoencoderKL

    family: Any = averaged(FAMILIES[name](weights / name, weights / "sd"), runs / name)
    vae = AutoencoderKL.from_pretrained(family.autoencoder_folder)
    family.half().pipeline(vae.half()).save_pretrained(weights / name)
