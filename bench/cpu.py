"""What attention maps cost on a CPU.

    python -m bench cpu                                     a table
    python -m bench cpu --out bench/results/cpu.json        and the figures as JSON
    python -m bench cpu --quick                             a narrow U-Net and short sequences, to see that it works
    python -m bench cpu --peer ../peer/bin/python           attention-map-diffusers beside ours (docs/capture.md)

First the op: propagate_attention with two columns, plain attention, and the eager formula, at 4096 tokens, 5 and 8 heads.
Then one step of Stable Diffusion 2.1's U-Net (random weights, float32, two rows as under classifier-free guidance, of which
ours records the second): stock, under capture with nothing recorded, with cross-attention recorded, with self-attention
recorded. Providers take turns, each taking each place in a round; a ratio is the median over rounds of the ratio within a
round. Memory is the most that a call holds above what the process held before it.
"""

import argparse
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from bench import baselines
from bench.record import environment, write_json
from bench.timing import median_ratio, percentiles, rounds_of
from bench.unet_step import EMBEDDING, ROWS, TOKENS, Sample, sampled, unet_and_inputs
from lotts.capture import AttentionRecorder
from lotts.kernels import propagate_attention
from lotts.localize import LocalizeConfig

Provider = Callable[[], Sample]

HEADS, DIM, COLUMNS = (5, 8), 64, 2
#: Switches (cross, self) of each kind of our step.
STEPS = {"idle": (False, False), "cross": (True, False), "self": (False, True)}
RUN_STEPS = 50
PEER_STOCK = "peer stock"
#: name -> (bound, whether it is the most or the least)
TARGETS = {
    "self_attention_over_sdpa": (1.3, True),
    "eager_over_ours": (2.5, False),
    "captured_step_over_stock": (1.1, True),
}


def interleaved(providers: dict[str, Provider], rounds: int) -> dict[str, list[Sample]]:
    """Samples of each provider over ``rounds``, after one round of warm-up."""
    samples: dict[str, list[Sample]] = {name: [] for name in providers}
    for i_round, name in rounds_of(list(providers), rounds + 1):
        sample = providers[name]()
        if i_round > 0:
            samples[name].append(sample)
    return samples


def figures(samples: dict[str, list[Sample]], baseline: str) -> dict[str, dict[str, Any]]:
    """Times, memory, and ratios to the baseline, of each provider."""
    base = samples[baseline]
    return {
        name: {
            "seconds": percentiles([s.seconds for s in taken]),
            "peak_mib": median(s.peak_bytes for s in taken) / 2**20,
            "time_ratio": median_ratio([s.seconds for s in taken], [s.seconds for s in base]),
            "cpu_time_ratio": median_ratio([s.cpu_seconds for s in taken], [s.cpu_seconds for s in base]),
        }
        for name, taken in samples.items()
    }


def ratio(samples: dict[str, list[Sample]], name: str, baseline: str) -> float:
    """Median over rounds of the elapsed times' ratio within a round."""
    return median_ratio([s.seconds for s in samples[name]], [s.seconds for s in samples[baseline]])


def self_attention(heads: int, tokens: int, rounds: int) -> dict[str, Any]:
    """The op beside plain attention and the eager formula, in float32, one picture."""
    query, key, value = (torch.randn(1, tokens, heads, DIM).transpose(1, 2) for _ in range(3))
    columns = torch.rand(1, tokens, COLUMNS)
    calls: dict[str, Callable[[], Any]] = {
        "sdpa": lambda: F.scaled_dot_product_attention(query, key, value),
        "ours": lambda: propagate_attention(query, key, value, columns, impl="portable"),
        "eager": lambda: baselines.propagate_attention(query, key, value, columns),
    }
    samples = interleaved({name: partial(_sample, call) for name, call in calls.items()}, rounds)
    return {
        "providers": figures(samples, "sdpa"),
        "self_attention_over_sdpa": ratio(samples, "ours", "sdpa"),
        "eager_over_ours": ratio(samples, "eager", "ours"),
    }


def _sample(call: Callable[[], Any]) -> Sample:
    return sampled(call)[1]


class OurSteps:
    """The U-Net step, stock and under capture; keeps how far each kind's output is from the stock one."""

    def __init__(self, small: bool, latent: int) -> None:
        self.unet, self.latents, self.text = unet_and_inputs(small, latent)
        content = torch.zeros(1, TOKENS)
        content[:, 1:6] = 1
        quality = (torch.randn(1, TOKENS, EMBEDDING), content)
        size = (latent, latent)
        self.recorder = AttentionRecorder(self.unet, content[..., None], quality, quality, latent_size=size)
        self.recorder.rows = slice(ROWS - 1, ROWS)
        self.recorder.columns = torch.rand(1, COLUMNS, *size)
        self.stock: torch.Tensor | None = None
        self.differences: dict[str, float] = {}

    def providers(self) -> dict[str, Provider]:
        return {"stock": self._stock, **{kind: partial(self._captured, kind) for kind in STEPS}}

    def _step(self) -> torch.Tensor:
        return self.unet(self.latents, 500, self.text).sample

    def _stock(self) -> Sample:
        self.stock, sample = sampled(self._step)
        return sample

    def _captured(self, kind: str) -> Sample:
        self.recorder.record_cross, self.recorder.record_self = STEPS[kind]
        with self.recorder:
            self._step()  # a run enters its capture once and projects the quality prompts in its first step
            output, sample = sampled(self._step)
        if self.stock is not None:
            self.differences[kind] = (output - self.stock).abs().max().item()
        return sample


