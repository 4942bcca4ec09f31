"""What every result carries: where and on what it was measured, and a file that is either whole or absent."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("bench/results")


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by a file with ``text``: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def result_file(name: str, model: str) -> Path:
    """Where an experiment's result on an embedded pipeline goes by default: ``name`` alone is of shapes-sd."""
    return RESULTS / f"{name}{'' if model == 'shapes-sd' else '_' + model.removeprefix('shapes-')}.json"


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with a JSON object a line, but for a last one that was cut short; none where there is no file."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def told(error: Exception) -> str:
    """An error in one line: its message's last, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def attempted(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``measure`` finds, or why it failed, as a measurement that was skipped: those that follow are made all the same."""
    try:
        return measure()
    except Exception as error:
        return {"skipped": f"failed: {type(error).__name__}: {told(error)}"}


def earlier(path: Path, now: dict[str, Any]) -> dict[str, Any] | None:
    """The report that is at ``path`` from an earlier run on the same commit, machine and versions; None where there is none.

    ``now`` is this run's ``environment()``.
    """
    if not path.exists():
        return None
    before = json.loads(path.read_text(encoding="utf-8"))
    # Without git, or with changes that are not committed, nobody knows whether the trees are the same.
    if now["commit"] is None or now["dirty"]:
        return None
    keys = ("commit", "dirty", "cpu", "gpu", "driver", "versions")
    return before if all(before["environment"].get(key) == now.get(key) for key in keys) else None


def earlier_models(path: Path | None, now: dict[str, Any]) -> dict[str, Any]:
    """What such a report says of each model, for a run of other models to be added to."""
    before = None if path is None else earlier(path, now)
    return {} if before is None else before["models"]


def with_model(models: dict[str, Any], name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The models with one more; what was measured of it before is not replaced by a failure."""
    measured = "skipped" not in models.get(name, {"skipped": ""})
    return models if measured and "skipped" in entry else {**models, name: entry}


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Versions, machine, commit and date, and the GPU with its driver where there is one.

    Where the tree was copied somewhere and git cannot tell, the variable BENCH_COMMIT says the commit; ``dirty`` is then None,
    unknown.
    """
    commit = os.environ.get("BENCH_COMMIT")
    status = None if commit else _git("status", "--porcelain", "--untracked-files=no")
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in ("torch", "triton", "diffusers", "transformers")},
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        }
    return facts


def _git(*arguments: str) -> str | None:
    return _output("git", "-C", str(ROOT), *arguments)


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails: a tree without git can be measured too."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
