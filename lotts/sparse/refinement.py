"""Region-sparse refinement: masked steps that compute the masked tokens alone, beside what dense steps left of the others."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lotts.backbones import Backbone, Conditioning
from lotts.capture.patch import Model, attention_modules, compiled_blocks, is_patched, patched_attention, uncompiled
from lotts.cost import Cost
from lotts.sparse.config import record_steps
from lotts.sparse.flops import row_flops
from lotts.sparse.region import Region, on_grid
from lotts.sparse.sites import find_sites
from lotts.sparse.store import Store, over_budget, stored_bytes
from lotts.sparse.stretch import Stretch
from lotts.sparse.trace import Trace

CAPTURED = "dense: attention maps are captured at the same time"


@dataclass
class SparseRefinement:
    """One batch of refinements whose masked steps are sparse. Made by ``plan``.

    Args:
        attention: the network's attention modules by name.
        share: of a dense row's multiplications and additions that a sparse row takes, in (0, 1).
        rows: batch rows of a step.
        records: steps that run on all tokens and are recorded.
        blocks: run eagerly (``lotts.capture.patch.compiled_blocks``).
        traces: (trace of the base run, row in its batch) of each sample, instead of recorded steps.
    """

    attention: Model
    stretches: list[Stretch]
    store: Store
    cost: Cost
    share: float
    rows: int
    cells: int
    records: Sequence[int]
    blocks: Sequence[nn.Module] = ()
    traces: Sequence[tuple[Trace, int]] = ()
    _recorded: bool = False

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        """Context of the network's prediction at a masked step: sparse, or dense and recorded."""
        if is_patched(self.attention):
            self.cost.tell(CAPTURED)
            yield
            return
        record = not self.traces and (index in self.records or not self._recorded)
        ends = functools.partial(self._ends, index=index, record=record)
        with uncompiled(self.blocks), at_work(self.attention, self.stretches, ends):
            yield
        if record:
            self._recorded = True
        else:
            self.cost.spare(self.rows, self.cells, self.share)

    def _ends(self, stretch: Stretch, index: int, record: bool) -> dict[str, Any]:
        name = stretch.site.name
        if record:
            return {"write": lambda key, *tensors: self.store.put((name, key), *tensors)}
        if self.traces:
            return {"read": lambda key: self._traced(stretch, index, key)}
        return {"read": lambda key: self.store.get((name, key))}

    def _traced(self, stretch: Stretch, index: int, key: Any) -> tuple[torch.Tensor, ...]:
        """What the samples' base runs left at this step, in the region's order; hidden states as they lie."""
        found = Trace.rows(self.traces, index, (stretch.site.name, key))
        if key[1] == "":
            return found
        return tuple(stretch.region.select(tensor, stretch.region.common) for tensor in found)


@contextmanager
def at_work(network: Model, stretches: Sequence[Stretch], ends: Callable[[Stretch], dict[str, Any]]) -> Iterator[None]:
    """Context of a forward of ``network`` in which every stretch runs with the arguments that ``ends`` gives it."""
    with ExitStack() as stack:
        handlers: dict[str, Any] = {}
        for stretch in stretches:
            handlers |= stretch.handlers
            stack.enter_context(stretch.running(**ends(stretch)))
        stack.enter_context(patched_attention(network, handlers))
        yield


def plan(
    backbone: Backbone,
    masks: torch.Tensor,
    text: Conditioning,
    steps: range,
    *,
    mode: str,
    refresh_every: int | None,
    offload: bool,
    traces: Sequence[tuple[Trace, int] | None],
    cost: Cost,
) -> SparseRefinement | None:
    """Sparse execution of the masked ``steps`` of a batch, or None where they have to be dense; ``cost`` is then told why.

    Args:
        masks: bool [B, h, w], all cells that are ever refined.
        traces: of each sample, for ``mode`` "trace"; where one is missing the batch is "stale" instead.
    """
    # Nothing to spare, or nothing to do: the dense path, which is exact.
    if mode == "dense" or not steps or masks.all() or not masks.any():
        return None
    attention = attention_modules(backbone.network)
    if is_patched(attention):
        cost.tell(CAPTURED)
        return None
    height, width = masks.shape[1:]
    sites, refused = find_sites(backbone.network, (height, width))
    for name, reason in refused.items():
        cost.tell(f"dense: {name or type(backbone.network).__name__}: {reason}")
    # The sampler may keep the last masked prediction, and the next step is the whole picture's.
    remembers = backbone.linear_update(steps[-1]) is None
    traced = [trace for trace in traces if trace is not None] if mode == "trace" else []
    if mode == "trace" and (remembers or len(traced) < len(masks)):
        reason = (
            "the sampler keeps predictions or clamps them" if remembers else "the refined picture has no recorded run"
        )
        cost.tell(f"stale instead of trace: {reason}")
        traced = []
    regions = {site.grid: Region.of(on_grid(masks, site.grid)) for site in sites}
    chosen = [site for site in sites if not regions[site.grid].whole]
    if not chosen:
        return None
    rows = len(masks) * (2 if text.guided else 1)
    needed = 0 if traced else sum(stored_bytes(site, regions[site.grid], rows, backbone.dtype) for site in chosen)
    if (excess := over_budget(needed, backbone.device, offload)) is not None:
        cost.tell(f"dense: {excess}")
        return None
    cost.stored_bytes = max(cost.stored_bytes, needed)
    tokens = text.positive.tokens.shape[1]
    whole = row_flops(backbone.network, sites, (height, width), tokens)
    computed = {site.name: regions[site.grid].size for site in chosen}
    share = row_flops(backbone.network, sites, (height, width), tokens, computed) / whole
    records = record_steps(steps.start, steps.stop, refresh_every) + [steps[-1]] * remembers
    return SparseRefinement(
        attention,
        [Stretch(site, regions[site.grid]) for site in chosen],
        Store(backbone.device, offload),
        cost,
        share,
        rows,
        height * width,
        records,
        compiled_blocks(backbone.network),
        traced,
    )
