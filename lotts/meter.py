"""The clock and the memory gauge of a run."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lotts.cost import STAGES, Cost


class Meter:
    """Writes the seconds and the peak memory since its making into a ``Cost``.

    Peaks are counters of the process or of the device: of two meters at once the later one resets them.
    """

    def __init__(self, cost: Cost, device: torch.device) -> None:
        self.cost, self.device = cost, device
        self._memory = _DeviceMemory(device) if device.type == "cuda" else _ProcessMemory()
        self._began = time.perf_counter()
        self._inside = 0.0  # seconds that stages within the present one took

    def read(self) -> Cost:
        """Bring ``seconds`` and ``peak_bytes`` up to date."""
        self.cost.seconds = time.perf_counter() - self._began
        self.cost.peak_bytes = self._memory.peak()
        return self.cost

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge what runs inside to a stage, until the device is through with it, but for stages inside of it."""
        if name not in STAGES:
            raise ValueError(f"expected a stage out of {', '.join(STAGES)}, got {name!r}")
        began, before, self._inside = time.perf_counter(), self._inside, 0.0
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            took = time.perf_counter() - began
            self.cost.stages[name] = self.cost.stages.get(name, 0.0) + took - self._inside
            self._inside = before + took


class _DeviceMemory:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.reset_peak_memory_stats(device)
        self.resident = torch.cuda.memory_allocated(device)

    def peak(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) - self.resident


class _ProcessMemory:
    """The process's resident memory as Linux tells it; elsewhere nothing is known.

    What was freed before and kept by the allocator is resident too, and would hide what takes its place: glibc is asked
    to give it back first. Other C libraries have no such call, and keep little.
    """

    def __init__(self) -> None:
        self.resident: int | None = None
        peak_reset = Path("/proc/self/clear_refs")
        if not peak_reset.exists():
            return
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            peak_reset.write_text("5")  # the peak falls back to what is resident now
            self.resident = self._status("VmRSS")
        except OSError:
            pass

    def peak(self) -> int | None:
        highest = None if self.resident is None else self._status("VmHWM")
        return None if highest is None or self.resident is None else max(0, highest - self.resident)

    @staticmethod
    def _status(name: str) -> int | None:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
        return None
