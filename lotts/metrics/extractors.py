"""Networks that turn pictures into feature vectors for the Fréchet distance.

How a picture comes to the size that a network sees changes the distance as much as models differ (Parmar, Zhang, Zhu, "On
Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR 2022), so an extractor names its way:

- ``tensorflow-bilinear``: two pixels a side are mixed, however far the picture shrinks; the first FID did so;
- ``pil-bilinear``, ``pil-bicubic``: Pillow's, which average over all pixels that shrink into one; the result is uint8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from lotts.metrics.moments import Origin
from lotts.shapes import reward
from lotts.shapes.draw import SIDE

_PILLOW = {"pil-bilinear": Image.Resampling.BILINEAR, "pil-bicubic": Image.Resampling.BICUBIC}


class FeatureExtractor(Protocol):
    """Anything with ``features``.

    Attributes:
        name, version, size, resize: see ``Origin``; they are recorded with every number.
        dim: D, the length of a feature vector.
    """

    name: str
    version: str
    size: tuple[int, int] | None
    resize: str
    dim: int

    def features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """float [N, D] on the CPU, for uint8 [H, W, 3] pictures that may differ in size."""
        ...


def origin(extractor: FeatureExtractor) -> Origin:
    """What is recorded of an extractor; TypeError when it lacks something."""
    needed = ("name", "version", "size", "resize", "dim", "features")
    if missing := [name for name in needed if not hasattr(extractor, name)]:
        raise TypeError(
            f"expected a feature extractor with {', '.join(needed)}, got {type(extractor).__name__} without "
            f"{', '.join(missing)}"
        )
    return Origin(extractor.name, extractor.version, extractor.size, extractor.resize)


class ShapesFeatures:
    """Features of the embedded verifier's encoder, for pictures of the embedded pipelines.

    Its channels are averaged over the picture, as Inception's are for FID: D = 96. The distance says how far two sets of such
    pictures are apart; it is no FID, which means Inception's features.

    Args:
        folder: where the verifier's weights lie (default: those that come with the package).

    Raises:
        FileNotFoundError: the weights are missing.
    """

    name = "shapes"
    size: tuple[int, int] | None = (SIDE, SIDE)
    resize = "pil-bilinear"

    def __init__(self, folder: Path = reward.FOLDER) -> None:
        model = reward.load(folder)
        self.version = reward.version(folder)
        self.encoder, self.dim = model.encoder, model.config.widths[-1]

    @torch.no_grad()
    def features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """float32 [N, D] for uint8 [H, W, 3] pictures."""
        if not images:
            return torch.zeros(0, self.dim)
        pixels = np.stack([resized(image, (SIDE, SIDE), self.resize) for image in images])
        return self.encoder(reward.to_input(torch.from_numpy(pixels))).mean((2, 3))


class InceptionFeatures:
    """The Inception of the published FID, as torch-fidelity carries it: 2048 features of the last pooling.

    Args:
        resize: "tensorflow-bilinear", what numbers called FID mean; or "pil-bicubic", which shrinks without aliasing. The
            latter is close to clean-fid's, but rounds to uint8 where clean-fid keeps floats.
        weights: path of torch-fidelity's weights; None: its own copy, downloaded on first use.
        device: where the network runs.

    Raises:
        ImportError: torch-fidelity, or a torchvision that fits, is not installed.
        ValueError: another ``resize``.
        FileNotFoundError: there is no file ``weights``.
    """

    name = "inception-v3-torch-fidelity"
    size: tuple[int, int] | None = (299, 299)
    dim = 2048

    def __init__(
        self,
        resize: str = "tensorflow-bilinear",
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if resize not in ("tensorflow-bilinear", "pil-bicubic"):
            raise ValueError(f"expected resize to be tensorflow-bilinear or pil-bicubic, got {resize!r}")
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"expected Inception weights of torch-fidelity at {weights}, found no file")
        try:
            from torch_fidelity import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
            raise ImportError(
                f"FID needs torch-fidelity and a torchvision that fits this torch ({error}); pip install 'lotts[fid]'. "
                "Without it, ShapesFeatures or an extractor of your own gives Fréchet distances in other features"
            ) from error
        self.resize = resize
        self.version = version("torch-fidelity")
        if weights is not None:
            self.version += f" {hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:8]}"
        path = None if weights is None else str(weights)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=path)
        self.network, self.device = network.to(device), torch.device(device)

    @torch.no_grad()
    def features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """float32 [N, 2048] for uint8 [H, W, 3] pictures; those of one size go through the network together."""
        if self.resize != "tensorflow-bilinear":
            images = [resized(image, (299, 299), self.resize) for image in images]
        out = torch.zeros(len(images), self.dim)
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(index)
        for indices in by_size.values():
            batch = torch.from_numpy(np.stack([images[index] for index in indices])).permute(0, 3, 1, 2)
            out[indices] = self.network(batch.to(self.device))[0].float().cpu()
        return out


def resized(image: np.ndarray, size: tuple[int, int], resize: str) -> np.ndarray:
    """uint8 [H, W, 3] brought to ``size`` (height, width) by Pillow; as it is where it has that size."""
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize(size[::-1], _PILLOW[resize]))
