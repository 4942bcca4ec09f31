"""Which tokens of a prompt, as a pipeline reads it, carry its content and its words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from lotts.backbones.conditioning import Embedding
from lotts.capture.tokens import content_weights, template_word_weights, word_weights


class PromptTokens(ABC):
    """The part of a backbone that embeds prompts and tells their tokens apart, whichever tokenizers make them."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._embedded: dict[str, Embedding] = {}

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Embedding:
        """Embed B prompts as the pipeline does, for the positive side."""

    def embed_once(self, prompt: str) -> Embedding:
        """``embed`` of one prompt, remembered until ``forget``: text encoders that take turns with the network on a device
        are not called back to it in the middle of a run.
        """
        if prompt not in self._embedded:
            self._embedded[prompt] = self.embed([prompt])
        return self._embedded[prompt]

    def forget(self) -> None:
        """A run begins: what was embedded before may be other encoders' by now."""
        self._embedded = {}

    @property
    @abstractmethod
    def segments(self) -> list[tuple[Any, int]]:
        """The tokenizers whose tokens, one after the other, are those of an ``Embedding``, and how many each gives."""

    def content_weights(self, prompts: Sequence[str], *, template: str | None = None) -> torch.Tensor:
        """Weight 1 on the tokens that carry the prompts' content, fp32 [B, L]; see ``lotts.capture.tokens``.

        Raises:
            ValueError: a prompt has none, as one of emoji or punctuation alone.
        """
        parts = [
            content_weights(tokenizer, self._spelled_out(prompts, tokenizer), template=template, max_length=length)[1]
            if tokenizer is not None
            else torch.zeros((len(prompts), length))
            for tokenizer, length in self.segments
        ]
        weights = torch.cat(parts, dim=1)
        for prompt, weight in zip(prompts, weights, strict=True):
            if not weight.any():
                raise ValueError(
                    f"expected words among what the text encoder reads of a prompt, got none of {prompt!r}: there is no attention "
                    "to map. Describe the picture in words, or do without attention, source='prediction'"
                )
        return weights

    def template_word_weights(self, prompt: str, template: str, words: Sequence[str]) -> torch.Tensor:
        """Weight 1 on the tokens of the words of a template filled with the prompt, fp32 [1, L]."""
        parts = [
            template_word_weights(
                tokenizer, self._spelled_out([prompt], tokenizer)[0], template, words, max_length=length
            )
            if tokenizer is not None
            else torch.zeros(length)
            for tokenizer, length in self.segments
        ]
        return torch.cat(parts)[None]

    def word_weights(self, prompt: str, words: Sequence[str]) -> torch.Tensor:
        """Weight 1 on the tokens of every occurrence of each word, fp32 [L, W]."""
        if not words:
            return torch.zeros((sum(length for _, length in self.segments), 0))
        return torch.stack([self._word_weight(prompt, word) for word in words], dim=1)

    def _word_weight(self, prompt: str, word: str) -> torch.Tensor:
        parts, unread = [], None
        for tokenizer, length in self.segments:
            part = torch.zeros(length)
            try:
                if tokenizer is not None:
                    text, asked = self._spelled_out([prompt, word], tokenizer)
                    part = word_weights(tokenizer, text, [asked], max_length=length)[:, 0]
            except ValueError as error:  # beyond what this tokenizer reads, but another may read it
                unread = error
            parts.append(part)
        weight = torch.cat(parts)
        if unread is not None and not weight.any():
            raise unread
        return weight

    def _spelled_out(self, texts: Sequence[str], tokenizer: Any) -> list[str]:
        """The texts as the pipeline gives them to a tokenizer: a textual-inversion word of several vectors becomes several."""
        convert = getattr(self.pipe, "maybe_convert_prompt", None)
        return list(texts) if convert is None else convert(list(texts), tokenizer)
