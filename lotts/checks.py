"""What callers give, checked: numbers, numpy's included, made plain, and pictures."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image


def whole(name: str, value: Any, least: int = 0) -> int:
    """``value`` as an int; ValueError where it is no whole number from ``least`` up."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected {name} to be a whole number from {least} up, got {value!r}")
    return int(value)


def real(name: str, value: Any) -> float:
    """``value`` as a float; ValueError where it is no finite number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"expected {name} to be a number, got {value!r}")
    return float(value)


def truth(name: str, value: Any) -> bool:
    """``value`` as a bool; ValueError where it is neither True nor False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"expected {name} to be True or False, got {value!r}")
    return bool(value)


def plain(value: Any) -> Any:
    """A number of numpy's as Python's own, those of a list, a tuple or an array too; all else as it is."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value


@contextmanager
def counted_from(first: Any) -> Iterator[None]:
    """A ValueError about pictures of a batch also tells which of all was the batch's picture 0."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} (picture 0 being {first})") from error


def check_depth(image: Image.Image, what: str) -> None:
    """ValueError for a picture of more than 8 bits a channel, which PIL would cut off at 255 rather than scale."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(
            f"expected {what} with 8 bits a channel, got PIL's mode {image.mode}: scale it to 0 to 255 first"
        )
