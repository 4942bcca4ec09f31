"""A stretch of blocks at work: it records a step on all tokens, or runs on a region's beside what was recorded.

The blocks' code is diffusers' own. Before the first block tokens are put in the region's order and, in a sparse step, only
its own are kept; after the last they go back to their places. Between, each block works token by token, but for its
attention, which is handed to ``_Mixing``: there queries and keys get the rotary embedding of their places, and their norm in
the same pass; then the region's queries meet fresh keys of the region and stored ones of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from lotts.capture.patch import replaced
from lotts.kernels import norm_rope, region_attention
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
        self.norms = {name: norms for name, attn in site.layers.items() if (norms := _norms(attn)) and site.rotary}
        self.read: Read | None = None
        self.write: Write | None = None
        self.computed = 0
        self._call = -1
        self._tables: Tensors | None = None

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
            for norm in (norm for norms in self.norms.values() for norm in norms):
                stack.enter_context(replaced(norm, forward=_as_it_is))
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

    def placed(self, name: str, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and key [R, H, S, D] of a layer with the rotary embeddings of their tokens' places and, where the layer leaves
        that to us, normalised.
        """
        if self._tables is None:
            return query, key
        cos, sin, places = self._tables
        norms, text = self.norms.get(name, ()), self.site.image_start(query.shape[2], self.computed)
        turned = []
        for side, tokens in enumerate((query, key)):
            own: dict[str, Any] = {}
            if norms:
                own = {"eps": norms[side].eps, "weight": norms[side].weight}
            if len(norms) > 2:
                own |= {"prefix": text, "prefix_weight": norms[side + 2].weight}
            turned.append(norm_rope(tokens, cos, sin, places=places, **own))
        return turned[0], turned[1]

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
        whole = self.region.restore(hidden)
        if self.write is not None:
            self.write(self.key(""), whole)
        return whole

    def _rotary(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(ids: torch.Tensor) -> None:
            """No tables, so that the blocks do not rotate: rows of a batch have their tokens in orders of their own."""
            text = len(ids) - self.site.tokens
            image = text + self.region.order[:, : self.computed]
            first = torch.arange(text, device=image.device).expand(len(image), -1)
            self._tables = (*original(ids), torch.cat([first, image], dim=1))

        return forward


def _norms(attn: Any) -> tuple[nn.RMSNorm, ...]:
    """Of query and key, then of the text's where it has its own: norms whose part ``norm_rope`` can take, else none.

    An IP-Adapter reads what is normalised, and what offloading moves in with a norm's ``forward`` is not there without it.
    """
    if type(attn.processor).__name__ != "FluxAttnProcessor":
        return ()
    names = ("norm_q", "norm_k") + (("norm_added_q", "norm_added_k") if attn.added_kv_proj_dim is not None else ())
    norms = tuple(getattr(attn, name) for name in names)
    plain = all(type(norm) is nn.RMSNorm and "forward" not in norm.__dict__ for norm in norms)
    hooked = any(norm._forward_hooks or norm._forward_pre_hooks for norm in norms)
    return norms if plain and not hooked and norms[0].eps is not None and len({norm.eps for norm in norms}) == 1 else ()


def _as_it_is(tokens: torch.Tensor) -> torch.Tensor:
    return tokens


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
        query, key = stretch.placed(self.name, query, key)
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
