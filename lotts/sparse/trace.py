"""A base run's keys, values and hidden states, step by step: what surrounds a refinement that never looks at the background."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lotts.backbones import Backbone
from lotts.capture.patch import attention_modules, compiled_blocks, overheard_attention, replaced, uncompiled
from lotts.cost import Cost
from lotts.sparse.sites import Site, find_sites
from lotts.sparse.store import Store, over_budget, stored_bytes


class Trace:
    """Records steps of a batch of B candidates on latents of ``size``; what the network computes is unchanged, bit for bit.

    Args:
        steps: those that refinements will pass through masked.
        batch: B.
    """

    def __init__(self, backbone: Backbone, size: tuple[int, int], steps: range, batch: int, offload: bool) -> None:
        self.attention, self.steps, self.batch = attention_modules(backbone.network), steps, batch
        self.blocks = compiled_blocks(backbone.network)
        self.sites, _ = find_sites(backbone.network, size)
        self.store = Store(backbone.device, offload)
        self._call: dict[str, int] = {}

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        """Context of the network's prediction at a step. Works inside a capture."""
        if index not in self.steps:
            yield
            return
        handlers = {name: _Listener(self, index, site, name) for site in self.sites for name in site.layers}
        with ExitStack() as stack:
            for site in self.sites:
                self._call[site.name] = -1
                first, last = site.blocks[0], site.blocks[-1]
                stack.enter_context(replaced(first, forward=self._counting(first.forward, site)))
                stack.enter_context(replaced(last, forward=self._kept_output(last.forward, index, site)))
            stack.enter_context(uncompiled(self.blocks))
            stack.enter_context(overheard_attention(self.attention, handlers))
            yield

    def put(self, index: int, site: Site, name: str, *tensors: torch.Tensor) -> None:
        self.store.put((index, (site.name, (self._call[site.name], name))), *tensors)

    @staticmethod
    def rows(traces: Sequence[tuple[Trace, int]], index: int, key: Any) -> tuple[torch.Tensor, ...]:
        """The samples' rows [G * B, N, ...] of what was kept under ``key``: all of the first kind of row, then of the second."""
        # Samples of one batch share its trace, which may lie in the CPU's memory.
        fetched = {id(trace): trace.store.get((index, key)) for trace in dict.fromkeys(trace for trace, _ in traces)}
        found = [fetched[id(trace)] for trace, _ in traces]
        parts = []
        for part in range(len(found[0])):
            own = [
                tensors[part].unflatten(0, (-1, trace.batch))[:, row]
                for tensors, (trace, row) in zip(found, traces, strict=True)
            ]
            parts.append(torch.stack(own, dim=1).flatten(0, 1))
        return tuple(parts)

    def _counting(self, original: Callable[..., Any], site: Site) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._call[site.name] += 1
            return original(*args, **kwargs)

        return forward

    def _kept_output(self, original: Callable[..., Any], index: int, site: Site) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            returned = original(*args, **kwargs)
            self.put(index, site, "", returned[-1] if isinstance(returned, tuple) else returned)
            return returned

        return forward


class _Listener:
    """Keeps the keys and values of the image's tokens, as attention gets them."""

    def __init__(self, trace: Trace, index: int, site: Site, name: str) -> None:
        self.trace, self.index, self.site, self.name = trace, index, site, name

    def attend(self, native, query, key, value, *args, **kwargs) -> torch.Tensor:
        """See ``lotts.capture.patch.AttentionHandler``."""
        start = self.site.image_start(key.shape[2], self.site.tokens)
        image = slice(start, start + self.site.tokens)
        self.trace.put(self.index, self.site, self.name, *(t.transpose(1, 2)[:, image] for t in (key, value)))
        return native(query, key, value, *args, **kwargs)


def plan_trace(
    backbone: Backbone, size: tuple[int, int], steps: range, rows: int, offload: bool, cost: Cost
) -> Callable[[int], Trace] | None:
    """A maker of traces of batches of ``rows`` network rows in all, or None, told in ``cost``, where they do not fit in memory."""
    sites, _ = find_sites(backbone.network, size)
    needed = len(steps) * sum(stored_bytes(site, None, rows, backbone.dtype) for site in sites)
    reason = over_budget(needed, backbone.device, offload)
    if reason is not None:
        cost.tell(f"stale instead of trace: {reason}")
        return None
    place = "the CPU's memory" if offload else f"memory of the {backbone.device.type}"
    cost.tell(f"trace: up to {needed / 2**20:.0f} MiB of keys and values in {place}", loud=False)
    cost.stored_bytes = max(cost.stored_bytes, needed)
    return lambda batch: Trace(backbone, size, steps, batch, offload)
