"""The Fréchet distance between two sets of pictures, and what has to be said with it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lotts.metrics.extractors import FeatureExtractor, origin
from lotts.metrics.moments import Moments, Origin
from lotts.metrics.pictures import Picture, as_pixels


@dataclass(frozen=True)
class FrechetResult:
    """A distance with all that its value depends on; print it, or store ``as_dict()``.

    Attributes:
        value: the squared Fréchet distance, 0 or more; smaller is closer. It is FID when ``origin`` is Inception's.
        origin: extractor, version, size and resize.
        dim: D, the length of a feature vector.
        reference, generated: how many pictures were in each set.
    """

    value: float
    origin: Origin
    dim: int
    reference: int
    generated: int

    def __str__(self) -> str:
        size = "own size" if self.origin.size is None else f"{self.origin.size[0]} x {self.origin.size[1]}"
        return (
            f"{self.value:.4f} ({self.origin.extractor} {self.origin.version}, {self.dim} features, "
            f"{self.origin.resize} to {size}, {self.generated} against {self.reference} pictures)"
        )

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self.origin), **{name: value for name, value in vars(self).items() if name != "origin"}}


def moments_of(pictures: Iterable[Picture], extractor: FeatureExtractor, batch_size: int = 32) -> Moments:
    """Features of pictures, summed up; only ``batch_size`` pictures are held at a time.

    Args:
        pictures: a list or a generator of PIL images, arrays, tensors or paths.
        extractor: ``InceptionFeatures()`` for FID, ``ShapesFeatures()``, or one of your own.

    Raises:
        TypeError, ValueError: an argument, or a picture, is not as said; or the features are not [N, D] and finite.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"expected batch_size to be a whole number from 1 up, got {batch_size!r}")
    out = Moments(origin(extractor), extractor.dim)
    for batch in _batches(pictures, batch_size):
        features = extractor.features(batch)
        if len(features) != len(batch):
            raise ValueError(f"expected features of {len(batch)} pictures from {extractor.name}, got {len(features)}")
        out.update(features)
    return out


def fid(reference: Moments, generated: Moments) -> FrechetResult:
    """The Fréchet distance between two sets (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017).

    Warns when a set has no more pictures than features: its covariance is then singular and the distance mostly bias.

    Raises:
        ValueError: the features differ in origin or length, or a set has fewer than two pictures.
    """
    if (reference.origin, reference.dim) != (generated.origin, generated.dim):
        raise ValueError(
            f"expected both sets in the same features, got {reference.dim} from {reference.origin} and "
            f"{generated.dim} from {generated.origin}"
        )
    value = frechet_distance(reference.mean, reference.covariance, generated.mean, generated.covariance)
    for name, moments in (("reference", reference), ("generated", generated)):
        if moments.count <= moments.dim:
            warnings.warn(
                f"the {name} set has {moments.count} pictures for {moments.dim} features: its covariance is singular and "
                "the distance mostly bias. Compare only numbers with equally many pictures, better with many more",
                stacklevel=2,
            )
    return FrechetResult(value, reference.origin, reference.dim, reference.count, generated.count)


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """The squared Fréchet (2-Wasserstein) distance between two Gaussians, in float64.

    |mean_a - mean_b|^2 + tr(cov_a) + tr(cov_b) - 2 tr((cov_a^1/2 cov_b cov_a^1/2)^1/2) (Dowson, Landau, 1982). The matrix in
    the last term is symmetric, so its eigenvalues are real and the trace is the sum of their roots: no general matrix
    square root, which is slower and may turn complex on a singular covariance.

    Args:
        mean_a, mean_b: [D].
        cov_a, cov_b: symmetric positive semi-definite [D, D].

    Raises:
        ValueError: the shapes do not fit, a value is not finite, or a covariance is not symmetric and positive semi-definite.
    """
    means = [np.asarray(mean, np.float64) for mean in (mean_a, mean_b)]
    covs = [np.asarray(cov, np.float64) for cov in (cov_a, cov_b)]
    dim = means[0].size
    for mean, cov in zip(means, covs, strict=True):
        if not dim or mean.shape != (dim,) or cov.shape != (dim, dim):
            raise ValueError(f"expected means [{dim}] and covariances [{dim}, {dim}], got {mean.shape} and {cov.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise ValueError("expected finite means and covariances, got NaN or infinity")
        if not np.allclose(cov, cov.T, rtol=1e-10, atol=1e-10 * np.abs(cov).max()):
            raise ValueError("expected symmetric covariances, got one that is not")
    root = _root(covs[0])
    product = root @ covs[1] @ root
    overlap = np.sqrt(_not_negative(np.linalg.eigvalsh((product + product.T) / 2))).sum()
    distance = np.sum((means[0] - means[1]) ** 2) + np.trace(covs[0]) + np.trace(covs[1]) - 2 * overlap
    # Equal sets may come out a rounding error below zero.
    return max(0.0, float(distance))


def _root(cov: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(_not_negative(values))) @ vectors.T


def _not_negative(eigenvalues: np.ndarray) -> np.ndarray:
    """Eigenvalues [D], ascending, of a positive semi-definite matrix without the rounding that puts some below zero."""
    if eigenvalues[0] < -1e-8 * max(abs(eigenvalues[-1]), np.finfo(np.float64).tiny):
        raise ValueError(
            f"expected positive semi-definite covariances, got one with eigenvalues from {eigenvalues[0]:.3g} "
            f"to {eigenvalues[-1]:.3g}"
        )
    return np.clip(eigenvalues, 0, None)


def _batches(pictures: Iterable[Picture], size: int) -> Iterator[list[np.ndarray]]:
    numbered = enumerate(pictures)
    while batch := [as_pixels(picture, f"picture {index}") for index, picture in itertools.islice(numbered, size)]:
        yield batch
