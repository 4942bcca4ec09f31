"""What this installation can do: versions, devices, kernels, embedded weights, verifiers."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("torch", "triton", "diffusers", "transformers", "numpy", "safetensors", "pillow", "tqdm")


def diagnose() -> dict[str, Any]:
    """Look around without loading a model; every value is plain data.

    Returns:
        lotts, python, platform: versions as text. packages: version by name, None where absent. devices: a list of
        {"name", "kind", "memory_gib"} (memory None for the CPU), the default device first. threads: of the CPU.
        kernels: for each op {"available": [...], "default": ...}, implementations. models: for each embedded pipeline
        whether its weights are there. verifiers: names.
    """
    from lotts import __version__
    from lotts.models import EMBEDDED, has_weights
    from lotts.verifiers import available

    return {
        "lotts": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "threads": torch.get_num_threads(),
        "kernels": _kernels(),
        "models": {name: has_weights(name) for name in EMBEDDED},
        "verifiers": list(available()),
    }


def table(found: dict[str, Any]) -> str:
    """``diagnose``'s answer for people."""
    from lotts.models import EMBEDDED

    rows: list[tuple[str, str]] = [
        ("lotts", found["lotts"]),
        ("python", f"{found['python']} on {found['platform']}"),
    ]
    rows += [(name, number or "not installed") for name, number in found["packages"].items()]
    rows.append(("", ""))
    for index, device in enumerate(found["devices"]):
        memory = "" if device["memory_gib"] is None else f", {device['memory_gib']} GiB"
        rows.append(("device" if index == 0 else "", f"{device['kind']}: {device['name']}{memory}"))
    rows += [("CPU threads", str(found["threads"])), ("", "")]
    for op, offers in found["kernels"].items():
        names = [f"{name} (used)" if name == offers["default"] else name for name in offers["available"]]
        rows.append((op, ", ".join(names)))
    rows.append(("", ""))
    for name, there in found["models"].items():
        rows.append(
            (name, "weights are there" if there else f"no weights: python -m lotts.shapes.train {EMBEDDED[name][1]}")
        )
    rows.append(("verifiers", ", ".join(found["verifiers"])))
    wide = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{wide}}  {value}".rstrip() for name, value in rows)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    cpu = {
        "name": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "kind": "cpu",
        "memory_gib": None,
    }
    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = round(properties.total_memory / 2**30, 1)
            devices.append({"name": properties.name, "kind": f"cuda:{index}", "memory_gib": memory})
    return [*devices, cpu]


def _kernels() -> dict[str, dict[str, Any]]:
    import lotts.kernels
    from lotts.kernels.dispatch import default_implementation

    ops = [name for name in lotts.kernels.__all__ if name != "available_implementations"]
    return {
        op: {
            "available": list(lotts.kernels.available_implementations(op)),
            "default": default_implementation(op),
        }
        for op in ops
    }
