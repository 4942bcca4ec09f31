"""Training and measuring the reward model (``python -m lotts.shapes.train verifier``)."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import nn

from lotts.shapes import reward
from lotts.shapes.loop import Recipe, Worker, averaged, fit, run_of
from lotts.shapes.reward import Answers, RewardModel, to_input
from lotts.shapes.reward_data import IGNORE, Picture, mirror, misquote, sample_picture, wear
from lotts.shapes.reward_queries import Queries
from lotts.shapes.reward_samples import samples
from lotts.shapes.scenes import MAX_OBJECTS

VAE = Path(__file__).parent / "weights" / "sd" / "vae"
# Shares of captions, of drawings, and of all pictures where samples are given.
MISQUOTED, DECODED, GENERATED = 0.45, 0.25, 0.6
VERIFIER_IMAGES = 180_000
# Weights in the loss: what objects and cells show, and the answers of early layers.
_SEEN, _CELLS, _EARLY = 0.3, 0.5, 0.3


@dataclass
class Batch:
    """Pictures [B, 3, 128, 128] in [-1, 1], their queries and labels (see ``Picture``), padded with IGNORE."""

    pictures: torch.Tensor
    queries: Queries
    right: torch.Tensor
    tidy: torch.Tensor
    seen: torch.Tensor
    cells: torch.Tensor

    @staticmethod
    def of(pictures: list[Picture], device: torch.device) -> Batch:
        right = np.full((len(pictures), MAX_OBJECTS), IGNORE)
        seen = np.full((len(pictures), MAX_OBJECTS, 3), IGNORE)
        for row, picture in enumerate(pictures):
            right[row, : len(picture.right)] = picture.right
            seen[row, : len(picture.seen)] = picture.seen
        images = torch.from_numpy(np.stack([p.image for p in pictures])).to(device)
        labels = (right, np.array([p.tidy for p in pictures]), seen, np.stack([p.cells for p in pictures]))
        return Batch(
            to_input(images),
            Queries.of([p.scene for p in pictures], device),
            *(torch.from_numpy(x).to(device) for x in labels),
        )


def answers_loss(answers: list[Answers], batch: Batch) -> torch.Tensor:
    """Cross-entropies of the objects and the scene; at a smaller weight, of what objects and cells show."""
    # A crowded picture says more than a sparse one, but not in proportion: its objects look alike.
    known = (batch.right != IGNORE).float()
    weight = known / known.sum(1, keepdim=True).clamp(min=1).sqrt()
    total = torch.zeros((), device=batch.right.device)
    for index, answer in enumerate(answers):
        share = 1.0 if index == len(answers) - 1 else _EARLY
        objects = _binary_loss(answer.objects, batch.right, weight)
        rest = _binary_loss(answer.scene, batch.tidy, (batch.tidy != IGNORE).float())
        looks = sum(_class_loss(logits, batch.seen[..., i]) for i, logits in enumerate(answer.seen))
        total = total + share * (objects + 0.5 * rest + _SEEN * looks)
    colour, shape, damage = answers[-1].cells
    hurt = _binary_loss(damage[..., 0], batch.cells[:, 2], (batch.cells[:, 2] != IGNORE).float())
    return total + _CELLS * (_class_loss(colour, batch.cells[:, 0]) + _class_loss(shape, batch.cells[:, 1]) + 2 * hurt)


def _binary_loss(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    value = F.binary_cross_entropy_with_logits(logits.float(), labels.clamp(min=0).float(), weight, reduction="sum")
    return value / weight.sum().clamp(min=1)


def _class_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    value = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return value / (labels != IGNORE).sum().clamp(min=1)


class RewardLoss(nn.Module):
    """Labelled pictures, made as training goes, and the loss on them.

    Pictures wait in a pool and each is used about ``REUSE`` times, half of them mirrored, under a fresh caption, drawings under
    fresh wear; where an autoencoder is given, a share of the drawings goes through it first, and where generated samples are given, a share
    of the pictures comes from those.
    """

    REUSE, POOL = 2, 4096

    def __init__(
        self, model: RewardModel, recipe: Recipe, worker: Worker, vae=None, generated: Sequence[Path] = ()
    ) -> None:
        super().__init__()
        self.model, self.vae, self.device, self.batch = model, vae, worker.device, recipe.batch_size
        self.generated = samples(generated, worker.seed, worker.rank) if generated else None
        self.pool: collections.deque[Picture] = collections.deque(maxlen=self.POOL)

    def refill(self, rng: np.random.Generator, count: int) -> None:
        drawn = count if self.generated is None else count - int(rng.binomial(count, GENERATED))
        fresh = [sample_picture(rng) for _ in range(drawn)]
        decoded = int(rng.binomial(drawn, DECODED)) if self.vae is not None else 0
        if decoded:
            fresh[:decoded] = round_trip(self.vae, fresh[:decoded], rng, self.device)
        if self.generated is not None:
            fresh += [next(self.generated) for _ in range(count - drawn)]
        self.pool.extend(fresh)

    def forward(self, rng: np.random.Generator, noise: torch.Generator):
        self.refill(rng, -(-self.batch // self.REUSE) if len(self.pool) >= self.batch * 8 else self.batch * 8)
        chosen = [self.pool[int(i)] for i in rng.choice(len(self.pool), self.batch, replace=False)]
        chosen = [mirror(p) if rng.random() < 0.5 else p for p in chosen]
        chosen = [misquote(p, rng) if rng.random() < MISQUOTED else p for p in chosen]
        batch = Batch.of([wear(p, rng) for p in chosen], self.device)
        answers = self.model(batch.pictures, batch.queries)
        known = batch.right != IGNORE
        hits = ((answers[-1].objects > 0) == (batch.right == 1))[known].float().mean()
        return answers_loss(answers, batch), {"hits": float(hits)}


@torch.no_grad()
def round_trip(vae, pictures: list[Picture], rng: np.random.Generator, device: torch.device) -> list[Picture]:
    """The pictures as the autoencoder gives them back, their latents a little off, as a sampler leaves them."""
    x = to_input(torch.from_numpy(np.stack([p.image for p in pictures])).to(device))
    latents = vae.encode(x).latent_dist.mode()
    amount = rng.uniform(0, 0.2, (len(pictures), 1, 1, 1)) / vae.config.scaling_factor
    latents = latents + torch.from_numpy((amount * rng.standard_normal(latents.shape)).astype(np.float32)).to(latents)
    decoded = (vae.decode(latents).sample.float().clamp(-1, 1) + 1) * 127.5
    images = decoded.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [replace(p, image=image) for p, image in zip(pictures, images, strict=True)]


def autoencoder(device: torch.device | str = "cpu"):
    """The trained autoencoder of the embedded pipelines, or None where there is none yet."""
    if not VAE.exists():
        return None
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(VAE, torch_dtype=torch.float32).to(device).eval().requires_grad_(False)


def train_reward(worker: Worker, runs: Path, images: int, generated: Sequence[Path] = (), onward: bool = False) -> None:
    """Train on ``images`` pictures, samples of the files ``generated`` among them where there are some, and export.

    It starts afresh, or ``onward`` from the verifier in the package.
    """
    torch.manual_seed(worker.seed)
    model = (reward.load().train() if onward else RewardModel()).to(worker.device)
    recipe = Recipe(images=images, batch_size=16, learning_rate=1.5e-3, warmup=1_500, cooldown=0.4, seed=worker.seed)
    loss = RewardLoss(model, recipe, worker, autoencoder(worker.device), generated)
    fit(worker, model, loss, recipe, runs / run_of("reward", onward))
    if worker.rank == 0:
        export_reward(runs, onward)


def export_reward(runs: Path, onward: bool = False, folder: Path = reward.FOLDER) -> None:
    """Write the averaged model of the newest checkpoint to the package."""
    model = RewardModel()
    averaged(model, runs / run_of("reward", onward))
    reward.save(model, folder)


# --- how good it is


def evaluate_reward(
    model: RewardModel, pictures: int = 512, seed: int = 0, vae=None, generated: Sequence[Path] = ()
) -> dict[str, float]:
    """Measure ``model`` on held-out drawings, or on samples of the files ``generated`` where there are some.

    Half of the drawings are misquoted; with ``vae`` each first goes through the autoencoder. Returns: ``auc`` over all
    objects, ``auc_whole`` and ``auc_misquoted`` (captions as drawn, so that faults are in the drawing, and changed);
    ``auc_rows``, ``auc_relation``, ``auc_free``; ``auc_scene`` of the scene's logit; ``spearman`` of the score with the
    share of objects right (pictures with stray paint count half an object less). Figures that lack one of the classes
    are left out.
    """
    rng = np.random.default_rng([seed, 77])
    if generated:
        source = samples(generated, seed)
        made = [next(source) for _ in range(pictures)]
    else:
        made = [sample_picture(rng, held_out=True) for _ in range(pictures)]
    if vae is not None:
        made = [p for i in range(0, pictures, 32) for p in round_trip(vae, made[i : i + 32], rng, torch.device("cpu"))]
    quoted = [misquote(p, rng) if not generated and i % 2 else p for i, p in enumerate(made)]
    logits, scene_logits, scores = [], [], []
    model.eval()
    with torch.no_grad():
        for start in range(0, pictures, 32):
            batch = Batch.of(quoted[start : start + 32], torch.device("cpu"))
            answer = model(batch.pictures, batch.queries)[-1]
            logits.append(answer.objects.numpy())
            scene_logits.append(answer.scene.numpy())
            scores.append(reward.score(answer, batch.queries.real).numpy())
    objects, scene_logit, total = (np.concatenate(part) for part in (logits, scene_logits, scores))
    right = np.concatenate([p.right for p in quoted])
    flat = np.concatenate([row[: len(p.right)] for row, p in zip(objects, quoted, strict=True)])
    groups = {
        "auc": [True] * pictures,
        "auc_whole": [q is p for q, p in zip(quoted, made, strict=True)],
        "auc_misquoted": [q is not p for q, p in zip(quoted, made, strict=True)],
        **{f"auc_{kind}": [p.scene.kind == kind for p in quoted] for kind in ("rows", "relation", "free")},
    }
    figures: dict[str, float] = {}
    for name, group in groups.items():
        chosen = np.repeat(group, [len(p.right) for p in quoted]) & (right != IGNORE)
        figures[name] = auc(flat[chosen], right[chosen] == 1)
    figures["auc_scene"] = auc(scene_logit, np.array([p.tidy for p in quoted]) == 1)
    known = [bool((p.right != IGNORE).any()) for p in quoted]
    judged = [p for p, k in zip(quoted, known, strict=True) if k]
    truth = np.array([p.right[p.right != IGNORE].mean() - (p.tidy == 0) * 0.5 / len(p.right) for p in judged])
    figures["spearman"] = spearman(total[known], truth)
    return {name: figure for name, figure in figures.items() if np.isfinite(figure)}


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a random positive scores above a random negative, ties half; NaN where either class is empty."""
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return float("nan")
    return float((ranks(scores)[positive].sum() - count * (count + 1) / 2) / (count * others))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation of two equally long arrays, ties at their mean rank; NaN where one is constant."""
    first, other = (r - r.mean() for r in (ranks(np.asarray(a)), ranks(np.asarray(b))))
    scale = np.sqrt((first**2).sum() * (other**2).sum())
    return float((first * other).sum() / scale) if scale else float("nan")


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
