"""What the network is conditioned on: prompts as embeddings, and how strongly they guide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Embedding:
    """B prompts as the network reads them: ``tokens`` [B, L, E] and, in families that have it, ``pooled`` [B, P]."""

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None

    def repeat(self, count: int) -> Embedding:
        """One prompt for ``count`` samples."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Embedding(self.tokens.expand(count, -1, -1), pooled)

    @staticmethod
    def cat(parts: Sequence[Embedding]) -> Embedding:
        """The rows of several, one after the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Embedding(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class Conditioning:
    """A batch of samples' conditioning.

    Args:
        positive: the prompt.
        negative: the negative prompt, where classifier-free guidance runs the network on both; else None.
        guidance_scale: of classifier-free guidance: ``negative + guidance_scale * (positive - negative)``.
        embedded_guidance: the guidance that a distilled network takes as an input; None where it takes none.
    """

    positive: Embedding
    negative: Embedding | None = None
    guidance_scale: float = 1.0
    embedded_guidance: float | None = None

    @property
    def guided(self) -> bool:
        return self.negative is not None

    def repeat(self, count: int) -> Conditioning:
        """The same text for ``count`` samples."""
        negative = None if self.negative is None else self.negative.repeat(count)
        return Conditioning(self.positive.repeat(count), negative, self.guidance_scale, self.embedded_guidance)

    def guide(self, rows: torch.Tensor) -> torch.Tensor:
        """Predictions [2B, ...], unconditional rows first, to guided ones [B, ...]; unguided rows are as they were."""
        if self.negative is None:
            return rows
        unconditional, conditional = rows.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)
