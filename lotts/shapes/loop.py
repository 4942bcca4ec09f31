"""One training loop for all the embedded models: seeded, checkpointed, resumable, one process a core or one GPU."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from lotts.threads import cores


@dataclass(frozen=True)
class Recipe:
    """What ``fit`` needs besides the model and the loss.

    ``images`` is the budget over all processes; ``batch_size`` counts a process. The learning rate warms up over
    ``warmup`` images, stays flat, and falls to zero over the last ``cooldown`` share, so a finished run can be extended:
    resume with more images.
    """

    images: int
    batch_size: int
    learning_rate: float
    warmup: int = 4_000
    cooldown: float = 0.25
    weight_decay: float = 0.01
    ema: float = 0.999
    seed: int = 0
    save_minutes: float = 3.0

    def __post_init__(self) -> None:
        if self.images < self.batch_size or not 0 <= self.cooldown < 1:
            raise ValueError(f"expected images >= batch_size and 0 <= cooldown < 1, got {self}")

    def rate(self, seen: int) -> float:
        left = (self.images - seen) / max(1.0, self.cooldown * self.images)
        return self.learning_rate * min(1.0, (seen + 1) / self.warmup, max(left, 0.0))


@dataclass
class Worker:
    """A process's place in the run. ``rng(step)`` is a fresh generator that no other process or step shares."""

    rank: int
    world: int
    seed: int
    device: torch.device

    def rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.rank, step])


Loss = Callable[[np.random.Generator, torch.Generator], tuple[torch.Tensor, dict[str, float]]]


def launch(
    stage: Callable[..., None], *args, device: str | None = None, processes: int | None = None, seed: int = 0
) -> None:
    """Run ``stage(worker, *args)`` once a process: one a core on the CPU, one in all on an accelerator."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    world = (processes or cores()) if device == "cpu" else 1
    if world == 1:
        stage(Worker(0, 1, seed, torch.device(device)), *args)
        return
    port = _free_port()
    torch.multiprocessing.spawn(_enter, (world, port, seed, device, stage, args), nprocs=world)  # type: ignore[no-untyped-call]


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device multiplies it natively; elsewhere it is two to ten times slower than float32."""
    native = device.type != "cpu" or any(torch.cpu.get_capabilities().get(f"{unit}_bf16") for unit in ("avx512", "amx"))
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


def _enter(rank: int, world: int, port: int, seed: int, device: str, stage, args) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        stage(Worker(rank, world, seed, torch.device(device)), *args)
    finally:
        dist.destroy_process_group()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however that ended: orphans would train on beside the next run."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def fit(
    worker: Worker,
    model: nn.Module,
    loss: Loss,
    recipe: Recipe,
    folder: Path,
    *,
    preview: Callable[[nn.Module, Path], None] | None = None,
    preview_every: int = 25_000,
) -> nn.Module:
    """Train ``model`` in place and return it holding its averaged (EMA) weights.

    ``folder`` gets ``state.pt`` (written aside and renamed; a later call resumes from it), ``log.jsonl`` and, from
    ``preview(averaged model, path)``, a picture every ``preview_every`` images. A resumed run ends with the weights of one that
    never stopped where ``loss`` draws by the generators it is given alone; a loss that keeps a pool of pictures fills it anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    average = [p.detach().clone() for p in parameters]
    seen, elapsed, step = 0, 0.0, 0
    state_file = folder / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=worker.device, weights_only=True)
        if state.get("seed", recipe.seed) != recipe.seed:
            raise ValueError(
                f"expected the run in {folder} to go on with its own seed, {state['seed']}, got {recipe.seed}: "
                "another run takes another --runs, or the folder out of the way"
            )
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average = [a.to(worker.device) for a in state["average"]]
        seen, elapsed, step = state["seen"], state["elapsed"], state["step"]

    def save() -> None:
        if worker.rank == 0:
            state = {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "average": average,
                "seen": seen,
                "elapsed": elapsed,
                "step": step,
                "seed": recipe.seed,
            }
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)

    if worker.rank == 0 and seen >= recipe.images:
        print(
            f"{folder}: finished, with {seen} pictures; more take a larger --images, another run another --runs",
            file=sys.stderr,
        )
    model.train()
    noise = torch.Generator(worker.device)
    bar = tqdm(
        total=recipe.images, initial=seen, unit="img", disable=None if worker.rank == 0 else True, smoothing=0.05
    )
    began = saved = logged = time.monotonic()
    running: dict[str, float] = {}
    while seen < recipe.images:
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(seen)
        noise.manual_seed(int(worker.rng(step).integers(2**62)))
        with autocast(worker.device):
            value, figures = loss(worker.rng(step), noise)
        value.backward()
        _average_gradients(parameters, worker)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        decay = min(recipe.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        before, seen = seen, seen + recipe.batch_size * worker.world
        bar.update(seen - before)
        for name, figure in {"loss": float(value.detach()), **figures}.items():
            running[name] = 0.98 * running.get(name, figure) + 0.02 * figure
        now = time.monotonic()
        if worker.rank == 0 and now - logged > 20:
            logged = now
            line = {"images": seen, "seconds": round(elapsed + now - began, 1), "rate": recipe.rate(seen), **running}
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            bar.set_postfix({k: f"{v:.4f}" for k, v in running.items()})
        if now - saved > 60 * recipe.save_minutes:
            elapsed, began, saved = elapsed + now - began, now, now
            save()
        if preview and worker.rank == 0 and seen // preview_every > before // preview_every:
            with _weights(parameters, average), torch.no_grad():
                model.eval()
                preview(model, folder / f"sample-{seen:09d}.png")
                model.train()
    bar.close()
    elapsed += time.monotonic() - began
    save()
    for parameter, mean in zip(parameters, average, strict=True):
        parameter.data.copy_(mean)
    return model.eval()


def run_of(name: str, onward: bool) -> str:
    """The folder of a run: one that goes onward from shipped weights has one of its own."""
    return f"{name}-onward" if onward else name


def averaged(model: nn.Module, folder: Path) -> nn.Module:
    """Load the averaged weights of the newest checkpoint in ``folder``, finished or not."""
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for parameter, mean in zip([p for p in model.parameters() if p.requires_grad], state["average"], strict=True):
        parameter.data.copy_(mean)
    return model.eval()


class _weights:
    """Swap other values into parameters for a while."""

    def __init__(self, parameters: list[nn.Parameter], values: list[torch.Tensor]) -> None:
        self.parameters, self.values = parameters, values

    def __enter__(self) -> None:
        self.own = [p.data for p in self.parameters]
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.data = value

    def __exit__(self, *_) -> None:
        for parameter, own in zip(self.parameters, self.own, strict=True):
            parameter.data = own


def _average_gradients(parameters: list[nn.Parameter], worker: Worker) -> None:
    if worker.world == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch._utils._flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    flat /= worker.world
    for gradient, mean in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True):
        gradient.copy_(mean)
