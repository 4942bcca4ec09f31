"""Training of the T5 of ``shapes-flux``: it learns to say with every word of an object where and what that object is.

A transformer whose image tokens know their place only by the rotation of their queries can look for the words about that
place only if the words' keys say it in the same terms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lotts.shapes.draw import SIDE, place
from lotts.shapes.grounding import words_of
from lotts.shapes.loop import Recipe, Worker, fit
from lotts.shapes.scenes import COLOURS, MAX_OBJECTS, QUALITY_PREFIX, SHAPES, SIZES, caption, sample_scene


class TextLoss(nn.Module):
    """What a linear layer reads off each word [C] of an object: its centre, as phases, and its colour, shape and size.

    ``waves`` are the angles that one image token's width turns, of ``tokens`` a side.
    """

    BATCH = 32
    KINDS = (len(COLOURS), len(SHAPES), len(SIZES))
    waves: torch.Tensor

    def __init__(self, encoder: Any, tokenizer: Any, waves: torch.Tensor, tokens: int) -> None:
        super().__init__()
        self.encoder, self.tokenizer, self.tokens = encoder, tokenizer, tokens
        self.register_buffer("waves", waves, persistent=False)
        self.head = nn.Linear(encoder.config.d_model, 4 * len(waves) + sum(self.KINDS))

    def forward(self, rng: np.random.Generator, noise: torch.Generator):
        texts, kinds = [], torch.full((self.BATCH, 1 + MAX_OBJECTS, len(self.KINDS)), -1)
        centres = torch.zeros(self.BATCH, 1 + MAX_OBJECTS, 2)
        for row in range(self.BATCH):
            scene = sample_scene(rng)
            template = ("{}", *QUALITY_PREFIX.values())[int(rng.choice(3, p=(0.6, 0.2, 0.2)))]
            texts.append(template.format(caption(scene, rng)))
            for number, (item, spot) in enumerate(zip(scene.items, place(scene, rng), strict=True), 1):
                named = list(COLOURS).index(item.colour), SHAPES.index(item.shape), SIZES.index(item.size)
                kinds[row, number] = torch.tensor(named)
                centres[row, number] = torch.tensor([spot.y, spot.x]) / SIDE * self.tokens - 0.5
        read = self.tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)
        rows, numbers, columns = words_of(texts, read.offset_mapping).nonzero(as_tuple=True)
        said = self.head(self.encoder(read.input_ids.to(noise.device)).last_hidden_state[rows, columns]).float()
        phases, *named = said.split((4 * len(self.waves), *self.KINDS), dim=-1)
        angles = (centres[rows, numbers].to(noise.device).unsqueeze(-1) * self.waves).flatten(1)
        astray = (phases - torch.cat([angles.cos(), angles.sin()], -1)).square().mean()
        truth = kinds[rows, numbers].to(noise.device)
        misread = torch.stack([F.cross_entropy(n, t) for n, t in zip(named, truth.unbind(-1), strict=True)]).sum()
        return astray + 0.1 * misread, {"astray": float(astray.detach()), "misread": float(misread.detach())}


def train_text(worker: Worker, loss: TextLoss, folder: Path, captions: int) -> None:
    """Leave the encoder of ``loss`` as it is taught."""
    recipe = Recipe(
        images=captions, batch_size=loss.BATCH, learning_rate=2e-3, warmup=3_000, cooldown=0.5, seed=worker.seed
    )
    fit(worker, loss, loss, recipe, folder)
