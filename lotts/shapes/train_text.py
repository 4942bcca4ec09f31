"""Training of the T5 of ``shapes-flux``: it learns to say of every word what the CLIP of ``shapes-sd`` says of it.

What that encoder knows of captions, which object stands where, took ``shapes-sd`` most of its training to find out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lotts.shapes.loop import Recipe, Worker, fit
from lotts.shapes.scenes import QUALITY_PREFIX, caption, sample_scene


class TextLoss(nn.Module):
    """Mean squared error of the hidden states [B, N, C] of ``student`` against those of ``teacher`` at the same words."""

    BATCH = 32

    def __init__(self, student: Any, student_tokenizer: Any, teacher: Any, teacher_tokenizer: Any) -> None:
        super().__init__()
        self.student, self.student_tokenizer = student, student_tokenizer
        self.teacher, self.teacher_tokenizer = teacher.requires_grad_(False), teacher_tokenizer

    def forward(self, rng: np.random.Generator, noise: torch.Generator):
        texts = []
        for _ in range(self.BATCH):
            template = ("{}", *QUALITY_PREFIX.values())[int(rng.choice(3, p=(0.6, 0.2, 0.2)))]
            texts.append(template.format(caption(sample_scene(rng), rng)) if rng.random() < 0.95 else "")
        device = noise.device
        read = {"padding": True, "return_tensors": "pt", "return_offsets_mapping": True}
        mine, theirs = self.student_tokenizer(texts, **read), self.teacher_tokenizer(texts, **read)
        said = self.student(mine.input_ids.to(device)).last_hidden_state
        with torch.no_grad():
            meant = self.teacher(theirs.input_ids.to(device)).last_hidden_state
        rows, columns, sources = same_words(mine, theirs)
        return (said[rows, columns].float() - meant[rows, sources].float()).square().mean(), {}


def same_words(mine: Any, theirs: Any) -> tuple[list[int], list[int], list[int]]:
    """Rows, columns of one tokenizer and columns of another whose tokens end at the same letter; then the texts' ends."""
    found = []
    pairs = zip(mine.offset_mapping, mine.attention_mask, theirs.offset_mapping, theirs.attention_mask, strict=True)
    for row, (my_spans, my_mask, their_spans, their_mask) in enumerate(pairs):
        where = {int(end): column for column, (start, end) in enumerate(their_spans) if end > start}
        found += [(row, column, where[int(end)]) for column, (start, end) in enumerate(my_spans) if int(end) in where]
        found.append((row, int(my_mask.sum()) - 1, int(their_mask.sum()) - 1))
    rows, columns, sources = (list(values) for values in zip(*found, strict=True))
    return rows, columns, sources


def train_text(worker: Worker, loss: TextLoss, folder: Path, captions: int) -> None:
    """Leave the student of ``loss`` as it is taught."""
    recipe = Recipe(
        images=captions, batch_size=loss.BATCH, learning_rate=2e-3, warmup=3_000, cooldown=0.5, seed=worker.seed
    )
    fit(worker, loss.student, loss, recipe, folder)
