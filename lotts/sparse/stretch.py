"""A stretch of blocks at work: it records a step on all tokens, or runs on a region's beside what was recorded.

The blocks' code is diffusers' own. Before the first block tokens are put in the region's order and, in a sparse step, only
its own are kept; after the last they go back to their places. Between, each block works token by token, but for its
attention, which is handed to ``_Mixing``: there the region's queries meet fresh keys of the region and stored ones of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lotts.capture.patch import replaced
from lotts.kernels import region_attention
from lotts.sparse.region import Region
from lotts.sparse.sites import Site

Tensors = tuple[torch.Tensor, ...]
Read = Callable[[Hashable], Tensors]
Write = Callable[..., None]


class Stretch:
    """A site in one refinement. ``handlers`` are for ``lotts.capture.patch.patched_attention``, while it is ``running``."""

    def __init__(self, site: Site, region: Region) -> None:
        self.site, self.region = site, region
        self.handlers = {name: _Mixing(name, self) for name in site.layers}
        self.read: Read | None = None
        self.write: Write | None = None
        self.computed = 0
        self._call = -1
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    @contextmanager
    def running(self, *, read: Read | None = None, write: Write | None = None) -> Iterator[None]:
        """Within the context the blocks run on the region's tokens beside what ``read(key)`` gives or, without ``read``, on all
        tokens, of which ``write(key, *tensors)`` gets what is not the region's. The same forward of every step has the same keys.
        """
        self.read, self.write, self._call = read, write, -1
        self.computed = self.region.tokens if read is None else self.region.size
        with ExitStack() as stack:
            if self.site.rotary is not None:
                stack.enter_context(replaced(self.site.rotary, forward=self._rotary(self.site.rotary.forward)))
            first, last = self.site.blocks[0], self.site.blocks[-1]
            stack.enter_context(replaced(first, forward=self._entry(first.forward)))
            stack.enter_context(replaced(last, forward=self._exit(last.forward)))
            try:
                yield
            finally:
                self.read = self.write = self._tables = None

    def key(self, name: str) -> Hashable:
        """Of what a layer, or with "" the stretch, leaves in this forward: guided FLUX has two a step."""
        return self._call, name

    def rotated(self, tensor: torch.Tensor) -> torch.Tensor:
        """[R, H, S, D] with the rotary embeddings of its tokens' places, by diffusers' own function."""
        if self._tables is None:
            return tensor
        from diffusers.models.embeddings import apply_rotary_emb

        groups = tensor.shape[0] // self._tables[0].shape[0]
        tables = tuple(table.repeat(groups, 1, 1).flatten(0, 1) for table in self._tables)
        # One long sequence, since that function has one table for all rows.
        rows = tensor.transpose(1, 2)
        return apply_rotary_emb(rows.flatten(0, 1)[None], tables, sequence_dim=1)[0].view(rows.shape).transpose(1, 2)

    def _entry(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if hidden_states.shape[1] != self.site.tokens:
                raise RuntimeError(
                    f"{self.site.name or 'the transformer'} has {hidden_states.shape[1]} tokens, expected {self.site.grid}: the "
                    "network runs on latents of another size than the masks"
                )
            self._call += 1
            return original(self.region.select(hidden_states, 0, self.computed), *args, **kwargs)

        return forward

    def _exit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            returned = original(*args, **kwargs)
            if isinstance(returned, tuple):  # the text goes first
                return *returned[:-1], self._leave(returned[-1])
            return self._leave(returned)

        return forward

    def _leave(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.read is not None:
            return self.region.place(hidden, *self.read(self.key("")))
        whole = self.region.place(hidden, torch.empty_like(hidden))
        if self.write is not None:
            self.write(self.key(""), whole)
        return whole

    def _rotary(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(ids: torch.Tensor) -> None:
            """No tables, so that the blocks do not rotate: rows of a batch have their tokens in orders of their own."""
            tables, text = [], len(ids) - self.site.tokens
            for table in original(ids):
                image = table[text:][self.region.order[:, : self.computed]]
                tables.append(torch.cat([table[:text].expand(len(image), -1, -1), image], dim=1))
            self._tables = (tables[0], tables[1])

        return forward


class _Mixing:
    """The attention of one layer among the tokens of a stretch."""

    def __init__(self, name: str, stretch: Stretch) -> None:
        self.name, self.stretch = name, stretch

    def attend(
        self, native, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **kwargs
    ) -> torch.Tensor:
        """See ``lotts.capture.patch.AttentionHandler``."""
        if attn_mask is not None or dropout_p or is_causal or kwargs:
            raise RuntimeError(
                f"{self.name} attends under a mask, dropout or grouped queries, which a sparse step cannot: use sparse='dense'"
            )
        stretch = self.stretch
        query, key = stretch.rotated(query), stretch.rotated(key)
        start = stretch.site.image_start(query.shape[2], stretch.computed)
        common, size = stretch.region.common, stretch.region.size
        if stretch.read is None:
            if stretch.write is not None:
                outside = slice(start + common, start + stretch.region.tokens)
                stretch.write(stretch.key(self.name), *(t.transpose(1, 2)[:, outside] for t in (key, value)))
            return native(query, key, value, scale=scale)
        stored = stretch.read(stretch.key(self.name))
        if size > common:
            key, value = (
                self._own(fresh.transpose(1, 2), known, start).transpose(1, 2)
                for fresh, known in zip((key, value), stored, strict=True)
            )
        beside = [known[:, size - common :].transpose(1, 2) for known in stored]
        return region_attention(query, key, value, *beside, scale=scale)

    def _own(self, fresh: torch.Tensor, known: torch.Tensor, start: int) -> torch.Tensor:
        """Keys or values [R, S, H, D] with the stored ones where a token only rides along."""
        region = self.stretch.region
        first, last = start + region.common, start + region.size
        kept = region.keep_own(fresh[:, first:last], known[:, : region.size - region.common], region.common)
        return torch.cat([fresh[:, :first], kept, fresh[:, last:]], dim=1)
