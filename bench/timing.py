"""Fair timing: who runs takes turns, a GPU's cache is cold, and ratios are taken within a round."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

#: Clock cycles the GPU waits before a timed call, about a millisecond: by then the CPU is to have queued all of the call's
#: kernels, so that events time the device and not the launches. Where it has not, the call is timed again with twice the head
#: start, up to the most.
HEAD_START, MOST_HEAD_START = 2_000_000, 64_000_000


def usable(device: str) -> bool:
    """Whether the device still answers: after an illegal access no CUDA call of the process succeeds any more."""
    try:
        if device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def rounds_of(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, name), each name once a round, starting one place further each time.

    So a machine that slows down slows all alike, and nobody always runs after the same neighbour.
    """
    for i_round in range(rounds):
        first = i_round % len(names)
        yield from ((i_round, name) for name in [*names[first:], *names[:first]])


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    if len(values) == 1:
        return dict.fromkeys(("p20", "p50", "p80"), values[0])
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"p20": tenths[1], "p50": tenths[4], "p80": tenths[7]}


def median_ratio(values: Sequence[float], baseline: Sequence[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(value / base for value, base in zip(values, baseline, strict=True))


@dataclass
class Times:
    """Seconds of one provider: device time with a cold cache, and elapsed time of the call with a warm one."""

    device: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


class GpuTimer:
    """Times calls on the current CUDA device."""

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        # Twice the cache: what a call reads must not be there from the call before.
        self._flush = torch.empty(2 * max(cache, 64 << 20), dtype=torch.uint8, device="cuda")

    def device_seconds(self, call: Callable[[], Any]) -> float:
        """Between events, after the CPU's head start. Of a call with more kernels than a driver queues, record it first."""
        head_start = HEAD_START
        while True:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            torch.cuda._sleep(head_start)
            start.record()
            call()
            end.record()
            overtaken = start.query()  # the GPU began before all was queued
            end.synchronize()
            head_start *= 2
            if not overtaken or head_start > MOST_HEAD_START:
                return start.elapsed_time(end) * 1e-3

    def recorded(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call as a CUDA graph: its kernels follow each other without waiting for a CPU, in memory that stays theirs.

        What the call reads and writes outside must live as long as the graph.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def wall_seconds(self, call: Callable[[], Any]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def extra_bytes(self, call: Callable[[], Any]) -> int:
        """The most memory a call holds above what was held before it, its results included."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        del result
        return peak - before

    def interleaved(self, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
        """Each call's times over ``rounds``, after two rounds of warm-up."""
        times = {name: Times(device) for name, device in self.device_only(calls, rounds).items()}
        for _, name in rounds_of(list(calls), rounds):
            times[name].wall.append(self.wall_seconds(calls[name]))
        return times

    def device_only(self, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
        """Each call's device seconds, likewise."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for name in [*calls, *calls]:
            self.wall_seconds(calls[name])
        for _, name in rounds_of(list(calls), rounds):
            times[name].append(self.device_seconds(calls[name]))
        return times

    def roofline(self, megabytes: int = 1024, size: int = 8192, rounds: int = 20) -> dict[str, float]:
        """What this GPU reaches: bytes a second of a large copy, and multiply-adds (as 2) a second of a bfloat16 product."""
        source = torch.empty(megabytes << 20, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        product = torch.empty_like(a)
        calls = {"copy": lambda: target.copy_(source), "matmul": lambda: torch.mm(a, b, out=product)}
        times = self.interleaved(calls, rounds)
        return {
            "copy_bytes_per_second": 2 * source.numel() / statistics.median(times["copy"].device),
            "matmul_flops_per_second": 2 * size**3 / statistics.median(times["matmul"].device),
        }
