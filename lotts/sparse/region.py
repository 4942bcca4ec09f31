"""Which tokens a refinement computes: the mask on a grid of tokens, grown to whole tiles, and the order that puts it first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

#: What a mask is grown to a multiple of, where the picture is large enough for that to cost little.
TILE = 128
#: The largest share of a picture's tokens that a tile may be.
TILE_SHARE = 32


@dataclass(frozen=True)
class Region:
    """The masked tokens of B samples on one grid of N tokens.

    Args:
        order: int64 [B, N], every token of a sample: its masked ones first, then by distance from them.
        own: how many of them are a sample's own: its mask, grown by the nearest tokens to a multiple of ``tile(N)``.
        owned: ``own`` on the device of ``order``, so that no layer has to copy it there.
        size: how many are computed for every sample: the most that one of them owns. What a sample has beyond its own rides
            along, so that a batch has one shape; nothing attends to it as computed and nothing keeps it.
    """

    order: torch.Tensor
    own: tuple[int, ...]
    owned: torch.Tensor
    size: int

    @classmethod
    def of(cls, masks: torch.Tensor) -> Region:
        """From bool masks [B, h, w]. A sample's own tokens depend on its mask alone, never on the batch."""
        tokens = masks.shape[1] * masks.shape[2]
        step = tile(tokens)
        counts = masks.flatten(1).sum(1).tolist()
        own = tuple(min(tokens, -(-count // step) * step) for count in counts)
        return cls(nearest_first(masks), own, torch.tensor(own, device=masks.device), max(own))

    @property
    def tokens(self) -> int:
        return self.order.shape[1]

    @property
    def whole(self) -> bool:
        """Whether every sample needs all tokens, so that nothing is stored. Where only some do, all are computed for the others too."""
        return self.common >= self.tokens

    @property
    def common(self) -> int:
        """How many of the first tokens every sample owns."""
        return min(self.own)

    def select(self, values: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """``values`` [R, N, ...] at places ``start`` to ``stop`` of the order; R is a multiple of B, samples in turn."""
        index = self._index(values, self.order[:, start:stop])
        return torch.take_along_dim(values, index, dim=1)

    def place(self, fresh: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
        """``background`` [R, N, ...] with the samples' own tokens replaced by ``fresh`` [R, n, ...], the first in order."""
        count = fresh.shape[1]
        fresh = self.keep_own(fresh, self.select(background, 0, count))
        return background.scatter(1, self._index(fresh, self.order[:, :count]).expand_as(fresh), fresh)

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` [R, N, ...] of all tokens in this order, as they lie."""
        return torch.empty_like(values).scatter(1, self._index(values, self.order).expand_as(values), values)

    def keep_own(self, fresh: torch.Tensor, stored: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Of ``fresh`` [R, n, ...], at places ``start`` on, what is the sample's own; elsewhere ``stored``, of the same shape."""
        if self.common == self.size:
            return fresh
        places = torch.arange(start, start + fresh.shape[1], device=fresh.device)
        mine = (places < self.owned[:, None]).repeat(fresh.shape[0] // len(self.own), 1)
        return torch.where(_as_wide(mine, fresh), fresh, stored)

    def _index(self, values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        groups = values.shape[0] // order.shape[0]
        return _as_wide(order.repeat(groups, 1), values)


def _as_wide(rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``rows`` [B, n] with an axis of one for each further axis of ``values`` [B, m, ...]."""
    return rows.view(*rows.shape, *[1] * (values.ndim - 2))


def tile(tokens: int) -> int:
    """What masks on a grid of so many tokens are grown to a multiple of: ``TILE``, less on small grids."""
    return max(1, min(TILE, tokens // TILE_SHARE))


def nearest_first(masks: torch.Tensor) -> torch.Tensor:
    """Tokens int64 [B, N] of bool masks [B, h, w] by their distance from the mask in moves of a king; ties row by row."""
    reached = masks[:, None].to(torch.float32)
    distance = torch.zeros_like(reached)
    for _ in range(max(masks.shape[1:])):
        distance += reached == 0
        reached = F.max_pool2d(reached, 3, 1, 1)
    return distance.flatten(1).argsort(dim=1, stable=True)


def on_grid(masks: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """bool [B, *grid]: a token is masked when any cell under it is."""
    if tuple(masks.shape[1:]) == grid:
        return masks
    return F.adaptive_max_pool2d(masks[:, None].to(torch.float32), grid)[:, 0] > 0
