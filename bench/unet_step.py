"""One denoising step of Stable Diffusion 2.1's UNet on a CPU, and the meter for it.

Imports neither lotts nor anything that imports it: the environment of a peer runs this too.
"""

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TOKENS, EMBEDDING = 77, 1024
#: Rows of a step: classifier-free guidance runs an unconditional and a conditional one.
ROWS = 2
PAGE = 4096


@dataclass(frozen=True)
class Sample:
    """One run. CPU seconds, of all threads, hold still when other work shares the machine; elapsed seconds do not."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def unet_and_inputs(small: bool, latent: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The UNet of Stable Diffusion 2.1 with random weights, on which time does not depend, latents and prompt embeddings.

    ``small`` takes a quarter of its width, to try the command out.
    """
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    width = 4 if small else 1
    unet = UNet2DConditionModel(
        sample_size=96,
        block_out_channels=tuple(channels // width for channels in (320, 640, 1280, 1280)),
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=EMBEDDING,
        use_linear_projection=True,
        norm_num_groups=32 // width,
    ).eval()
    return unet, torch.randn(ROWS, 4, latent, latent), torch.randn(ROWS, TOKENS, EMBEDDING)


def sampled(call: Callable[[], Any]) -> tuple[Any, Sample]:
    """What a call returns, with its time and the most memory it held above what the process held before."""
    with _peak_above_resident() as peak:
        start, cpu_start = time.perf_counter(), time.process_time()
        result = call()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return result, Sample(seconds, cpu_seconds, peak[0])


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


@contextmanager
def _peak_above_resident(interval: float = 0.005) -> Iterator[list[int]]:
    """Yields a list that holds, afterwards, the most bytes the process held above what it held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory of the step before would hide what this one takes
    before, peak, done = _resident_bytes(), 0, threading.Event()
    result: list[int] = []

    def watch() -> None:
        nonlocal peak
        while not done.wait(interval):
            peak = max(peak, _resident_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        done.set()
        thread.join()
        result.append(max(peak, _resident_bytes()) - before)
