"""Mean and covariance of features, as a stream: batch by batch, in any order, on any number of workers."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lotts.files import write_whole

FORMAT = 1


@dataclass(frozen=True)
class Origin:
    """Whose features: numbers of different origins are not comparable.

    Attributes:
        extractor, version: the extractor's.
        size: (height, width) in pixels of what its network sees, None where pictures keep their size.
        resize: how pictures come to that size, see ``lotts.metrics.extractors``.
    """

    extractor: str
    version: str
    size: tuple[int, int] | None
    resize: str


class Moments:
    """Count, mean and covariance of feature vectors, in float64.

    Batches are centred on their own mean before they are combined, so that a mean far from zero costs no digits
    (Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979). The order of
    the samples and how they were batched or spread over workers changes the result by rounding alone.

    Args:
        origin: of the features; only moments of the same origin combine.
        dim: D, the length of a feature vector.
    """

    def __init__(self, origin: Origin, dim: int) -> None:
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            raise ValueError(f"expected dim to be a whole number from 1 up, got {dim!r}")
        self.origin, self.dim, self.count = origin, dim, 0
        self._mean = np.zeros(dim)
        self._scatter = np.zeros((dim, dim))

    def update(self, features: np.ndarray | torch.Tensor) -> None:
        """Add samples [N, D].

        Raises:
            ValueError: another shape, or a value that is not finite; nothing is added then.
        """
        array = self._checked(features)
        if not len(array):
            return
        mean = array.mean(0)
        centred = array - mean
        self._combine(len(array), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together; neither operand changes.

        Raises:
            ValueError: the features are not of the same origin and length.
        """
        if (self.origin, self.dim) != (other.origin, other.dim):
            raise ValueError(
                f"expected moments of {self.dim} features from {self.origin}, got {other.dim} from {other.origin}"
            )
        out = Moments(self.origin, self.dim)
        for part in (self, other):
            out._combine(part.count, part._mean, part._scatter)
        return out

    @staticmethod
    def merged(parts: Iterable[Moments]) -> Moments:
        """The moments of all ``parts``, as ``merge``; ValueError when there is none."""
        given = list(parts)
        if not given:
            raise ValueError("expected moments to merge, got none")
        out = Moments(given[0].origin, given[0].dim)
        for part in given:
            out = out.merge(part)
        return out

    @property
    def mean(self) -> np.ndarray:
        """float64 [D]; ValueError for no samples."""
        self._expect(1)
        return self._mean.copy()

    @property
    def covariance(self) -> np.ndarray:
        """float64 [D, D] of the samples, with N - 1 below the line; ValueError for fewer than two samples."""
        self._expect(2)
        return self._scatter / (self.count - 1)

    def save(self, path: str | Path) -> Path:
        """Write an .npz of arrays and text (no pickle); the file appears complete or not at all."""
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"expected a path that ends in .npz, got {path}")
        buffer = io.BytesIO()
        np.savez(
            buffer,
            format=FORMAT,
            count=self.count,
            mean=self._mean,
            scatter=self._scatter,
            extractor=self.origin.extractor,
            version=self.origin.version,
            resize=self.origin.resize,
            size=np.array(self.origin.size or (), np.int64),
        )
        write_whole(path, buffer.getvalue())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is another kind of file, or its arrays do not fit each other.
        """
        fields = _read(Path(path))
        mean, scatter, count = fields["mean"], fields["scatter"], int(fields["count"])
        fits = mean.ndim == 1 and mean.size and scatter.shape == (mean.size, mean.size)
        if not fits or mean.dtype != np.float64 or scatter.dtype != np.float64:
            raise ValueError(
                f"expected float64 mean [D] and scatter [D, D] in {path}, got "
                f"{mean.dtype} {list(mean.shape)} and {scatter.dtype} {list(scatter.shape)}"
            )
        if count < 0 or not (np.isfinite(mean).all() and np.isfinite(scatter).all()):
            raise ValueError(f"expected a count from 0 up and finite numbers in {path}")
        size = tuple(int(side) for side in fields["size"])
        named = {name: str(fields[name]) for name in ("extractor", "version", "resize")}
        out = cls(Origin(**named, size=(size[0], size[1]) if size else None), mean.size)
        out._combine(count, mean, scatter)
        return out

    def _combine(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if not count:
            return
        total = self.count + count
        shift = mean - self._mean
        self._scatter = self._scatter + scatter + np.outer(shift, shift) * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total

    def _checked(self, features: np.ndarray | torch.Tensor) -> np.ndarray:
        array = features.detach().cpu().double().numpy() if isinstance(features, torch.Tensor) else np.asarray(features)
        if array.ndim != 2 or array.shape[1] != self.dim or not np.issubdtype(array.dtype, np.number):
            raise ValueError(f"expected features [N, {self.dim}], got {array.dtype} {list(array.shape)}")
        array = array.astype(np.float64)
        if len(wrong := np.flatnonzero(~np.isfinite(array).all(1))):
            raise ValueError(f"expected finite features, got NaN or infinity in sample {wrong[0]} of {len(array)}")
        return array

    def _expect(self, least: int) -> None:
        if self.count < least:
            raise ValueError(f"expected at least {least} samples, got {self.count}: update with more features")


def _read(path: Path) -> dict[str, Any]:
    """The arrays of a file that ``save`` wrote; ValueError for any other."""
    names = {"format", "count", "mean", "scatter", "extractor", "version", "resize", "size"}
    if not path.is_file():
        raise FileNotFoundError(f"expected moments saved by Moments.save, found no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = dict(file)
    except (AttributeError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"expected moments saved by Moments.save, got {path}: {error}") from None
    if missing := names - set(fields):
        raise ValueError(
            f"expected {', '.join(sorted(missing))} in {path}: not there, so Moments.save did not write it"
        )
    if int(fields["format"]) != FORMAT:
        raise ValueError(f"expected moments of format {FORMAT} in {path}, got {fields['format']}")
    return fields
