"""Which text tokens of a prompt carry its content, as 0/1 weights: attention mass is the sum over those tokens."""

import re
from collections.abc import Sequence
from typing import Any

import torch

QUALITY_POSITIVE = "A high-quality image of {p}."
QUALITY_NEGATIVE = "A low-quality image of {p}."

_STOP_WORD_LIST = """
    a an the this that these those its his her their my your our of and or nor but in on at by to from for with
    without as into onto over under near above below between behind beside beneath through is are was were be been
    being has have had it he she they there which who whose while very so such no not than then s t
"""
STOP_WORDS = frozenset(_STOP_WORD_LIST.split())

_WORD = re.compile(r"[^\W_]+")


def content_weights(
    tokenizer: Any, prompts: Sequence[str], *, template: str | None = None, max_length: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids as the pipelines make them, and weight 1 on each content token of the prompts.

    Content is neither special token, padding, punctuation nor stop word; a prompt of stop words alone counts all its
    words. With a `template` such as `QUALITY_POSITIVE`, in which `{p}` stands for the prompt, the text tokenised is
    the filled template and only the tokens of the prompt inside it count.

    Args:
        tokenizer: a tokenizer with offsets (`is_fast`), such as `pipe.tokenizer`.
        prompts: B prompts.
        template: text with one `{p}`, or None for the prompt alone.
        max_length: L, the tokens that the pipeline reads; default: `tokenizer.model_max_length`.

    Returns:
        input_ids int64 [B, L] and weights fp32 [B, L].

    Raises:
        TypeError: the tokenizer cannot say where its tokens lie in the text, or `prompts` is a single string.
        ValueError: the template does not contain `{p}` exactly once.
    """
    if isinstance(prompts, str):
        raise TypeError("expected prompts as a sequence of strings, got one string; write [prompt]")
    prefix, suffix = _split_template(template)
    input_ids, spans = _tokenize(tokenizer, [prefix + prompt + suffix for prompt in prompts], max_length)
    weights = torch.zeros(input_ids.shape, dtype=torch.float32)
    for row, prompt in enumerate(prompts):
        words = list(_WORD.finditer(prompt))
        content = [word for word in words if word.group().lower() not in STOP_WORDS] or words
        offset = len(prefix)
        chosen = [(word.start() + offset, word.end() + offset) for word in content]
        weights[row] = _overlap(spans[row], chosen)
    return input_ids, weights


def word_weights(tokenizer: Any, prompt: str, words: Sequence[str], *, max_length: int | None = None) -> torch.Tensor:
    """Weights fp32 [L, W]: column w is 1 on the tokens of every occurrence of `words[w]` in the prompt.

    L is `max_length`, as in `content_weights`. A word may be a phrase; case and the amount of white space do not matter,
    word boundaries do.

    Raises:
        TypeError: `words` is a single string, or the tokenizer has no offsets.
        ValueError: a word does not occur in the prompt, or only beyond the tokenizer's maximal length.
    """
    if isinstance(words, str):
        raise TypeError(f"expected words as a sequence of strings, got one string; write [{words!r}]")
    input_ids, spans = _tokenize(tokenizer, [prompt], max_length)
    weights = torch.zeros((input_ids.shape[1], len(words)), dtype=torch.float32)
    for column, word in enumerate(words):
        occurrences = find_word(prompt, word)
        if not occurrences:
            raise ValueError(f"the word {word!r} does not occur in the prompt {prompt!r}")
        weights[:, column] = _overlap(spans[0], occurrences)
        if not weights[:, column].any():
            raise ValueError(f"the word {word!r} lies beyond the {input_ids.shape[1]} tokens the text encoder reads")
    return weights


def template_word_weights(
    tokenizer: Any, prompt: str, template: str, words: Sequence[str], *, max_length: int | None = None
) -> torch.Tensor:
    """Weights fp32 [L]: 1 on the tokens of the words, wherever the template around the prompt has them.

    Words that the template has not are left out, so that one list serves for two templates.

    Raises:
        TypeError: the tokenizer has no offsets.
        ValueError: the template does not contain `{p}` exactly once, or none of the words.
    """
    prefix, suffix = _split_template(template)
    spans = [span for word in words for span in find_word(prefix, word)]
    after = len(prefix) + len(prompt)
    spans += [(start + after, end + after) for word in words for start, end in find_word(suffix, word)]
    if not spans:
        raise ValueError(f"expected one of the words {', '.join(map(repr, words))} in the quality prompt {template!r}")
    _, places = _tokenize(tokenizer, [prefix + prompt + suffix], max_length)
    return _overlap(places[0], spans)


def find_word(prompt: str, word: str) -> list[tuple[int, int]]:
    """Character spans of the occurrences of a word or phrase in the prompt, whatever their case."""
    parts = [re.escape(part) for part in word.split()]
    if not parts:
        return []
    pattern = r"(?<!\w)" + r"\s+".join(parts) + r"(?!\w)"
    return [match.span() for match in re.finditer(pattern, prompt, re.IGNORECASE)]


def _split_template(template: str | None) -> tuple[str, str]:
    if template is None:
        return "", ""
    if template.count("{p}") != 1:
        raise ValueError(f"expected a template with one {{p}} for the prompt, got {template!r}")
    prefix, suffix = template.split("{p}")
    return prefix, suffix


def _tokenize(
    tokenizer: Any, texts: list[str], max_length: int | None
) -> tuple[torch.Tensor, list[list[tuple[int, int]]]]:
    """Token ids [B, L] and the character span of each token; special tokens and padding have the empty span."""
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(
            f"expected a fast tokenizer, which knows where its tokens lie in the text, got {type(tokenizer).__name__}"
        )
    encoded = tokenizer(
        texts,
        padding="max_length",
        max_length=max_length or tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    spans = [
        [(0, 0) if special else (int(start), int(end)) for (start, end), special in zip(offsets, mask, strict=True)]
        for offsets, mask in zip(
            encoded["offset_mapping"].tolist(), encoded["special_tokens_mask"].tolist(), strict=True
        )
    ]
    return encoded["input_ids"], spans


def _overlap(tokens: list[tuple[int, int]], chosen: list[tuple[int, int]]) -> torch.Tensor:
    """1 for each token span that shares a character with one of the chosen spans, else 0; fp32 [L]."""
    hits = [any(start < stop_word and start_word < end for start_word, stop_word in chosen) for start, end in tokens]
    return torch.tensor(hits, dtype=torch.float32)
