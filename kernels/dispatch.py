"""Who computes an op: the table of implementations behind every ``impl=`` argument."""

from collections.abc import Callable
from typing import Any

#: What ``impl=`` may name, fastest first. An op need not offer all of them.
IMPLEMENTATIONS = ("triton", "portable", "reference")

_registry: dict[str, dict[str, Callable[..., Any]]] = {}


def register(op: str, **implementations: Callable[..., Any]) -> None:
    """Make the implementations of ``op`` selectable by name; each op's api module calls this once, at import."""
    _registry[op] = implementations


def available_implementations(op: str) -> tuple[str, ...]:
    """Names that ``impl=`` of the op called ``op`` accepts here, fastest first.

    Raises:
        ValueError: no op has that name.
    """
    if op not in _registry:
        raise ValueError(f"op: expected one of {', '.join(sorted(_registry))}, got {op!r}")
    return tuple(name for name in IMPLEMENTATIONS if name in _registry[op])


def select(op: str, impl: str | None) -> Callable[..., Any]:
    """The function that computes ``op``; None means ``"portable"``, which runs on every device.

    Raises:
        ValueError: ``impl`` is not the name of an implementation.
        RuntimeError: it is, but this op does not have it. Nothing is substituted for what was asked.
    """
    name = "portable" if impl is None else impl
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"impl: expected None or one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if name not in _registry[op]:
        raise RuntimeError(f"{op}: impl={name!r} is not available; available: {', '.join(_registry[op])}")
    return _registry[op][name]
