"""Train the embedded models from scratch: ``python -m lotts.shapes.train {vae,decoder,sd,verifier}``.

``sd`` is the pipeline ``shapes-sd`` (a tokenizer and an autoencoder first, where they are not there yet, then the text
encoder and the U-Net together). ``decoder`` goes on training the autoencoder's decoder alone, which leaves the latents
as they are. ``verifier`` trains the reward model on drawings and on samples that it first draws with ``shapes-sd``. Runs
live in --runs, one folder a model, and resume; finished weights are exported to the package as fp16 safetensors.
"""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from lotts.shapes import build
from lotts.shapes.draw import draw
from lotts.shapes.loop import Recipe, Worker, autocast, averaged, fit, launch
from lotts.shapes.sampling import on_all_cores, sample_images
from lotts.shapes.scenes import MAX_OBJECTS, MIN_OBJECTS, QUALITY_PREFIX, Scene, caption, sample_scene
from lotts.shapes.train_reward import export_reward, train_reward

WEIGHTS = Path(__file__).parent / "weights"
VAE_IMAGES, DECODER_IMAGES, SD_IMAGES, VERIFIER_IMAGES = 32_000, 16_000, 400_000, 80_000
LOW_QUALITY, HIGH_QUALITY, EMPTY = 0.15, 0.2, 0.1  # shares of captions; the rest is plain
PLAIN_DAMAGED = 0.08  # plain captions describe the world as it is: some of its pictures are flawed


def pixels(images: list[np.ndarray], device: torch.device) -> torch.Tensor:
    """uint8 [H, W, 3] pictures to [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(batch: torch.Tensor) -> np.ndarray:
    """[B, 3, H, W] in [-1, 1] to uint8 [B, H, W, 3]."""
    return ((batch.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def contact_sheet(images: np.ndarray, columns: int = 6) -> Image.Image:
    rows = [np.concatenate(list(images[i : i + columns]), 1) for i in range(0, len(images) - columns + 1, columns)]
    return Image.fromarray(np.concatenate(rows, 0))


# --- the autoencoder


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


def train_vae(worker: Worker, runs: Path, images: int) -> None:
    torch.manual_seed(worker.seed)
    vae = build.autoencoder().to(worker.device)
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

    fit(worker, vae, loss, recipe, runs / "vae", preview=preview, preview_every=5_000)
    if worker.rank == 0:
        export_vae(runs)


def export_vae(runs: Path, weights: Path = WEIGHTS / "sd") -> None:
    """Write the averaged autoencoder, with the scaling factor that brings its latents to unit variance."""
    vae: Any = averaged(build.autoencoder(), runs / "vae")
    rng = np.random.default_rng(1)
    with torch.no_grad():
        x = pixels([draw(sample_scene(rng), rng).image for _ in range(256)], torch.device("cpu"))
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in x.split(32)])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    vae.half().save_pretrained(weights / "vae")


def train_decoder(worker: Worker, runs: Path, images: int) -> None:
    """Polish the decoder on the finished encoder's latents."""
    from diffusers import AutoencoderKL

    torch.manual_seed(worker.seed)
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "sd" / "vae", torch_dtype=torch.float32).to(worker.device)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    recipe = Recipe(
        images=images,
        batch_size=4,
        learning_rate=1e-3,
        warmup=400,
        cooldown=0.5,
        weight_decay=1e-4,
        seed=worker.seed + 1,
    )
    fit(worker, vae, AutoencoderLoss(vae, recipe, worker.device), recipe, runs / "decoder")
    if worker.rank == 0:
        export_decoder(runs)


def export_decoder(runs: Path, weights: Path = WEIGHTS / "sd" / "vae") -> None:
    """Write the autoencoder with its polished decoder; the encoder and the scaling factor stay as they were."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(weights, torch_dtype=torch.float32)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    averaged(vae, runs / "decoder")
    vae.half().save_pretrained(weights)


# --- the text encoder and the U-Net


class Denoiser(nn.Module):
    """The two parts that train together, under one roof for the optimiser and the checkpoint."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.text_encoder = build.text_encoder(vocab_size)
        self.unet = build.unet()


