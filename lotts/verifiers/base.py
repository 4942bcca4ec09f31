"""What a verifier is: prompts encoded once, pictures prepared on the CPU, scores in float32, weights that move in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from lotts.checks import check_depth
from lotts.models import DTYPES

V = TypeVar("V", bound="Verifier")


class Judge(Protocol):
    """Scores pictures, higher is better: all that the method asks of a verifier.

    ``images``: float32 [H, W, 3] arrays in [0, 1]; ``prompts``: one a picture. Returns N numbers. A judge may have
    ``check_prompt(prompt)``, which raises ValueError for a prompt that it cannot judge. ``Verifier`` is the base class
    of those that hold weights.
    """

    def __call__(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> Sequence[float] | torch.Tensor: ...


class Unjudged(ValueError):
    """A verifier has no score for one picture. ``forward`` raises it with the position in the batch and the reason;
    ``Verifier.score`` passes it on with the picture's index and prompt."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position, self.reason = position, reason


class Verifier(ABC):
    """Judges pictures against prompts. A subclass says how one picture is prepared and how a batch of them is scored.

    It is also a plain callable ``(images, prompts) -> scores``, higher is better, which is all that ``LoTTS`` needs.

    Every ``torch.nn.Module`` with parameters among the attributes moves with ``to``, ``offload`` and ``on``.

    Args:
        dtype: of the weights and of the compute, "fp32", "fp16", "bf16" or a torch dtype; scores are float32 always.

    Attributes:
        name: as the registry calls it.
        version: which weights, as ``repository@revision`` or a file's name.
        scale: a sentence on units and range.
        higher_is_better: what a larger score means.
        batch_size: pictures scored at once when the caller does not say.
        follows: whether it moves to the pipeline's device while the samples of a run are scored; otherwise it stays.
        mode: the PIL mode in which pictures reach ``preprocess``; None: as they are given.
    """

    name: str
    version: str
    scale: str
    higher_is_better: bool = True
    batch_size: int = 8
    follows: bool = True
    mode: str | None = "RGB"

    def __init__(self, dtype: str | torch.dtype = torch.float32) -> None:
        self.dtype = as_dtype(dtype)
        self._device = torch.device("cpu")

    @property
    def device(self) -> torch.device:
        """Where the weights are; without weights, where ``to`` sent it."""
        return next((next(module.parameters()).device for module in self._modules()), self._device)

    def _modules(self) -> list[torch.nn.Module]:
        modules = (value for value in vars(self).values() if isinstance(value, torch.nn.Module))
        return [module for module in modules if any(True for _ in module.parameters())]

    @abstractmethod
    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """One picture of the PIL mode ``mode`` as the tensor that ``forward`` takes a batch of, on the CPU."""

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
        pictures = [as_picture(image, index, self.mode) for index, image in enumerate(images)]

        def prepared(batch: slice) -> Any:
            return self.collate([self.preprocess(picture) for picture in pictures[batch]])

        return self._batched(prepared, prompts, cache, batch_size)

    def _batched(
        self,
        prepared: Callable[[slice], Any],
        prompts: Sequence[str],
        cache: dict[str, Any] | None,
        batch_size: int | None,
    ) -> torch.Tensor:
        """Finite scores [N] of what ``prepared`` makes of a slice of the pictures."""
        size = self.batch_size if batch_size is None else batch_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"expected batch_size to be a whole number from 1 up, got {size!r}")
        cache = {} if cache is None else cache
        if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in cache]:
            cache.update(self.encode_prompts(missing))
        scores = torch.empty(len(prompts), dtype=torch.float32)
        for start in range(0, len(prompts), size):
            batch = slice(start, start + size)
            entries = [cache[prompt] for prompt in prompts[batch]]
            try:
                found = self.forward(prepared(batch), entries).float().cpu()
            except Unjudged as failure:
                index = start + failure.position
                raise Unjudged(index, f"{self.name} picture {index} ({prompts[index]!r}): {failure.reason}") from None
            if found.shape != (len(entries),):
                raise ValueError(
                    f"expected forward of {self.name} to give [{len(entries)}] scores, got {list(found.shape)}"
                )
            scores[batch] = found
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
        _release(left)
        return self

    @contextmanager
    def on(self: V, device: str | torch.device) -> Iterator[V]:
        """``with verifier.on("cuda"): ...`` moves in, and out again to where it was, also after an exception."""
        home = self._device
        # Module by module: what it shares with another verifier may be elsewhere than the rest.
        homes = [(module, next(module.parameters()).device) for module in self._modules()]
        try:
            yield self.to(device)
        finally:
            self._device = home
            for module, place in homes:
                module.to(place)
            _release(device)


def _release(device: str | torch.device) -> None:
    """Give cached memory of an accelerator back."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def placed(judge: Judge, device: str | torch.device | None) -> AbstractContextManager[object]:
    """``judge.on(device)`` where it rests on the CPU, can move and ``follows``; otherwise nothing happens."""
    follows = device is not None and getattr(judge, "follows", False) and judge.device.type == "cpu"  # type: ignore[attr-defined]
    return judge.on(device) if follows else nullcontext()  # type: ignore[attr-defined]


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating torch dtype, by its name or itself; ValueError otherwise."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"expected dtype to be one of {', '.join(DTYPES)} or a floating torch dtype, got {dtype!r}")
    return found


def as_picture(image: Image.Image | np.ndarray, index: int = 0, mode: str | None = "RGB") -> Image.Image:
    """A PIL image of ``mode`` from one of any mode or a float [H, W, 3] array in [0, 1].

    To RGB, an alpha channel is dropped and greys are repeated, as the published pipelines do. With None a PIL image
    stays as it is. ``index`` goes into error messages.
    """
    if isinstance(image, Image.Image):
        check_depth(image, f"picture {index}")
        return image if mode is None else image.convert(mode)
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"expected a float [H, W, 3] array in [0, 1] or a PIL image as picture {index}, "
            f"got {type(image).__name__} {array.dtype} {list(array.shape)}"
        )
    if not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"expected picture {index} in [0, 1], got values from {array.min()} to {array.max()}")
    picture = Image.fromarray(np.rint(array * 255).astype(np.uint8))
    return picture if mode is None else picture.convert(mode)


def check_finite(name: str, scores: torch.Tensor, prompts: Sequence[str]) -> None:
    """ValueError that names the first picture whose score is NaN or infinite."""
    wrong = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if wrong:
        index = wrong[0]
        raise ValueError(
            f"{name} scored picture {index} ({prompts[index]!r}) {float(scores[index])}: expected a finite number"
        )
