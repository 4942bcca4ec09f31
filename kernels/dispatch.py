"""Who computes an op: the table of implementations behind every ``impl=`` argument."""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _len_torch_dispatch_stack

#: What ``impl=`` may name, fastest first. An op need not offer all of them.
IMPLEMENTATIONS = ("triton", "portable", "reference")

#: Triton then runs its kernels in Python, on tensors of the CPU. Read once: kernels are made for one or the other.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")
HAS_TRITON = importlib.util.find_spec("triton") is not None

_registry: dict[str, dict[str, Callable[..., Any]]] = {}


def register(op: str, **implementations: Callable[..., Any]) -> None:
    """Make the implementations of ``op`` selectable by name; each op's api module calls this once, at import."""
    _registry[op] = implementations


def available_implementations(op: str, device: torch.device | str | None = None) -> tuple[str, ...]:
    """Names that ``impl=`` of the op called ``op`` accepts, fastest first.

    Args:
        op: name of an op of ``lotts.kernels``.
        device: where the tensors are; None means the GPU if there is one, otherwise the CPU.

    Raises:
        ValueError: no op has that name.
    """
    if op not in _registry:
        raise ValueError(f"op: expected one of {', '.join(sorted(_registry))}, got {op!r}")
    device = _device(device)
    return tuple(
        name
        for name in IMPLEMENTATIONS
        if name in _registry[op] and (name != "triton" or _triton_obstacle(device, torch.float32) is None)
    )


def default_implementation(
    op: str, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> str:
    """What ``impl=None`` means for ``op``: ``"triton"`` on a GPU, otherwise ``"portable"``, which runs everywhere."""
    device = _device(device)
    fused = "triton" in _registry[op] and device.type != "cpu" and _triton_obstacle(device, dtype) is None
    return "triton" if fused else "portable"


def select(op: str, impl: str | None, device: torch.device, dtype: torch.dtype = torch.float32) -> Callable[..., Any]:
    """The function that computes ``op`` on tensors of this device and dtype; None means ``default_implementation``.

    Raises:
        ValueError: ``impl`` is not the name of an implementation.
        RuntimeError: it is, but cannot run here. Nothing is substituted for what was asked.
    """
    implementations = _registry[op]
    if impl is None:
        impl = default_implementation(op, device, dtype)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl: expected None or one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl not in implementations:
        raise RuntimeError(f"{op}: impl={impl!r} is not available; available: {', '.join(implementations)}")
    if impl == "triton":
        obstacle = _triton_obstacle(device, dtype)
        if obstacle is not None:
            raise RuntimeError(f"{op}: impl='triton' cannot run here: {obstacle}; use impl='portable'")
    return implementations[impl]


def custom_op(name: str, *, mutates_args: tuple[str, ...] = ()) -> Callable[..., Any]:
    """``torch.library.custom_op`` whose function is called straight away where nobody but the caller must see the op.

    The way through torch's dispatcher takes as long as a small kernel runs.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        known = torch.library.custom_op(name, mutates_args=mutates_args)(function)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return (known if _listened_to() else function)(*arguments)

        call.register_fake = known.register_fake  # type: ignore[attr-defined]
        return call

    return register


def _listened_to() -> bool:
    """Whether a compiler, autograd or a dispatch mode (fake tensors, a counter of FLOPs) may want to know of an op."""
    return torch.compiler.is_compiling() or torch.is_grad_enabled() or _len_torch_dispatch_stack() > 0


def _device(device: torch.device | str | None) -> torch.device:
    """The given device, or else the GPU if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot take tensors of this device and dtype, or None when they can."""
    if not HAS_TRITON:
        return "triton is not installed"
    if dtype == torch.float64:
        return "its kernels compute in float32, and the tensors are float64"
    if device.type == "cuda" or (device.type == "cpu" and INTERPRETED):
        return None
    hint = " (TRITON_INTERPRET=1, set before Python starts, runs kernels there, slowly)" if device.type == "cpu" else ""
    return f"the tensors are on the device {device.type!r}{hint}"
