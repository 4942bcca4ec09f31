"""`lotts.capture`: where in the image each word of the prompt attends, as a context manager around a pipeline call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lotts.capture.patch import attention_modules
from lotts.capture.recorder import AttentionRecorder, CaptureReport, Probe
from lotts.capture.selection import LayerFilter, check_layers, layer_filter
from lotts.capture.tokens import QUALITY_NEGATIVE, QUALITY_POSITIVE, find_word

if TYPE_CHECKING:
    from PIL.Image import Image

    from lotts.backbones import Backbone


class Maps:
    """Attention maps of a captured run, averaged over heads, layers and the denoising steps made so far.

    `maps["cat"]` is fp32 [h, w] on the latent grid, the attention mass in [0, 1] on the tokens of "cat"; with a list
    of prompts or several images a prompt it is [B, h, w], images of one prompt side by side, and 0 for the prompts
    without that word. Reading before the pipeline has run raises RuntimeError, another word KeyError.

    Attributes:
        words: the words captured, in the order given.
    """

    def __init__(self, recorder: AttentionRecorder, words: Sequence[str], single: bool):
        self.words = tuple(words)
        self._recorder = recorder
        self._single = single

    def __getitem__(self, word: str) -> torch.Tensor:
        if word not in self.words:
            raise KeyError(f"{word!r} was not captured; the words are {list(self.words)}")
        maps = self._recorder.cross_maps()[:, self.words.index(word)]
        return maps[0] if self._single and len(maps) == 1 else maps

    @property
    def original(self) -> torch.Tensor:
        """Mass on the content words of the prompt itself, [B, h, w]."""
        return self._recorder.cross_maps()[:, len(self.words)]

    @property
    def positive(self) -> torch.Tensor:
        """Mass on the content words under the positive quality prompt, [B, h, w]."""
        return self._quality(1)

    @property
    def negative(self) -> torch.Tensor:
        """Mass on the content words under the negative quality prompt, [B, h, w]."""
        return self._quality(2)

    @property
    def report(self) -> CaptureReport:
        """Which layers were captured and which ran native."""
        return self._recorder.report

    def image(self) -> Image:
        """A contact sheet of all maps as a PIL image: one row for each image of the batch."""
        from lotts.capture.sheet import contact_sheet

        labels = [*self.words, "original"]
        if self._recorder.positive is not None:
            labels += ["positive", "negative"]
        return contact_sheet([list(maps) for maps in self._recorder.cross_maps().cpu().numpy()], labels)

    def save(self, path: str | Path) -> None:
        """Write the contact sheet; the suffix of `path` chooses the format, `.png` by custom."""
        self.image().save(path)

    def show(self) -> None:
        """Open the contact sheet in the system's image viewer."""
        self.image().show()

    def _quality(self, offset: int) -> torch.Tensor:
        if self._recorder.positive is None:
            raise AttributeError("the quality prompts were not captured: call capture with quality=True")
        return self._recorder.cross_maps()[:, len(self.words) + offset]


@contextmanager
def capture(
    pipe: Any,
    prompt: str | Sequence[str],
    words: Sequence[str] = (),
    *,
    quality: bool = True,
    layers: LayerFilter = None,
    height: int | None = None,
    width: int | None = None,
) -> Iterator[Maps]:
    """Capture cross-attention maps of the pipeline calls made within the context; what they return is unchanged.

    On a CPU it is so to the bit; a GPU's kernels round otherwise than the plain attention's.

        with lotts.capture(pipe, "a red cat", words=["red", "cat"]) as maps:
            image = pipe("a red cat").images[0]
        maps["cat"]  # [h, w]

    Args:
        pipe: a diffusers pipeline with a U-Net or the transformer of FLUX or Stable Diffusion 3.
        prompt: the prompt, or list of prompts, that the pipeline is called with.
        words: words or phrases of the prompt to make a map of, each by itself.
        quality: also map the prompt's content under "A high-quality image of ..." and "A low-quality image of ...".
        layers: None for all layers, substrings of their names such as ["up_blocks"], or a predicate on the name.
        height, width: size of the images in pixels, where it is not the model's own.

    Raises:
        TypeError, ValueError: before any computation, for a pipeline of another kind, an empty prompt, a word that is
            in none of the prompts, a prompt without words, a name in `layers` that no layer has, or when no attention
            layer is supported.
        RuntimeError: on leaving, when nothing was recorded.
    """
    from lotts.backbones import capturable  # which itself needs this package

    backbone = capturable(pipe)
    prompts = _checked_prompts(prompt)
    weight = _columns(backbone, prompts, words)
    selected = layer_filter(layers, list(attention_modules(backbone.network)))
    check_layers(backbone.network, selected, backbone.order, kinds=("cross",), probes=quality)
    default_height, default_width = backbone.default_size
    size = backbone.latent_size(height or default_height, width or default_width)
    recorder = AttentionRecorder(
        backbone.network,
        weight.to(backbone.device),
        positive=_probe(backbone, prompts, QUALITY_POSITIVE) if quality else None,
        negative=_probe(backbone, prompts, QUALITY_NEGATIVE) if quality else None,
        latent_size=size,
        layers=selected,
        order=backbone.order,
    )
    recorder.record_cross = True
    recorder.rows = backbone.conditional_rows
    maps = Maps(recorder, words, single=isinstance(prompt, str))
    with recorder:
        yield maps
    if not recorder.layer_maps("cross"):
        raise RuntimeError(f"no attention map was recorded; was the pipeline called inside the block? {maps.report}")


def _checked_prompts(prompt: str | Sequence[str]) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise TypeError(f"expected a prompt or a list of prompts, got {prompt!r}")
    if not all(text.strip() for text in prompts):
        raise ValueError("expected prompts with words in them, got an empty one: it has no tokens to attend to")
    return prompts


def _columns(backbone: Backbone, prompts: list[str], words: Sequence[str]) -> torch.Tensor:
    """Weights fp32 [B, L, W + 1]: the words, then the content of each prompt."""
    if isinstance(words, str):
        raise TypeError(f"expected words as a sequence of strings, got one string; write [{words!r}]")
    missing = [word for word in words if not any(find_word(text, word) for text in prompts)]
    if missing:
        raise ValueError(f"no prompt contains {missing}; words must be spelled as in the prompt: {prompts}")
    content = backbone.content_weights(prompts)
    columns = torch.zeros((*content.shape, len(words) + 1))
    columns[..., -1] = content
    for i, word in enumerate(words):
        unread = None
        for row, text in enumerate(prompts):
            try:
                if find_word(text, word):
                    columns[row][:, i] = backbone.word_weights(text, [word])[:, 0]
            except ValueError as error:  # beyond what is read of this prompt, but another may have it earlier
                unread = error
        if unread is not None and not columns[..., i].any():
            raise unread
    return columns


def _probe(backbone: Backbone, prompts: list[str], template: str) -> Probe:
    with torch.no_grad():
        embeds = backbone.embed([template.replace("{p}", text) for text in prompts]).tokens
    return embeds, backbone.content_weights(prompts, template=template).to(backbone.device)
