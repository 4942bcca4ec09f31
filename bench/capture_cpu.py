"""What capture costs on a CPU: one denoising step of Stable Diffusion 2.1's UNet, with attention maps and without.

    python -m bench.capture_cpu --json > bench/results/capture_cpu.json

The UNet has SD 2.1's shape and random weights: time does not depend on their values. A step has two rows, as under
classifier-free guidance, of which the second is recorded. Kinds of step alternate within one process, so that a
machine that slows down slows all of them.
"""

import argparse
import ctypes
import gc
import json
import platform
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lotts.capture import AttentionRecorder

TOKENS, EMBEDDING = 77, 1024
PAGE = 4096
KINDS = {"unpatched": None, "idle": (False, False), "cross": (True, False), "self": (False, True)}


def stable_diffusion_2_1() -> torch.nn.Module:
    """UNet2DConditionModel with the configuration of Stable Diffusion 2.1, fp32, random weights."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=96,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=EMBEDDING,
        use_linear_projection=True,
    ).eval()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


@contextmanager
def peak_above_resident(interval: float = 0.005) -> Iterator[list[int]]:
    """Yields a list that holds, afterwards, the most bytes the process held above what it held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory of the step before would hide what this one takes
    before, peak, done, result = resident_bytes(), 0, threading.Event(), []

    def watch() -> None:
        nonlocal peak
        while not done.wait(interval):
            peak = max(peak, resident_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        done.set()
        thread.join()
        result.append(max(peak, resident_bytes()) - before)


def measure(unet: torch.nn.Module, size: tuple[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Medians over `rounds` of each kind of step, after one round of warm-up; ratios are to the unpatched step.

    CPU seconds, of all threads, hold still when other work shares the machine; elapsed seconds do not.
    """
    latents, text = torch.randn(2, 4, *size), torch.randn(2, TOKENS, EMBEDDING)
    content = torch.zeros(1, TOKENS)
    content[:, 1:6] = 1
    quality = (torch.randn(1, TOKENS, EMBEDDING), content)
    recorder = AttentionRecorder(unet, content[..., None], quality, quality, latent_size=size)
    recorder.rows = slice(1, 2)
    recorder.columns = torch.rand(1, 2, *size)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu_seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    peaks: dict[str, list[int]] = {kind: [] for kind in KINDS}
    outputs = {}
    for i_round in range(rounds + 1):
        # Each kind takes each place in a round: what ran just before changes caches and the allocator's state.
        first = i_round % len(KINDS)
        for kind, switches in [*KINDS.items()][first:] + [*KINDS.items()][:first]:
            with peak_above_resident() as peak:
                start, cpu_start = time.perf_counter(), time.process_time()
                if switches is None:
                    outputs[kind] = unet(latents, 500, text).sample
                else:
                    recorder.record_cross, recorder.record_self = switches
                    with recorder:
                        outputs[kind] = unet(latents, 500, text).sample
                seconds[kind].append(time.perf_counter() - start)
                cpu_seconds[kind].append(time.process_time() - cpu_start)
            peaks[kind] += peak
    return {
        kind: {
            "seconds": statistics.median(seconds[kind][1:]),
            "time_ratio": _ratio(seconds[kind], seconds["unpatched"]),
            "cpu_time_ratio": _ratio(cpu_seconds[kind], cpu_seconds["unpatched"]),
            "peak_mib": statistics.median(peaks[kind][1:]) / 2**20,
            "peak_ratio": statistics.median(peaks[kind][1:]) / statistics.median(peaks["unpatched"][1:]),
            "output_difference": (outputs[kind] - outputs["unpatched"]).abs().max().item(),
        }
        for kind in KINDS
    }


def _ratio(values: list[float], baseline: list[float]) -> float:
    """Median over rounds of the ratio within a round, the warm-up left out."""
    return statistics.median(value / base for value, base in zip(values[1:], baseline[1:], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=8, help="measured rounds after one of warm-up (default 8)")
    parser.add_argument("--latent", type=int, default=64, help="height and width of the latents (default 64)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with torch.no_grad():
        steps = measure(stable_diffusion_2_1(), (arguments.latent, arguments.latent), arguments.rounds)
    if arguments.json:
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": platform.machine()}
        setting = {"latent": arguments.latent, "rows": 2, "rounds": arguments.rounds, "dtype": "float32"}
        print(json.dumps({"machine": machine, "setting": setting, "steps": steps}, indent=1))
        return
    print(f"{'step':<10} {'seconds':>8} {'ratio':>7} {'CPU ratio':>9} {'peak MiB':>9} {'ratio':>7}")
    for kind, row in steps.items():
        times = f"{row['seconds']:8.2f} {row['time_ratio']:7.3f} {row['cpu_time_ratio']:9.3f}"
        print(f"{kind:<10} {times} {row['peak_mib']:9.0f} {row['peak_ratio']:7.3f}")


if __name__ == "__main__":
    main()
