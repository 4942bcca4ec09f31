"""The verifier ``ocr``: whether the words that a prompt quotes can be read in the picture."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image

from lotts.verifiers.base import Verifier

#: Takes uint8 RGB [H, W, 3]; returns the lines that it reads, from top to bottom.
Reader = Callable[[np.ndarray], Sequence[str]]

_QUOTED = re.compile(
    r"""
    "([^"\n]+)" | “([^“”\n]+)”
    | (?<!\w)'((?:[^'\n]|(?<=\w)'(?=\w))+)'(?!\w)     # an apostrophe inside a word closes nothing
    | (?<!\w)‘((?:[^‘’\n]|(?<=\w)’(?=\w))+)’(?!\w)
    """,
    re.VERBOSE,
)


class OCRVerifier(Verifier):
    """Reads the picture and compares with what the prompt quotes, as in ``a shop sign that says "OPEN"``.

    A quoted text scores 1 - d / n with the run of words in the picture that is closest to it: d is their edit distance, n
    the length of the longer of both. Case and spaces do not count, and a text may run over several lines. The score is
    the mean over the prompt's quoted texts: 1 when all can be read as they are quoted, 0 when the picture has no text.
    Whole words are compared, so a letter too many counts as much as one too few. Text that nobody asked for costs nothing.

    Args:
        reader: what reads a picture; default: RapidOCR with the weights in its package, which know English and Chinese.

    Raises:
        ImportError: RapidOCR is not installed and no ``reader`` was given.
        TypeError: ``reader`` is no callable.
    """

    name = "ocr"
    scale = "0 to 1, share of the quoted letters that can be read, as an edit distance"
    batch_size = 1
    follows = False

    def __init__(self, reader: Reader | None = None) -> None:
        super().__init__()
        if reader is not None and not callable(reader):
            raise TypeError(f"expected reader as a callable from pixels to lines of text, got {reader!r}")
        self.version = f"rapidocr-onnxruntime {_rapidocr_version()}" if reader is None else "a reader of the caller's"
        self.reader = _rapidocr() if reader is None else reader

    def check_prompt(self, prompt: str) -> None:
        """Raises ValueError for a prompt that quotes nothing."""
        quoted(prompt)

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The quoted texts of each prompt; ValueError for one that quotes nothing."""
        return {prompt: quoted(prompt) for prompt in prompts}

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """uint8 [H, W, 3]: the reader itself brings a picture to its size."""
        return torch.from_numpy(np.array(image))

    def collate(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Pictures of any size, as they are."""
        return tensors

    def forward(self, tensors: list[torch.Tensor], cache: list[Any]) -> torch.Tensor:
        """Scores [B] in [0, 1] of uint8 [H, W, 3] pictures with their quoted texts."""
        scores = []
        for picture, texts in zip(tensors, cache, strict=True):
            words = [word for line in self.reader(picture.numpy()) for word in line.split()]
            scores.append(sum(closeness(text, words) for text in texts) / len(texts))
        return torch.tensor(scores)


def quoted(prompt: str) -> list[str]:
    """What a prompt quotes, each text once: within "", “”, '' or ‘’.

    A comma, full stop or semicolon at the end belongs to the sentence, not to the sign, and is dropped.

    Raises:
        ValueError: nothing is quoted.
    """
    found = [next(filter(None, match.groups())).rstrip(" ,.;") for match in _QUOTED.finditer(prompt)]
    texts = [text for text in dict.fromkeys(found) if _letters(text)]
    if not texts:
        raise ValueError(
            f"the ocr verifier expected a prompt that quotes the words to be read, such as "
            f'a shop sign that says "OPEN", got {prompt!r}'
        )
    return texts


def closeness(text: str, words: Sequence[str]) -> float:
    """1 - edit distance / longer length, in [0, 1], between ``text`` and the closest run of ``words``."""
    wanted, parts = _letters(text), [_letters(word) for word in words]
    most = len(text.split()) + 2  # the reader may break a word or two
    best = 0.0
    for start in range(len(parts)):
        for end in range(start + 1, min(start + most, len(parts)) + 1):
            run = "".join(parts[start:end])
            longer = max(len(wanted), len(run))
            if min(len(wanted), len(run)) > best * longer:  # otherwise the lengths alone rule it out
                best = max(best, 1 - edit_distance(wanted, run) / longer)
    return best


def edit_distance(a: str, b: str) -> int:
    """Fewest insertions, deletions and substitutions of a character from ``a`` to ``b`` (Levenshtein, 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def _letters(text: str) -> str:
    """Without case, width and spaces, and with one kind of apostrophe."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("‘", "'").split())


def _rapidocr_version() -> str:
    try:
        import rapidocr_onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"the ocr verifier needs RapidOCR ({error}); pip install 'lotts[ocr]' on Python 3.10 to 3.12, for which it is "
            "published, or give it a reader of your own"
        ) from error
    return version("rapidocr-onnxruntime")


def _rapidocr() -> Reader:
    from rapidocr_onnxruntime import RapidOCR

    # Its own default is every core, whatever torch was told.
    engine = RapidOCR(intra_op_num_threads=torch.get_num_threads())

    def read(pixels: np.ndarray) -> list[str]:
        found, _ = engine(np.ascontiguousarray(pixels[..., ::-1]))  # arrays are taken for BGR
        return [text for _, text, *_ in found or []]

    return read
