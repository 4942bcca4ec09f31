"""Numbers as callers give them, numpy's included, checked and made plain."""

from __future__ import annotations

import numbers
from typing import Any


def whole(name: str, value: Any, least: int = 0) -> int:
    """``value`` as an int; ValueError where it is no whole number from ``least`` up."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected {name} to be a whole number from {least} up, got {value!r}")
    return int(value)


def real(name: str, value: Any) -> float:
    """``value`` as a float; ValueError where it is no number."""
    if not isinstance(value, numbers.Real):
        raise ValueError(f"expected {name} to be a number, got {value!r}")
    return float(value)
