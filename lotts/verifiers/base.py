"""What a verifier is: prompts encoded once, pictures prepared on the CPU, scores in float32, weights that move in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from lotts.models import DTYPES

V = TypeVar("V", bound="Verifier")


class Unjudged(ValueError):
    """A verifier has no score for one picture. ``forward`` raises it with the position in the batch and the reason;
    ``Verifier.score`` passes it on with the picture's index and prompt."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position, self.reason = position, reason


class Verifier(ABC):
    """Judges pictures against prompts. A subclass says how one picture is prepared and how a batch of them is scored.

    It is also a plain callable ``(images, prompts) -> scores``, higher is better, which is all that ``LoTTS`` needs.

    Every ``torch.nn.Module`` among the attributes moves with ``to``, ``offload`` and ``on``.

    Args:
        dtype: of the weights and of the compute, "fp32", "fp16", "bf16" or a torch dtype; scores are float32 always.

    Attributes:
        name: as the registry calls it.
        version: which weights, as ``repository@revision`` or a file's name.
        scale: a sentence on units and range.
        higher_is_better: what a larger score means.
        batch_size: pictures scored at once when the caller does not say.
        follows: whether it moves to the pipeline's device while the samples of a run are scored; otherwise it stays.
    """

    name: str
    version: str
    scale: str
    higher_is_better: bool = True
    batch_size: int = 8
    follows: bool = True

    def __init__(self, dtype: str | torch.dtype = torch.float32) -> None:
        self.dtype = as_dtype(dtype)
        self._device = torch.device("cpu")

    @property
    def device(self) -> torch.device:
        """Where the weights are; without weights, where ``to`` sent it."""
        return next((p.device for module in self._modules() for p in module.parameters()), self._device)

    def _modules(self) -> list[torch.nn.Module]:
        return [value for value in vars(self).values() if isinstance(value, torch.nn.Module)]

    @abstractmethod
    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """One RGB picture as the tensor that ``forward`` takes a batch of, on the CPU."""

    @abstractmethod
    def forward(self, tensors: Any, cache: list[Any]) -> torch.Tensor:
        """Scores [B] of what ``collate`` made of B preprocessed pictures, with the cache entry of each one's prompt."""

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What ``forward`` needs of each distinct prompt, on the CPU, so that it is worked out once. Default: the prompt."""
        return {prompt: prompt for prompt in prompts}

    def collate(self, tensors: list[torch.Tensor]) -> Any:
        """A batch of preprocessed pictures on the verifier's device: stacked. Override it where their shapes differ."""
        return torch.stack(tensors).to(self.device)

    @torch.no_grad()
    def score(
        self,
        images: Sequence[Image.Image | np.ndarray],
        prompts: Sequence[str],
        cache: dict[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> torch.Tensor:
        """Score pictures.

        Args:
            images: PIL images of any mode, or float [H, W, 3] arrays in [0, 1].
            prompts: one a picture.
            cache: of ``encode_prompts``; prompts that it lacks are encoded and put into it.
            batch_size: pictures at once; default: the verifier's own.

        Returns:
            float32 CPU tensor [N].

        Raises:
            ValueError: the counts differ, a picture is not as said, or a score is not finite; the message names the picture.
        """
        if isinstance(prompts, str) or len(images) != len(prompts):
            got = "one string" if isinstance(prompts, str) else str(len(prompts))
            raise ValueError(f"expected one prompt for each of {len(images)} images, got {got}")
        size = self.batch_size if batch_size is None else batch_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"expected batch_size to be a whole number from 1 up, got {size!r}")
        pictures = [as_picture(image, index) for index, image in enumerate(images)]
        cache = {} if cache is None else cache
        if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in cache]:
            cache.update(self.encode_prompts(missing))
        scores = torch.empty(len(pictures), dtype=torch.float32)
        for start in range(0, len(pictures), size):
            batch = slice(start, start + size)
            tensors = self.collate([self.preprocess(picture) for picture in pictures[batch]])
            try:
                scores[batch] = self.forward(tensors, [cache[prompt] for prompt in prompts[batch]]).float().cpu()
            except Unjudged as failure:
                index = start + failure.position
                raise Unjudged(index, f"{self.name} picture {index} ({prompts[index]!r}): {failure.reason}") from None
        check_finite(self.name, scores, prompts)
        return scores

    def __call__(self, images: Sequence[Image.Image | np.ndarray], prompts: Sequence[str]) -> list[float]:
        """``score`` as numbers, negated where a lower score is the better one."""
        scores = self.score(images, prompts)
        return (scores if self.higher_is_better else -scores).tolist()

    def to(self: V, device: str | torch.device) -> V:
        """Move the weights; returns the verifier."""
        self._device = torch.device(device)
        for module in self._modules():
            module.to(self._device)
        return self

    def offload(self: V) -> V:
        """Move the weights to the CPU and give the accelerator's memory back; returns the verifier."""
        left = self.device
        self.to("cpu")
        if left.type == "cuda":
            torch.cuda.empty_cache()
        return self

    @contextmanager
    def on(self: V, device: str | torch.device) -> Iterator[V]:
        """``with verifier.on("cuda"): ...`` moves in, and out again to where it was, also after an exception."""
        home = self.device
        try:
            yield self.to(device)
        finally:
            self.offload() if home.type == "cpu" else self.to(home)


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating torch dtype, by its name or itself; ValueError otherwise."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"expected dtype to be one of {', '.join(DTYPES)} or a floating torch dtype, got {dtype!r}")
    return found


def as_picture(image: Image.Image | np.ndarray, index: int = 0) -> Image.Image:
    """An RGB PIL image from one of any mode or a float [H, W, 3] array in [0, 1]; ``index`` goes into error messages.

    An alpha channel is dropped and greys are repeated, as the published pipelines do.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"expected a float [H, W, 3] array in [0, 1] or a PIL image as picture {index}, "
            f"got {type(image).__name__} {array.dtype} {list(array.shape)}"
        )
    if not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"expected picture {index} in [0, 1], got values from {array.min()} to {array.max()}")
    return Image.fromarray(np.rint(array * 255).astype(np.uint8))


def check_finite(name: str, scores: torch.Tensor, prompts: Sequence[str]) -> None:
    """ValueError that names the first picture whose score is NaN or infinite."""
    wrong = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if wrong:
        index = wrong[0]
        raise ValueError(
            f"{name} scored picture {index} ({prompts[index]!r}) {float(scores[index])}: expected a finite number"
        )
