"""How sparse a refinement is: what ``ResampleConfig`` says of it, checked."""

from __future__ import annotations

MODES = ("dense", "stale", "trace")
#: Masked steps from one dense step to the next where nothing else is said: with so few no loss was seen (docs/sparse.md).
REFRESH_EVERY = 2


def check(sparse: str, refresh_every: int | None, sparse_offload: bool) -> None:
    """ValueError unless the three go together; ``refresh_every`` is None or a whole number from 1 up."""
    if sparse not in MODES:
        raise ValueError(f"expected sparse to be one of {', '.join(MODES)}, got {sparse!r}")
    if refresh_every is not None and sparse != "stale":
        raise ValueError(f"expected refresh_every with sparse='stale' alone, got it with sparse={sparse!r}")
    if not isinstance(sparse_offload, bool):
        raise ValueError(f"expected sparse_offload to be True or False, got {sparse_offload!r}")
    if sparse_offload and sparse == "dense":
        raise ValueError("expected sparse_offload with sparse='stale' or 'trace': a dense refinement stores nothing")


def record_steps(first: int, stop: int, refresh_every: int | None) -> list[int]:
    """Which of the masked steps ``first`` to ``stop`` run on all tokens and are recorded: the first, and then every so many.

    None means every ``REFRESH_EVERY``.
    """
    return list(range(first, stop, REFRESH_EVERY if refresh_every is None else refresh_every))
