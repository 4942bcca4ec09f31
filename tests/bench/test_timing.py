"""The GPU timer, on a stream that this file plays."""

import pytest
import torch

from bench import timing


def test_a_cuda_context_is_usable_until_it_says_otherwise(monkeypatch):
    assert timing.usable("cpu")

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert not timing.usable("cuda")
    assert timing.usable("cpu")


@pytest.mark.parametrize(("queuing", "tries"), [(1_000_000, 1), (5_000_000, 3), (1e12, 6)])
def test_a_call_that_takes_longer_to_queue_gets_a_longer_head_start(monkeypatch, queuing, tries):
    """A GPU whose events are reached after the head start, in cycles, and a call whose launches take ``queuing`` of them."""
    slept = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            pass

        def query(self):
            return slept[-1] < queuing

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return len(slept)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    timer = timing.GpuTimer.__new__(timing.GpuTimer)
    timer._flush = torch.empty(1)
    assert timer.device_seconds(lambda: None) == pytest.approx(tries * 1e-3)
    assert slept == [timing.HEAD_START * 2**i for i in range(tries)]
