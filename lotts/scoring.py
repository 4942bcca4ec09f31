"""Scoring pictures that lie in files: what ``lotts score`` does."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from lotts.checks import check_depth, counted_from, whole
from lotts.files import write_whole
from lotts.verifiers import load, score
from lotts.verifiers.base import placed
from lotts.verifiers.ensemble import Ensemble, Member, combine

#: Pictures in memory at once.
CHUNK = 32
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Scored:
    """Pictures and what was said of them.

    Attributes:
        images, prompts: N each, as given.
        columns: N scores of each verifier by its name, each on its own scale; of an ensemble also "combined".
        verifiers: name, version, scale, higher_is_better and weight of each.
    """

    images: list[str]
    prompts: list[str]
    columns: dict[str, list[float]]
    verifiers: list[dict[str, Any]]

    @property
    def ranking(self) -> list[float]:
        """The column that decides, higher is better."""
        if "combined" in self.columns:
            return self.columns["combined"]
        (column,) = self.columns.values()
        return column if self.verifiers[0]["higher_is_better"] else [-value for value in column]

    def best(self) -> list[int]:
        """The index of the first of the highest pictures of each prompt."""
        found: dict[str, int] = {}
        for index, (prompt, value) in enumerate(zip(self.prompts, self.ranking, strict=True)):
            if prompt not in found or value > self.ranking[found[prompt]]:
                found[prompt] = index
        return sorted(found.values())

    def table(self) -> str:
        """Lines of text: a picture, its scores, and a mark at the best of each prompt."""
        width = max(5, *(len(image) for image in self.images))
        names = list(self.columns)
        lines = [f"{'image':<{width}}  " + "  ".join(f"{name:>11}" for name in names)]
        best = self.best()
        for index, image in enumerate(self.images):
            numbers = "  ".join(f"{self.columns[name][index]:>11.4f}" for name in names)
            lines.append(f"{image:<{width}}  {numbers}{'  <- best' if index in best and len(self.images) > 1 else ''}")
        return "\n".join(lines)

    def as_json(self) -> str:
        rows = [
            {"image": image, "prompt": prompt, "scores": {name: column[i] for name, column in self.columns.items()}}
            for i, (image, prompt) in enumerate(zip(self.images, self.prompts, strict=True))
        ]
        return json.dumps({"verifiers": self.verifiers, "pictures": rows}, indent=2) + "\n"

    def as_csv(self) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "prompt", *self.columns])
        writer.writerows(zip(self.images, self.prompts, *self.columns.values(), strict=True))
        return text.getvalue()

    def save(self, path: str | Path) -> Path:
        """Write .json or .csv, by the suffix; the file is whole or not there."""
        check_out(path)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = self.as_csv() if target.suffix.lower() == ".csv" else self.as_json()
        write_whole(target, text.encode())
        return target


def score_files(
    images: Sequence[str | Path],
    prompts: Sequence[str],
    verifier: Any,
    *,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
) -> Scored:
    """Score pictures in files, each verifier over all of them before the next moves in.

    Args:
        images: files; a few are in memory at a time.
        prompts: one a picture.
        verifier: as ``lotts.verifiers.load`` takes it; of an ensemble every member's scores are told too.
        device: where verifiers that can move do so; None: where they are.

    Raises:
        FileNotFoundError, ValueError: a file is missing or no picture, a prompt cannot be judged, a score is not finite.
    """
    if batch_size is not None:
        whole("batch_size", batch_size, 1)
    if not images:
        raise ValueError("expected pictures to score, got none")
    for image in images:
        _check(image)
    judge: Any = load(verifier)
    for prompt in dict.fromkeys(prompts):
        if hasattr(judge, "check_prompt"):
            judge.check_prompt(prompt)
    name = verifier if isinstance(verifier, str) else getattr(judge, "name", "verifier")
    members = judge.members if isinstance(judge, Ensemble) else [Member(getattr(judge, "name", name), judge)]
    columns = {m.name: _scores(m.judge, images, prompts, device, batch_size) for m in members}
    described = [_described(member) for member in members]
    if isinstance(judge, Ensemble):
        signs = torch.tensor([[1.0 if d["higher_is_better"] else -1.0] for d in described], dtype=torch.float64)
        rows = torch.tensor(list(columns.values()), dtype=torch.float64) * signs
        columns["combined"] = combine(rows, [m.weight for m in members], prompts, judge.method).tolist()
    return Scored([str(image) for image in images], list(prompts), columns, described)


def files_of(paths: Sequence[str | Path]) -> list[Path]:
    """Files, and the pictures in folders in the order of their names; ValueError for a folder without any."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"expected pictures ({', '.join(SUFFIXES)}) in {path}, got none")
        found += inside
    return found


def read_prompts(path: str | Path, images: Sequence[str | Path]) -> list[str]:
    """One prompt a picture: of a .json object by file name, or the lines of any other file in the pictures' order.

    Raises:
        ValueError: a picture has no prompt, or the lines are not as many as the pictures.
    """
    text = Path(path).read_text(encoding="utf-8-sig")
    if Path(path).suffix.lower() != ".json":
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        if len(lines) != len(images):
            raise ValueError(f"expected {len(images)} lines in {path}, one a picture, got {len(lines)}")
        return lines
    try:
        known = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {path}: {error}") from None
    if not isinstance(known, dict) or not all(isinstance(prompt, str) for prompt in known.values()):
        raise ValueError(f'expected a JSON object {{"file name": "prompt"}} in {path}')
    prompts = [known.get(str(image), known.get(Path(image).name)) for image in images]
    if None in prompts:
        raise ValueError(f"expected a prompt for {images[prompts.index(None)]} in {path}, got none under that name")
    return [str(prompt) for prompt in prompts]


def check_out(path: str | Path) -> None:
    """ValueError for a file to write that is neither .json nor .csv."""
    if Path(path).suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"expected a .json or .csv file to write, got {path}")


def _check(path: str | Path) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a picture, got {path}, which is no file")
    try:
        with Image.open(path) as image:
            check_depth(image, str(path))
    except UnidentifiedImageError:
        raise ValueError(f"expected a picture, got {path}, which PIL cannot read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"expected a picture that can be read, got {path}: {error}") from None


def _scores(
    judge: Any, images: Sequence[str | Path], prompts: Sequence[str], device: Any, batch_size: int | None
) -> list[float]:
    scores: list[float] = []
    cache: dict[str, Any] = {}
    with placed(judge, device):
        for start in range(0, len(images), CHUNK):
            chunk = slice(start, start + CHUNK)
            pictures = [_open(path) for path in images[chunk]]
            with counted_from(images[start]):
                if hasattr(judge, "score"):
                    scores += judge.score(pictures, prompts[chunk], cache, batch_size).tolist()
                else:
                    arrays = [np.asarray(p.convert("RGB")).astype(np.float32) / 255 for p in pictures]
                    scores += score(judge, arrays, prompts[chunk])
    return scores


def _open(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a picture that can be read, got {path}: {error}") from None


def _described(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "version": getattr(member.judge, "version", None),
        "scale": getattr(member.judge, "scale", None),
        "higher_is_better": getattr(member.judge, "higher_is_better", True),
        "weight": member.weight,
    }
