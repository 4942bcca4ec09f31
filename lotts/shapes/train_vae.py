"""Training of the embedded pipelines' autoencoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from lotts.files import whole_folder
from lotts.shapes import build, build_flux
from lotts.shapes.draw import draw
from lotts.shapes.loop import Recipe, Worker, averaged, fit
from lotts.shapes.scenes import sample_scene

WEIGHTS = Path(__file__).parent / "weights"
AUTOENCODERS = {"sd": build.autoencoder, "flux": build_flux.autoencoder}
VAE_IMAGES = {"sd": 32_000, "flux": 16_000}


def pixels(images: list[np.ndarray], device: torch.device) -> torch.Tensor:
    """uint8 [H, W, 3] pictures to [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(batch: torch.Tensor) -> np.ndarray:
    """[B, 3, H, W] in [-1, 1] to uint8 [B, H, W, 3]."""
    return ((batch.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def contact_sheet(images: np.ndarray, columns: int = 6) -> Image.Image:
    rows = [np.concatenate(list(images[i : i + columns]), 1) for i in range(0, len(images) - columns + 1, columns)]
    return Image.fromarray(np.concatenate(rows, 0))


class AutoencoderLoss(nn.Module):
    """L1 on pixels and on their differences (edges), with a light KL term that keeps the latents near a unit normal."""

    KL, EDGES = 2e-4, 1.0

    def __init__(self, vae, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        self.vae: Any = vae
        self.batch, self.device = recipe.batch_size, device

    def forward(self, rng: np.random.Generator, noise: torch.Generator):
        scenes = [sample_scene(rng) for _ in range(self.batch)]
        x = pixels([draw(scene, rng, damaged=bool(rng.random() < 0.4)).image for scene in scenes], self.device)
        posterior = self.vae.encode(x).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(
            posterior.mean.shape, generator=noise, device=self.device
        )
        error = self.vae.decode(latents).sample.float() - x
        edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        value = error.abs().mean() + 0.3 * error.square().mean() + self.EDGES * edges + self.KL * kl
        return value, {"l1": float(error.detach().abs().mean()), "kl": float(kl.detach())}


def _run(name: str) -> str:
    return "vae" if name == "sd" else f"vae-{name}"


def train_vae(worker: Worker, name: str, runs: Path, images: int, weights: Path = WEIGHTS) -> None:
    """Train the autoencoder of ``name``: of ``sd`` from scratch, of others from what it shares with that one."""
    from diffusers import AutoencoderKL

    torch.manual_seed(worker.seed)
    vae: Any = AUTOENCODERS[name]()
    if name == "flux":
        build_flux.grow_autoencoder(
            AutoencoderKL.from_pretrained(weights / "sd" / "vae", torch_dtype=torch.float32), vae
        )
    vae.to(worker.device)
    recipe = Recipe(images=images, batch_size=4, learning_rate=2e-3, warmup=800, weight_decay=1e-4, seed=worker.seed)
    loss = AutoencoderLoss(vae, recipe, worker.device)
    fixed = [
        draw(sample_scene(np.random.default_rng([7, i])), np.random.default_rng([8, i]), damaged=i % 2 == 1).image
        for i in range(12)
    ]

    def preview(_, path: Path) -> None:
        x = pixels(fixed, worker.device)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample
        contact_sheet(to_images(torch.cat([x, y])), 12).save(path)

    fit(worker, vae, loss, recipe, runs / _run(name), preview=preview, preview_every=5_000)
    if worker.rank == 0:
        export_vae(name, runs, weights)


def export_vae(name: str, runs: Path, weights: Path = WEIGHTS) -> None:
    """Write the averaged autoencoder, with the scaling factor that brings its latents to unit variance."""
    vae: Any = averaged(AUTOENCODERS[name](), runs / _run(name))
    rng = np.random.default_rng(1)
    with torch.no_grad():
        x = pixels([draw(sample_scene(rng), rng).image for _ in range(256)], torch.device("cpu"))
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in x.split(32)])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    with whole_folder(weights / name / "vae") as folder:
        vae.half().save_pretrained(folder)
