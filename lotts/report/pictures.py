"""Panels made of one sample: the picture at a readable size, heatmaps over it, its mask, what changed."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter

from lotts.capture.sheet import colorize
from lotts.localize import unit_range
from lotts.report.style import CARD


def fit(pixels: np.ndarray, side: int) -> Image.Image:
    """A picture [H, W, 3] whose longer side is close to ``side``.

    Small pictures are enlarged by a whole factor, so that their pixels stay what they are; others are resampled.
    """
    height, width = pixels.shape[:2]
    longer = max(height, width)
    factor = side // longer
    if factor >= 1 and factor * longer >= 0.75 * side:
        return Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1))
    scale = side / longer
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)


def heat(values: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    """A heatmap [h, w], coloured over its own range and enlarged smoothly to ``size`` (width, height)."""
    return Image.fromarray(colorize(_enlarged(values, size)))


def heat_over(picture: Image.Image, values: torch.Tensor) -> Image.Image:
    """A heatmap laid over the grey picture: stronger where it is higher, so that objects stay recognisable."""
    level = _enlarged(values, picture.size)
    grey = np.asarray(picture.convert("L"), np.float32)[..., None].repeat(3, 2)
    alpha = (0.4 + 0.5 * level)[..., None]
    return Image.fromarray(np.rint(grey * (1 - alpha) + colorize(level) * alpha).astype(np.uint8))


def _enlarged(values: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    # Enlarged before colouring: blending colours would leave the colour scale.
    level = unit_range(values.detach().float().cpu()).numpy()
    return np.clip(np.asarray(Image.fromarray(level).resize(size, Image.Resampling.BICUBIC)), 0, 1)


def outlined(picture: Image.Image, mask: torch.Tensor, *, fade: float = 0.5) -> Image.Image:
    """The picture with a bool mask [h, w] drawn as a line, dark on its outer side; what lies outside fades."""
    cells = Image.fromarray(mask.detach().cpu().numpy().astype(np.uint8) * 255)
    inside = cells.resize(picture.size, Image.Resampling.NEAREST)
    faded = Image.blend(picture, Image.new("RGB", picture.size, CARD), fade)
    out = Image.composite(picture, faded, inside)
    out.paste((20, 20, 28), mask=_rim(inside, 4))
    out.paste((255, 255, 255), mask=_rim(inside, 2))
    return out


def _rim(inside: Image.Image, thickness: int) -> Image.Image:
    """The innermost pixels of a mask, closed at the picture's own edge too."""
    width, height = inside.size
    padded = Image.new("L", (width + 2 * thickness, height + 2 * thickness), 0)
    padded.paste(inside, (thickness, thickness))
    for _ in range(thickness):
        padded = padded.filter(ImageFilter.MinFilter(3))
    core = padded.crop((thickness, thickness, thickness + width, thickness + height))
    return ImageChops.subtract(inside, core)


def difference(before: np.ndarray, after: np.ndarray, side: int) -> tuple[Image.Image, float]:
    """Where two pictures uint8 [H, W, 3] differ, as a panel, and the share of pixels that do so visibly.

    The colour is the largest difference of a channel; visible means more than 8 of 255.
    """
    change = np.abs(before.astype(np.int16) - after).max(-1)
    # The square root lifts faint changes (a seam, a shade) out of the dark.
    level = np.sqrt(change / max(1, change.max()))
    return fit(colorize(level), side), float((change > 8).mean())
