"""How a run ends: as every call of the pipeline does, so that nothing which offloading moved stays where it was needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def frees_hooks(run: Callable[P, T]) -> Callable[P, T]:
    """``run``, whose first argument is a pipeline or has one as ``pipe``, with that pipeline's hooks freed on its end.

    Once a run and not a batch: to free the hooks of ``enable_model_cpu_offload`` moves every model off the device.
    """

    @functools.wraps(run)
    def freeing(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return run(*args, **kwargs)
        finally:
            owner: Any = args[0] if args else kwargs.get("pipe")
            free = getattr(getattr(owner, "pipe", owner), "maybe_free_model_hooks", None)
            if free is not None:
                free()

    return freeing