class PeerSteps:
    """The same steps in another interpreter, one asked for at a time."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        hello = self._answer()
        self.kinds: list[str] = hello["kinds"]
        self.versions: dict[str, str] = hello["versions"]
        self.differences: dict[str, float] = {}

    def providers(self) -> dict[str, Provider]:
        return {kind: partial(self._ask, kind) for kind in self.kinds}

    def _ask(self, kind: str) -> Sample:
        self.process.stdin.write(kind + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        numbers = self._answer()
        difference = numbers.pop("output_difference")
        if difference is not None:
            self.differences[kind] = difference
        return Sample(**numbers)

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"--peer: expected an answer, but the process ended with status {self.process.wait()}")
        return json.loads(line)


@contextmanager
def peer_steps(python: Path, small: bool, latent: int) -> Iterator[PeerSteps]:
    """Start the peer's interpreter on ``bench/peer.py``; it ends with the context."""
    command = [str(python), str(Path(__file__).with_name("peer.py")), str(int(small)), str(latent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield PeerSteps(process)
        # Leaving closes its standard input, at the end of which it ends by itself.


def run_mean(ratios: dict[str, float], steps: int = RUN_STEPS) -> float:
    """The mean ratio over a run, each step weighted by the kind it is under the default windows."""
    config = LocalizeConfig()
    cross, self_ = (config.step_range(name, steps) for name in ("cross_steps", "self_steps"))
    total = 0.0
    for i in range(steps):
        # A step in both windows would pay for both; the default windows do not overlap.
        extra = [ratios[kind] - ratios["idle"] for kind, window in (("cross", cross), ("self", self_)) if i in window]
        total += ratios["idle"] + sum(extra)
    return total / steps


def captured_step(rounds: int, small: bool, latent: int, python: Path | None) -> dict[str, Any]:
    """The U-Net step in all its kinds, the peer's among them where ``python`` names its interpreter."""
    ours = OurSteps(small, latent)
    with ExitStack() as stack:
        theirs = stack.enter_context(peer_steps(python, small, latent)) if python else None
        providers = ours.providers() | (theirs.providers() if theirs else {})
        samples = interleaved(providers, rounds)
    over_stock = {kind: ratio(samples, kind, "stock") for kind in STEPS}
    found: dict[str, Any] = {
        "providers": figures(samples, "stock"),
        "captured_step_over_stock": {**over_stock, "run mean": run_mean(over_stock)},
        "output_difference": ours.differences,
    }
    if theirs:
        captured = [kind for kind in theirs.kinds if kind != PEER_STOCK]
        found["peer_versions"] = theirs.versions
        found["peer_over_peer_stock"] = {kind: ratio(samples, kind, PEER_STOCK) for kind in captured}
        # "peer cross exact" beside our "cross"
        found["peer_over_ours"] = {kind: ratio(samples, kind, kind.split()[1]) for kind in captured}
        found["peer_output_difference"] = theirs.differences
    return found


def judged(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for every target."""
    values = {
        f"{name}, {heads}": (name, entry[name])
        for heads, entry in report["self_attention"].items()
        for name in ("self_attention_over_sdpa", "eager_over_ours")
    }
    step = report["step"]["captured_step_over_stock"]
    values |= {
        f"captured_step_over_stock, {k}": ("captured_step_over_stock", step[k]) for k in ("cross", "self", "run mean")
    }
    rows = []
    for text, (name, value) in values.items():
        bound, at_most = TARGETS[name]
        met = value <= bound if at_most else value >= bound
        rows.append({"target": text, "bound": f"{'<=' if at_most else '>='} {bound}", "value": value, "met": met})
    return rows


def table(report: dict[str, Any]) -> str:
    """For reading: every provider's time, ratios and memory, then the targets."""
    sections = {f"self-attention, {heads}": entry for heads, entry in report["self_attention"].items()}
    sections["U-Net step"] = report["step"]
    lines = [f"{'':<18} {'seconds':>9} {'ratio':>7} {'CPU ratio':>9} {'peak MiB':>9}"]
    for title, entry in sections.items():
        lines.append(title)
        for name, row in entry["providers"].items():
            times = f"{row['seconds']['p50']:9.3f} {row['time_ratio']:7.3f} {row['cpu_time_ratio']:9.3f}"
            lines.append(f"  {name:<16} {times} {row['peak_mib']:9.0f}")
    for key in ("peer_over_peer_stock", "peer_over_ours"):
        lines += [f"{key}, {kind}: {value:.3f}" for kind, value in report["step"].get(key, {}).items()]
    for row in report["targets"]:
        lines.append(f"{'met   ' if row['met'] else 'MISSED'}  {row['target']}: {row['value']:.3f} ({row['bound']})")
    return "\n".join(lines)


@torch.no_grad()
def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    parser.add_argument("--quick", action="store_true", help="small and few: its figures mean nothing")
    parser.add_argument("--rounds", type=int, help="rounds after the warm-up (default 8, quick 2)")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="an interpreter with attention-map-diffusers")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    rounds = arguments.rounds or (2 if quick else 8)
    tokens, latent = (1024, 32) if quick else (4096, 64)
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "environment": environment(),
        "setting": {
            "quick": quick,
            "rounds": rounds,
            "tokens": tokens,
            "latent": latent,
            "rows": ROWS,
            "dtype": "float32",
        },
        "self_attention": {f"{heads} heads": self_attention(heads, tokens, rounds) for heads in HEADS},
        "step": captured_step(rounds, quick, latent, arguments.peer),
    }
    report["targets"] = judged(report)
    if arguments.out:
        write_json(arguments.out, report)
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    return 0
