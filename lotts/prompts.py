"""Sets of prompts: from the files of published benchmarks as one downloads them, from one's own, or drawn (``shapes:512``)."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Columns or keys that hold the prompt, and what it is grouped by, in the order they are looked for.
TEXT = ("Prompts", "Prompt", "prompt", "caption", "text")
GROUP = ("Category", "category", "tag", "group")
BANDS = ((2, 4), (5, 8), (9, 12), (13, 16))
SEED = 11  # of the drawn prompts; no model was trained and no default chosen on these
FORMATS = (
    ".txt (a prompt a line), .jsonl (GenEval, Pick-a-Pic; a string or an object with prompt or caption a line), .csv (DrawBench), "
    ".tsv (PartiPrompts), .json (COCO captions), or shapes:COUNT, such as shapes:512 or shapes:256@9-16"
)


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the part of its set that it belongs to: a benchmark's category, or a range of numbers of objects."""

    text: str
    group: str | None = None


def load_prompts(source: str, limit: int | None = None) -> list[Prompt]:
    """Read prompts; those that occur twice count once, at their first place.

    Args:
        source: a file (``FORMATS`` says which), or "shapes:COUNT[@LOW-HIGH]" for held-out scenes of LOW to HIGH objects.
        limit: take only the first so many.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its format is not known, a line of it is not as expected, or it holds no prompts.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"expected a limit from 1 up, got {limit}")
    if source.startswith("shapes:"):
        found: Iterable[Prompt] = _shapes(source)
    else:
        found = _read(Path(source))
    firsts: dict[str, Prompt] = {}
    for prompt in found:
        if not _is_text(prompt.text):
            raise ValueError(f"expected prompts of whole letters in {source}, got half of one: {prompt.text!a}")
        firsts.setdefault(prompt.text, prompt)
    firsts.pop("", None)
    if not firsts:
        raise ValueError(f"expected prompts in {source}, got none")
    return list(firsts.values())[:limit]


def _is_text(text: str) -> bool:
    """Whether it can be written down: JSON's escapes can tell one half of a letter alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shapes(source: str) -> Iterator[Prompt]:
    from lotts.shapes.sampling import every_held_out_scene
    from lotts.shapes.scenes import MAX_OBJECTS, MIN_OBJECTS

    match = re.fullmatch(r"shapes:(\d+)(?:@(\d+)(?:-(\d+))?)?", source)
    count, low, high = (int(part) if part else None for part in match.groups()) if match else (0, None, None)
    low, high = low or MIN_OBJECTS, high or low or MAX_OBJECTS
    if not count or not MIN_OBJECTS <= low <= high <= MAX_OBJECTS:
        raise ValueError(
            f"expected shapes:COUNT or shapes:COUNT@LOW-HIGH with {MIN_OBJECTS} to {MAX_OBJECTS} objects, got {source!r}"
        )
    seen: set[str] = set()
    for scene, text in itertools.takewhile(lambda _: len(seen) < count, every_held_out_scene(SEED, low, high)):
        if text not in seen:
            seen.add(text)
            yield Prompt(text, _band(len(scene.items)))


def _band(objects: int) -> str:
    low, high = next(band for band in BANDS if band[0] <= objects <= band[1])
    return f"{low}-{high} objects"


def _read(path: Path) -> Iterator[Prompt]:
    readers = {".txt": _lines, ".jsonl": _json_lines, ".csv": _table, ".tsv": _table, ".json": _coco}
    if path.suffix.lower() == ".parquet":
        raise ValueError(
            f"expected {FORMATS}; {path} is parquet. Its captions alone as JSON lines, with pandas and pyarrow: "
            f"pandas.read_parquet('{path.name}', columns=['caption']).to_json('prompts.jsonl', orient='records', lines=True)"
        )
    if path.suffix.lower() not in readers:
        raise ValueError(f"expected prompts in {FORMATS}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of prompts, got {path}, which is not there")
    try:
        yield from readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected {path} in UTF-8: {error}") from None


def _lines(path: Path) -> Iterator[Prompt]:
    for line in path.read_text(encoding="utf-8-sig").split("\n"):
        yield Prompt(line.strip())


def _json_lines(path: Path) -> Iterator[Prompt]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"expected JSON in line {number} of {path}: {error}") from None
        if isinstance(entry, str):
            yield Prompt(entry.strip())
        elif isinstance(entry, dict):
            yield _entry(entry, f"line {number} of {path}")
        else:
            raise ValueError(f"expected a string or an object in line {number} of {path}, got {type(entry).__name__}")


def _table(path: Path) -> Iterator[Prompt]:
    # PartiPrompts has quotation marks that are part of the prompt, and no quoting.
    tabs = path.suffix.lower() == ".tsv"
    quoting: Any = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if tabs else ",", quoting=quoting, strict=True)
        try:
            for row in reader:
                if all(row.get(key) is None for key in TEXT) and set(TEXT) & set(row):
                    raise ValueError(
                        f"expected a prompt in line {reader.line_num} of {path}, got a row that ends before it"
                    )
                if any(cell.strip() for cell in row.get(None, ())):
                    remedy = "it has a tab too many" if tabs else "put quotation marks around what holds a comma"
                    raise ValueError(
                        f"expected a row as long as the first in line {reader.line_num} of {path}, got more cells: {remedy}"
                    )
                row.pop(None, None)
                yield _entry(row, f"the columns of {path}")
        except csv.Error as error:
            raise ValueError(f"expected a table of prompts in {path}: {error}") from None


def _entry(entry: dict[str, Any], where: str) -> Prompt:
    text = next((entry[key] for key in TEXT if isinstance(entry.get(key), str)), None)
    if text is None:
        raise ValueError(f"expected one of {', '.join(TEXT)} in {where}, got {', '.join(map(str, entry))}")
    group = next((entry[key] for key in GROUP if entry.get(key)), None)
    return Prompt(text.strip(), None if group is None else str(group))


def _coco(path: Path) -> Iterator[Prompt]:
    """One caption an image, that of the lowest id, as the Fréchet distance to the images wants it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        annotations = sorted(data["annotations"], key=lambda entry: entry["id"])
        firsts = {entry["image_id"]: entry["caption"].strip() for entry in reversed(annotations)}
        images = sorted(firsts)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"expected COCO captions in {path}: an object with annotations, each with id, image_id and caption"
        ) from None
    for image in images:
        yield Prompt(firsts[image])
