"""Artifact metrics: how much of a set is damaged, and what a repair changed inside its mask and outside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from lotts.metrics.pictures import Picture, as_pixels

_WINDOW = 11  # pixels a side that the Gaussian of the structural similarity covers


@dataclass(frozen=True)
class Damage:
    """How damaged a set of pictures is.

    Attributes:
        images: share of pictures with damage, in [0, 1].
        images_standard_error: of ``images``, binomial; 0 where all or none are damaged, which is no certainty.
        pixels: share of damaged pixels, in [0, 1], as the mean over pictures of each one's own share, so that pictures of
            any size count alike. Over whole pictures this is the perceptual artifact ratio (Zhang et al., "Perceptual
            Artifacts Localization for Inpainting", 2022).
        pixels_standard_error: of ``pixels``, over pictures; None for one picture.
        count: pictures.
    """

    images: float
    images_standard_error: float
    pixels: float
    pixels_standard_error: float | None
    count: int

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def damage(masks: Iterable[np.ndarray | torch.Tensor], least_pixels: int = 1) -> Damage:
    """Shares of damaged pictures and pixels.

    Args:
        masks: bool [H, W] each, True where a picture is damaged: from people, from a detector, or from ``shapes_damage``.
        least_pixels: a picture with fewer damaged pixels counts as whole.

    Raises:
        ValueError: no masks, one that is not bool [H, W], or ``least_pixels`` below 1.
    """
    if not isinstance(least_pixels, int) or isinstance(least_pixels, bool) or least_pixels < 1:
        raise ValueError(f"expected least_pixels to be a whole number from 1 up, got {least_pixels!r}")
    checked = [_mask(mask, f"mask {index}") for index, mask in enumerate(masks)]
    if not checked:
        raise ValueError("expected masks, got none")
    damaged_ones = [mask.sum() >= least_pixels for mask in checked]
    damaged = float(np.mean(damaged_ones))
    shares = [float(mask.mean()) if counts else 0.0 for mask, counts in zip(checked, damaged_ones, strict=True)]
    n = len(shares)
    return Damage(
        images=damaged,
        images_standard_error=math.sqrt(damaged * (1 - damaged) / n),
        pixels=float(np.mean(shares)),
        pixels_standard_error=float(np.std(shares, ddof=1)) / math.sqrt(n) if n > 1 else None,
        count=n,
    )


def shapes_damage(picture: Picture, prompt: str) -> np.ndarray:
    """bool [128, 128]: damaged pixels of the objects that the exact checker calls damaged, in a picture of shapes.

    Objects that are missing, misplaced or of a wrong colour, shape or size are errors, not damage: see ``defects`` of
    ``lotts.shapes.checker.check``. Stray pixels on an object that passes as whole do not count.

    Raises:
        ValueError: the prompt is outside the grammar or the picture is not 128 x 128.
    """
    from lotts.shapes.checker import check
    from lotts.shapes.scenes import parse

    verdict = check(as_pixels(picture), parse(prompt))
    damaged = np.array([not each.undamaged for each in verdict.objects])
    return verdict.damage[damaged].any(0)


@dataclass(frozen=True)
class Difference:
    """How far two pictures are apart over a region.

    Attributes:
        pixels: in the region.
        mean_absolute: of the differences of uint8 levels, in [0, 255].
        psnr: 10 log10(255^2 / mean squared difference), in dB; infinite where nothing differs.
        ssim: structural similarity, at most 1, the mean over the region's pixels and the channels of each one's own value
            (Wang et al., 2004: Gaussian of 1.5 pixels, 11 x 11). A pixel's value looks up to 5 pixels around it, so near the
            mask's edge it also tells of the other side; at the picture's border the picture is mirrored.
    """

    pixels: int
    mean_absolute: float
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Change:
    """What changed ``inside`` a mask and ``outside``; None where there is no pixel."""

    inside: Difference | None
    outside: Difference | None

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values; an infinite psnr as the text "inf", which JSON can hold."""
        out: dict[str, Any] = {}
        for name, part in (("inside", self.inside), ("outside", self.outside)):
            fields = None if part is None else asdict(part)
            if fields is not None and math.isinf(fields["psnr"]):
                fields["psnr"] = "inf"
            out[name] = fields
        return out


def change(before: Picture, after: Picture, mask: np.ndarray | torch.Tensor) -> Change:
    """Compare a picture with its repair, inside the resampled region and outside.

    Args:
        before, after: pictures of one size, 11 pixels or more a side; they are compared in uint8.
        mask: bool, True inside: [H, W], or a grid that divides it, such as ``Sample.mask`` on the latent grid.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: the sizes do not fit.
    """
    first, second = as_pixels(before, "before"), as_pixels(after, "after")
    if first.shape != second.shape:
        raise ValueError(f"expected before and after of one size, got {first.shape} and {second.shape}")
    height, width = first.shape[:2]
    if min(height, width) < _WINDOW:
        raise ValueError(f"expected pictures of {_WINDOW} pixels or more a side, got {height} x {width}")
    inside = _at_pixels(_mask(mask, "mask"), height, width)
    similarity = _similarity(first, second)
    return Change(_difference(first, second, similarity, inside), _difference(first, second, similarity, ~inside))


def mean_change(changes: Sequence[Change]) -> Change:
    """The mean over pictures of every number; pictures without pixels on a side are left out there.

    ``psnr`` is the mean of decibels, infinite when it is infinite for one picture; ``pixels`` the sum.

    Raises:
        ValueError: no changes.
    """
    if not changes:
        raise ValueError("expected changes, got none")
    return Change(_mean([c.inside for c in changes]), _mean([c.outside for c in changes]))


def _mean(parts: list[Difference | None]) -> Difference | None:
    there = [part for part in parts if part is not None]
    if not there:
        return None
    means = {
        name: float(np.mean([getattr(part, name) for part in there])) for name in ("mean_absolute", "psnr", "ssim")
    }
    return Difference(sum(part.pixels for part in there), **means)


def _difference(before: np.ndarray, after: np.ndarray, similarity: np.ndarray, region: np.ndarray) -> Difference | None:
    if not region.any():
        return None
    off = before[region].astype(np.float64) - after[region]
    squared = float((off**2).mean())
    psnr = 10 * math.log10(255**2 / squared) if squared else math.inf
    return Difference(int(region.sum()), float(np.abs(off).mean()), psnr, float(similarity[region].mean()))


def _similarity(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """float64 [H, W, 3]: the structural similarity around each pixel."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise ImportError(
            f"structural similarity needs scikit-image ({error}); pip install 'lotts[metrics]'"
        ) from error
    return structural_similarity(
        before.astype(np.float64),
        after.astype(np.float64),
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1]


def _mask(mask: np.ndarray | torch.Tensor, where: str) -> np.ndarray:
    array = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if array.dtype != bool or array.ndim != 2 or not array.size:
        raise ValueError(f"expected {where} as bool [H, W], got {array.dtype} {list(array.shape)}")
    return array


def _at_pixels(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask [h, w] as bool [H, W]: each cell over its pixels."""
    rows, columns = mask.shape
    if height % rows or width % columns:
        raise ValueError(
            f"expected a mask of {height} x {width} pixels or a grid that divides it, got {rows} x {columns}"
        )
    return mask.repeat(height // rows, 0).repeat(width // columns, 1)
