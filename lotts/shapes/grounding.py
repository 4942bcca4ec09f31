"""Which words a piece of a drawing is about, and a loss that has attention look for them there.

A transformer learns from denoising alone which object each of its image tokens belongs to, but slowly: until a token
looks at the right words, nothing rewards it for reading them. Drawings know the answer, so attention can be told, as
TokenCompose (Wang et al., 2024) tells that of a U-Net.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from lotts.shapes.draw import SIDE, Drawing
from lotts.shapes.scenes import COLOURS, MAX_OBJECTS, SHAPES, SIZE_WORDS

_OBJECT = re.compile(rf"\b(?:(?:{'|'.join(SIZE_WORDS)}) )?(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})\b")


def owners_of(drawing: Drawing, cells: int) -> np.ndarray:
    """int64 [cells, cells]: the number, from 1, of the object that covers most of a cell; 0 for ground."""
    cover = drawing.objects.reshape(-1, cells, SIDE // cells, cells, SIDE // cells).mean((2, 4))
    return np.where(cover.max(0) > 0.15, cover.argmax(0) + 1, 0)


def words_of(texts: list[str], offsets: Any) -> torch.Tensor:
    """bool [B, 1 + MAX_OBJECTS, N]: which tokens name object 1, 2, ... of a caption of the grammar; none name object 0.

    ``offsets`` holds for each caption the N tokens' (start, end) in its letters, (0, 0) for special ones.
    """
    words = torch.zeros(len(texts), 1 + MAX_OBJECTS, len(offsets[0]), dtype=torch.bool)
    for row, text in enumerate(texts):
        starts, ends = torch.as_tensor(np.asarray(offsets[row])).unbind(-1)
        for number, (first, last) in enumerate((match.span() for match in _OBJECT.finditer(text)), 1):
            words[row, number] = (ends > starts) & (ends > first) & (starts < last)
    return words


class Grounding:
    """Attention of image tokens to the words of the object that they show, in the double blocks of a FLUX transformer.

    A context: what the blocks' attention asks and holds is kept within, for ``error`` to compare.
    """

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    def __enter__(self) -> Grounding:
        self.queries: list[torch.Tensor] = []
        self.keys: list[torch.Tensor] = []
        self.hooks = []
        for block in self.transformer.transformer_blocks:
            for norm, kept in ((block.attn.norm_q, self.queries), (block.attn.norm_added_k, self.keys)):
                self.hooks.append(norm.register_forward_hook(lambda *call, kept=kept: kept.append(call[-1])))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def error(self, places: torch.Tensor, owners: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Mean of -log of the share that a token of an object gives to its words, of what it gives to all words.

        Args:
            places: positions [T, 3] of the image tokens.
            owners: [B, T], the object that each shows, 0 for none.
            words: as from ``words_of``.
        """
        from diffusers.models.embeddings import apply_rotary_emb

        rotation = self.transformer.pos_embed(places)
        mine = words.gather(1, owners.unsqueeze(-1).expand(-1, -1, words.shape[-1]))
        shown = mine.any(-1)  # not of the captions that were dropped
        if not shown.any():
            return self.queries[0].new_zeros(())
        errors = []
        for query, key in zip(self.queries, self.keys, strict=True):
            # Text has no place, so its keys stay as they are.
            query = apply_rotary_emb(query, rotation, sequence_dim=1)
            scores = torch.einsum("bihd,bthd->bhit", query.float(), key.float()) * query.shape[-1] ** -0.5
            share = (scores.softmax(-1).mean(1) * mine).sum(-1)
            errors.append(-share[shown].clamp_min(1e-6).log().mean())
        return torch.stack(errors).mean()
