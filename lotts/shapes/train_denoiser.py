"""Training of the embedded pipelines' networks: text encoders and U-Net or transformer together, on encoded drawings."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lotts.files import whole_folder
from lotts.models import GUIDANCE
from lotts.shapes.draw import SIDE, draw
from lotts.shapes.families import FAMILIES, Family
from lotts.shapes.grounding import owners_of
from lotts.shapes.loop import Recipe, Worker, autocast, averaged, fit, run_of
from lotts.shapes.sampling import sample_images
from lotts.shapes.scenes import MAX_OBJECTS, MIN_OBJECTS, QUALITY_PREFIX, Scene, caption, sample_scene
from lotts.shapes.train_vae import contact_sheet, pixels

WEIGHTS = Path(__file__).parent / "weights"
EMPTY, LOW_QUALITY, HIGH_QUALITY = 0.1, 0.135, 0.18  # shares of captions; the rest is plain
FLAWS = 0.02  # plain captions describe the world as it is: an object of n is flawed at n times this rate


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
        images, owners, texts = [], [], []
        for _ in range(count):
            text, scene, quality = captioned(rng)
            flaws = FLAWS * len(scene.items) if quality == "plain" else 0.0
            drawing = draw(scene, rng, damaged=quality == "low", flaws=flaws)
            images.append(drawing.image)
            owners.append(torch.from_numpy(owners_of(drawing, SIDE // (8 * self.shrink))).to(self.device))
            texts.append(text)
        with torch.no_grad():
            small = F.avg_pool2d(pixels(images, self.device), self.shrink)
            posterior = self.vae.encode(small).latent_dist
        scale = self.vae.config.scaling_factor
        entries = zip((posterior.mean * scale).float(), (posterior.std * scale).float(), owners, texts, strict=True)
        self.entries.extend(entries)

    def batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
        """Means and standard deviations [B, C, h, w] of latents, the owners of their cells, and captions."""
        first = self.batch_size * self.AHEAD
        self.refill(rng, first if len(self.entries) < first else -(-self.batch_size // self.REUSE))
        chosen = [self.entries[int(i)] for i in rng.choice(len(self.entries), self.batch_size, replace=False)]
        means, stds, owners, texts = zip(*chosen, strict=True)
        return torch.stack(means), torch.stack(stds), torch.stack(owners), list(texts)


class DenoiserLoss(nn.Module):
    def __init__(self, family: Family, pool: LatentPool) -> None:
        super().__init__()
        self.family, self.pool = family, pool

    def forward(self, rng: np.random.Generator, noise: torch.Generator):
        mean, std, owners, texts = self.pool.batch(rng)

        def random(*shape: int, draw=torch.randn) -> torch.Tensor:
            return draw(*shape, generator=noise, device=mean.device)

        latents, e = mean + std * random(*mean.shape), random(*mean.shape)
        # One stratum of the times each: less variance in the loss for the same batch.
        count = len(texts)
        shares = (torch.arange(count, device=mean.device) + random(count, draw=torch.rand)) / count
        return self.family.loss(latents, e, shares, texts, owners)


def captioned(rng: np.random.Generator) -> tuple[str, Scene, str]:
    """A caption to train on, empty where it is dropped, its scene, and the quality to draw it in: low, high or plain."""
    # Every number of objects gets an equal share of the objects drawn, so that the large shapes of small scenes are seen
    # as often as the small ones of crowded scenes: scenes of n objects come up in proportion to 1 / n.
    numbers = np.arange(MIN_OBJECTS, MAX_OBJECTS + 1)
    number = int(rng.choice(numbers, p=(1 / numbers) / (1 / numbers).sum()))
    scene = sample_scene(rng, number)
    if scene.kind == "rows" and rng.random() < 0.5:
        scene = sample_scene(rng, number)  # a second chance of a relation or a free scene: they are learned last
    text, chance = caption(scene, rng), rng.random()
    if chance < EMPTY:
        # Guidance leads away from what goes without a caption, and it is not to lead away from flaws.
        return "", scene, "high"
    if chance < EMPTY + LOW_QUALITY:
        return QUALITY_PREFIX["low"].format(text), scene, "low"
    if chance < EMPTY + LOW_QUALITY + HIGH_QUALITY:
        return QUALITY_PREFIX["high"].format(text), scene, "high"
    return text, scene, "plain"


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
        return DenoiserLoss(family, LatentPool(vae, family.batch_size, worker.device, shrink))

    common: dict[str, Any] = {"batch_size": family.batch_size, "seed": worker.seed, **family.recipe}
    if family.small_images and not onward:
        small = Recipe(images=family.small_images, cooldown=0.1, **common)
        fit(worker, family, loss(shrink=2), small, runs / f"{name}-small")

    guidance = GUIDANCE[f"shapes-{name}"]

    def preview(_, path: Path) -> None:
        pipe = family.pipeline(vae)
        pipe.set_progress_bar_config(disable=True)
        numbers = [2, 3, 4, 6, 9, 16] * 2
        scenes = [sample_scene(np.random.default_rng([9, i]), n, held_out=True) for i, n in enumerate(numbers)]
        with autocast(worker.device):
            images = list(
                sample_images(pipe, [caption(scene) for scene in scenes], range(len(scenes)), guidance_scale=guidance)
            )
        contact_sheet(np.stack(images), 6).save(path)

    recipe = Recipe(images=images, **common)
    fit(worker, family, loss(shrink=1), recipe, runs / run_of(name, onward), preview=preview, preview_every=25_000)
    if worker.rank == 0:
        export_denoiser(name, runs, onward, weights)


def export_denoiser(name: str, runs: Path, onward: bool = False, weights: Path = WEIGHTS) -> None:
    """Write the newest checkpoint's averaged parts as a folder that ``from_pretrained`` reads."""
    from diffusers import AutoencoderKL

    family: Any = averaged(FAMILIES[name](weights / name, weights / "sd"), runs / run_of(name, onward))
    vae = AutoencoderKL.from_pretrained(family.autoencoder_folder)
    vae.register_to_config(_name_or_path=f"shapes-{name}")  # in place of the folder on this machine
    with whole_folder(weights / name) as folder:
        family.half().pipeline(vae.half()).save_pretrained(folder)
