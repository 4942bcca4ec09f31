"""Pictures as the metrics take them: PIL images, arrays, tensors or paths, checked and brought to uint8."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from lotts.checks import check_depth

#: A PIL image; uint8 or float in [0, 1], an array [H, W, 3] or a tensor [3, H, W]; or the path of a file.
Picture: TypeAlias = Image.Image | np.ndarray | torch.Tensor | str | Path


def as_pixels(picture: Picture, where: str = "picture") -> np.ndarray:
    """uint8 [H, W, 3] of one picture. Alpha is dropped, grey is repeated; floats are rounded to the nearest level.

    Args:
        where: what the picture is called in an error.

    Raises:
        TypeError: none of the kinds of ``Picture``.
        ValueError: another shape or dtype, an empty picture, or floats outside [0, 1].
        FileNotFoundError: the path leads nowhere.
    """
    if isinstance(picture, (str, Path)):
        with Image.open(picture) as file:
            return as_pixels(file, str(picture))
    if isinstance(picture, Image.Image):
        check_depth(picture, where)
        return np.asarray(picture.convert("RGB"))
    if isinstance(picture, torch.Tensor):
        layout, array = "a tensor [3, H, W]", _rows_last(picture.detach().cpu())
    elif isinstance(picture, np.ndarray):
        layout, array = "an array [H, W, 3]", picture
    else:
        raise TypeError(f"expected {where} as a PIL image, array, tensor or path, got {type(picture).__name__}")
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"expected {where} as {layout}, got shape {list(picture.shape)}")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"expected {where} in uint8 or in floats from 0 to 1, got {array.dtype}")
    if not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
        raise ValueError(f"expected {where} in [0, 1], got values from {array.min()} to {array.max()}")
    return np.rint(array * 255).astype(np.uint8)


def _rows_last(tensor: torch.Tensor) -> Any:
    tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return (tensor.movedim(0, -1) if tensor.ndim else tensor).numpy()
