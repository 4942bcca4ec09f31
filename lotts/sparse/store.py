"""What sparse steps keep of dense ones: keys, values and hidden states of the background, and the memory that they take."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lotts.sparse.region import Region
from lotts.sparse.sites import Site

#: Share of the memory that is free which stored tensors may fill.
BUDGET = 0.8


@dataclass
class Store:
    """Tensors by key. ``offload`` keeps them in the CPU's memory, pinned beside a CUDA device."""

    device: torch.device
    offload: bool = False
    tensors: dict[Hashable, tuple[torch.Tensor, ...]] = field(default_factory=dict)

    def put(self, key: Hashable, *tensors: torch.Tensor) -> None:
        """Copy ``tensors``, over those of the same key where there are any."""
        if key not in self.tensors:
            self.tensors[key] = tuple(self._room(tensor) for tensor in tensors)
        for room, tensor in zip(self.tensors[key], tensors, strict=True):
            room.copy_(tensor, non_blocking=True)

    def get(self, key: Hashable) -> tuple[torch.Tensor, ...]:
        """Beside the network; KeyError where nothing was put."""
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in self.tensors[key])

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        if not self.offload:
            return torch.empty_like(like, memory_format=torch.contiguous_format)
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self.device.type == "cuda")


def stored_bytes(site: Site, region: Region | None, rows: int, dtype: torch.dtype) -> int:
    """Bytes that one step of ``rows`` batch rows leaves of a stretch: of what lies outside the region, or, without one, of all."""
    outside = site.tokens - (0 if region is None else region.common)
    layers = site.layers.values()
    widths = sum(2 * getattr(attn, "inner_kv_dim", attn.inner_dim) for attn in layers)
    hidden = next(iter(layers)).query_dim
    return rows * dtype.itemsize * (outside * widths + site.tokens * hidden)


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on the device; None where that cannot be told."""
    if device.type == "cuda":
        # What PyTorch keeps for its next tensors is taken to the driver and free to us.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def over_budget(needed: int, device: torch.device, offload: bool) -> str | None:
    """Why so many bytes cannot be stored, or None when they can."""
    place = torch.device("cpu") if offload else device
    free = free_bytes(place)
    if free is None or needed <= BUDGET * free:
        return None
    advice = "" if offload or device.type == "cpu" else "; sparse_offload=True keeps them in the CPU's memory"
    return (
        f"stored keys and values would take {needed / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB that are free on the {place.type} "
        f"at most {BUDGET:.0%} are used{advice}"
    )
