"""How the published pipelines turn a picture into the tensor of a vision model: PIL resizing, crop or pad, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from lotts.verifiers.base import Verifier

#: Of CLIP's training images, which all of these models use.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Pixels:
    """A picture as float32 [3, side, side].

    Attributes:
        side: of the square.
        fit: "crop": the shorter edge becomes ``side`` and the middle is kept; "pad": the longer edge does, on black.
        style: "torchvision": resizes in the picture's own mode, then takes RGB, and rounds the crop's corner to the nearest
            even pixel; "transformers": takes RGB first, dropping alpha as its releases of 2023 did, and rounds it down.
            They differ for pictures with alpha or a palette, and by one pixel where the crop cannot be centred.
    """

    side: int = 224
    fit: str = "crop"
    style: str = "torchvision"
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __post_init__(self) -> None:
        if self.fit not in ("crop", "pad"):
            raise ValueError(f"expected fit to be crop or pad, got {self.fit!r}")
        if self.style not in ("torchvision", "transformers"):
            raise ValueError(f"expected style to be torchvision or transformers, got {self.style!r}")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if self.style == "transformers":
            image = image.convert("RGB")
        image = self._cropped(image) if self.fit == "crop" else self._padded(image)
        array = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        return self._normalised(array.float().div(255))

    def of_tensors(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [N, 3, side, side] of RGB [N, 3, H, W] in [0, 1], resized where they are: close to PIL, not equal."""
        height, width = images.shape[-2:]
        size = self._crop_size(width, height) if self.fit == "crop" else self._pad_size(width, height)
        resized = F.interpolate(images.float(), size[::-1], mode="bicubic", antialias=True).clamp(0, 1)
        left, top, right, bottom = self._margins(*size)
        return self._normalised(F.pad(resized, (left, right, top, bottom)))

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def _crop_size(self, width: int, height: int) -> tuple[int, int]:
        short, long = sorted((width, height))
        scaled = int(self.side * long / short)
        return (self.side, scaled) if width <= height else (scaled, self.side)

    def _pad_size(self, width: int, height: int) -> tuple[int, int]:
        scale = self.side / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _margins(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom: what to add to a picture of that size, or with a minus to cut off."""
        across, down = self.side - width, self.side - height
        left, top = (self._half(gap) for gap in (across, down))
        return left, top, across - left, down - top

    def _half(self, gap: int) -> int:
        if gap >= 0:
            return gap // 2
        return -(-gap // 2) if self.style == "transformers" else -round(-gap / 2)

    def _cropped(self, image: Image.Image) -> Image.Image:
        size = self._crop_size(*image.size)
        left, top, _, _ = self._margins(*size)
        resized = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        return resized.crop((-left, -top, self.side - left, self.side - top))

    def _padded(self, image: Image.Image) -> Image.Image:
        size = self._pad_size(*image.size)
        resized = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        # RGB before the border, so that it is black whatever the mode; the inside is the same either way.
        return ImageOps.expand(resized.convert("RGB"), self._margins(*size), 0)


class PixelVerifier(Verifier):
    """A verifier whose pictures become tensors by ``self.pixels``."""

    pixels: Pixels
    mode = None

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """float32 [3, side, side], as the published pipeline makes it."""
        return self.pixels(image)

    @torch.no_grad()
    def score_tensors(
        self,
        images: torch.Tensor,
        prompts: Sequence[str],
        cache: dict[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> torch.Tensor:
        """Score RGB tensors [N, 3, H, W] in [0, 1] without a way over PIL, resized on their own device.

        Not the published preprocessing: nothing is rounded to 8 bits and antialiasing differs, so scores differ a little
        from ``score``. Compare only scores of one kind.

        Returns:
            float32 CPU tensor [N].
        """
        if isinstance(prompts, str):
            raise ValueError("expected one prompt for each image, got one string")
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or len(images) != len(prompts):
            raise ValueError(
                f"expected float images [N, 3, H, W] and N prompts, got {images.dtype} {list(images.shape)} and {len(prompts)}"
            )
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"expected images in [0, 1], got values from {images.min():g} to {images.max():g}")

        def prepared(batch: slice) -> torch.Tensor:
            return self.pixels.of_tensors(images[batch]).to(self.device)

        return self._batched(prepared, prompts, cache, batch_size)