class DenoiserLoss(nn.Module):
    """v-prediction on latents drawn as training goes.

    Encoded pictures wait in a pool and are each used about ``REUSE`` times, under new noise, before fresh ones replace
    them: drawing and encoding then cost a tenth of a training step.
    """

    REUSE, POOL = 6, 12_288

    def __init__(self, model: Denoiser, vae, tokenizer, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        self.model, self.vae, self.tokenizer = model, vae, tokenizer
        self.batch, self.device = recipe.batch_size, device
        self.pool: collections.deque[tuple[torch.Tensor, torch.Tensor, str]] = collections.deque(maxlen=self.POOL)
        self.alphas = build.scheduler().alphas_cumprod.to(device)

    def refill(self, rng: np.random.Generator, count: int) -> None:
        images, texts = [], []
        for _ in range(count):
            text, scene, damaged = _captioned(rng)
            images.append(draw(scene, rng, damaged=damaged).image)
            texts.append(text)
        with torch.no_grad():
            posterior = self.vae.encode(pixels(images, self.device)).latent_dist
        scale = self.vae.config.scaling_factor
        self.pool.extend(zip((posterior.mean * scale).float(), (posterior.std * scale).float(), texts, strict=True))

    def forward(self, rng: np.random.Generator, noise: torch.Generator):
        self.refill(rng, -(-self.batch // self.REUSE) if len(self.pool) >= self.batch * 8 else self.batch * 8)
        chosen = [self.pool[int(i)] for i in rng.choice(len(self.pool), self.batch, replace=False)]
        mean, std = torch.stack([entry[0] for entry in chosen]), torch.stack([entry[1] for entry in chosen])
        texts = ["" if rng.random() < EMPTY else entry[2] for entry in chosen]
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(
            self.device
        )
        embeds = self.model.text_encoder(ids)[0]

        def normal() -> torch.Tensor:
            return torch.randn(mean.shape, generator=noise, device=self.device)

        latents, e = mean + std * normal(), normal()
        # One stratum of the timestep range each: less variance in the loss for the same batch.
        t = (
            torch.arange(self.batch, device=self.device) + torch.rand(self.batch, generator=noise, device=self.device)
        ) / self.batch
        t = (t * 1000).long().clamp(max=999)
        a = self.alphas[t].sqrt().view(-1, 1, 1, 1)
        s = (1 - self.alphas[t]).sqrt().view(-1, 1, 1, 1)
        predicted = self.model.unet(a * latents + s * e, t, embeds).sample.float()
        value = (predicted - (a * e - s * latents)).square().mean()
        return value, {}


def _captioned(rng: np.random.Generator) -> tuple[str, Scene, bool]:
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


def train_sd(worker: Worker, runs: Path, images: int, onward: bool = False, weights: Path = WEIGHTS / "sd") -> None:
    """From scratch, or ``onward`` from the weights in the package."""
    from diffusers import AutoencoderKL

    torch.manual_seed(worker.seed)
    tokenizer = build.load_tokenizer(weights / "tokenizer")
    vae = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32).to(worker.device).eval()
    model = Denoiser(len(tokenizer)).to(worker.device)
    if onward:
        for name in ("text_encoder", "unet"):
            part: Any = getattr(model, name)
            part.load_state_dict(type(part).from_pretrained(weights / name, torch_dtype=torch.float32).state_dict())
    recipe = Recipe(images=images, batch_size=16, learning_rate=1e-3, warmup=10_000, seed=worker.seed, ema=0.9995)
    loss = DenoiserLoss(model, vae, tokenizer, recipe, worker.device)

    def preview(_, path: Path) -> None:
        pipe = build.pipeline(vae, model.text_encoder, tokenizer, model.unet)
        pipe.set_progress_bar_config(disable=True)
        scenes = [
            sample_scene(np.random.default_rng([9, i]), n, held_out=True) for i, n in enumerate([2, 3, 4, 6, 9, 16] * 2)
        ]
        with autocast(worker.device):
            out = pipe(
                [caption(scene) for scene in scenes],
                num_inference_steps=20,
                guidance_scale=3.0,
                generator=[torch.Generator().manual_seed(i) for i in range(len(scenes))],
                output_type="np",
            ).images
        contact_sheet((out * 255).round().astype(np.uint8), 6).save(path)

    fit(worker, model, loss, recipe, runs / "sd", preview=preview, preview_every=25_000)
    if worker.rank == 0:
        export_sd(runs, weights)


def export_sd(runs: Path, weights: Path = WEIGHTS / "sd") -> None:
    """Write the averaged text encoder and U-Net beside the autoencoder as a folder that ``from_pretrained`` reads."""
    from diffusers import AutoencoderKL

    tokenizer = build.load_tokenizer(weights / "tokenizer")
    model = averaged(Denoiser(len(tokenizer)), runs / "sd")
    vae = AutoencoderKL.from_pretrained(weights / "vae")
    build.pipeline(vae.half(), model.text_encoder.half(), tokenizer, model.unet.half()).save_pretrained(weights)


# --- the verifier


def draw_samples(runs: Path, count: int, processes: int | None) -> Path:
    """Samples of ``shapes-sd`` on training prompts, for the verifier to learn from; drawn once, kept in ``runs``."""
    folder = runs / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    shards = [(folder / f"{i:04d}.npz", i) for i in range(-(-count // 64))]
    on_all_cores(_draw_shards, [(path, i) for path, i in shards if not path.exists()], chunk=1, processes=processes)
    return folder


def _draw_shards(shards: list[tuple[Path, int]]) -> list[Path]:
    from lotts.models import load_pipeline

    pipe = load_pipeline("shapes-sd")
    for path, index in shards:
        rng = np.random.default_rng([17, index])
        texts = [caption(sample_scene(rng), rng) for _ in range(64)]
        # Fewer steps and weaker guidance at times: the verifier should know the faults of hasty samplers too.
        steps, guidance = int(rng.integers(8, 21)), float(rng.uniform(1.5, 4.0))
        seeds = rng.integers(2**31, size=64).tolist()
        images = np.stack(list(sample_images(pipe, texts, seeds, steps=steps, guidance_scale=guidance)))
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez_compressed(file, images=images, captions=np.array(texts))
        path.with_suffix(".tmp").replace(path)
    return [path for path, _ in shards]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lotts.shapes.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=["vae", "decoder", "sd", "verifier"])
    parser.add_argument("--images", type=int, help="training budget in pictures (default: the recipe's)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints, logs and samples (default: runs)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--processes", type=int, help="processes on the CPU (default: one a core)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=4096, help="generated pictures the verifier learns from")
    parser.add_argument(
        "--onward", action="store_true", help="sd: start from the weights in the package instead of from scratch"
    )
    parser.add_argument(
        "--export-only", action="store_true", help="write the weights of the newest checkpoint and stop"
    )
    args = parser.parse_args(argv)
    runs = args.runs / "shapes"
    if args.export_only:
        {"vae": export_vae, "decoder": export_decoder, "sd": export_sd, "verifier": export_reward}[args.model](runs)
        return
    common = {"device": args.device, "processes": args.processes, "seed": args.seed}
    if args.model == "vae" or not (WEIGHTS / "sd" / "vae").exists():
        launch(train_vae, runs, args.images if args.model == "vae" and args.images else VAE_IMAGES, **common)
    if args.model == "decoder":
        launch(train_decoder, runs, args.images or DECODER_IMAGES, **common)
    if args.model == "sd":
        if not (WEIGHTS / "sd" / "tokenizer").exists():
            build.write_tokenizer(WEIGHTS / "sd" / "tokenizer")
        launch(train_sd, runs, args.images or SD_IMAGES, args.onward, **common)
    if args.model == "verifier":
        samples = draw_samples(runs, args.samples, args.processes) if args.samples else None
        launch(train_reward, runs, args.images or VERIFIER_IMAGES, samples, **common)


if __name__ == "__main__":
    main()
