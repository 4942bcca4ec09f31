"""Scenes of coloured shapes, and the small grammar that captions them.

A scene is a list of items (size, colour, shape) and what the caption states about their places: rows read from left to
right and from top to bottom, one relation or two, or nothing (free placement). ``parse`` reads every caption that
``caption`` writes, so what a picture should show is known exactly from its prompt.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (250, 204, 21),
    "green": (34, 160, 72),
    "blue": (37, 99, 235),
    "purple": (126, 34, 206),
    "pink": (255, 92, 170),
    "black": (24, 24, 32),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
SIZES = ("small", "large")
SIZE_WORDS = {"small": "small", "tiny": "small", "large": "large", "big": "large"}
RELATIONS = {
    "to the left of": "left",
    "left of": "left",
    "to the right of": "right",
    "right of": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}
QUALITY_PREFIX = {"high": "A high-quality image of {}.", "low": "A low-quality image of {}."}
MIN_OBJECTS, MAX_OBJECTS, MAX_ROWS, MAX_COLUMNS, MAX_FREE = 2, 16, 4, 4, 8
GRAMMAR_HELP = (
    'rows: "a red circle, a small blue star; a green heart, a black ring"; a row or column: "a red ring, a pink cross in a row", '
    '"from top to bottom: a red ring, a pink cross"; a relation: "a red circle left of a blue star"; '
    'free: "scattered: a red circle, a blue star, a pink heart". '
    f"Colours: {', '.join(COLOURS)}. Shapes: {', '.join(SHAPES)}. Sizes: small, large. {MIN_OBJECTS} to {MAX_OBJECTS} objects."
)


@dataclass(frozen=True)
class Item:
    """One object as the caption states it. ``size`` is "large" where the caption names none."""

    colour: str
    shape: str
    size: str = "large"

    def __str__(self) -> str:
        return f"{'small ' if self.size == 'small' else ''}{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a caption says: the items, in reading order, and where they belong.

    ``kind`` is "rows" (``rows`` holds the length of each row), "relation" (``relations[i]`` is how the first item lies
    to item ``i + 1``: left, right, above or below) or "free".
    """

    kind: str
    items: tuple[Item, ...]
    rows: tuple[int, ...] = ()
    relations: tuple[str, ...] = ()

    @property
    def pitch(self) -> float:
        """The share of the picture's side that one object has to itself."""
        if self.kind == "rows":
            return 1 / max(len(self.rows), *self.rows, 2)
        n = len(self.items)
        return 1 / 2.2 if n <= 3 else 1 / 3 if n <= 5 else 1 / 4

    def radius(self, size: str) -> float:
        """Nominal radius of an object, as a share of the picture's side."""
        large = min(0.39 * self.pitch, 0.13)
        return large if size == "large" else 0.64 * large

    @property
    def reading_rows(self) -> tuple[int, ...]:
        """How many items stand in each row: as stated, or, where nothing is, as drawings place them, as square as can be."""
        n = len(self.items)
        count = round(n**0.5)
        return self.rows or tuple(n // count + (row < n % count) for row in range(count))

    def cell_centres(self) -> list[tuple[float, float]]:
        """For each item the centre (x, y) in [0, 1] of its cell when ``reading_rows`` divide the picture."""
        lengths = self.reading_rows
        return [
            ((column + 0.5) / length, (row + 0.5) / len(lengths))
            for row, length in enumerate(lengths)
            for column in range(length)
        ]

    def stated_centres(self) -> list[tuple[float, float] | None]:
        """For each item the stated centre (x, y) in [0, 1], or None where the caption leaves it open."""
        return [*self.cell_centres()] if self.kind == "rows" else [None] * len(self.items)

    def held_out(self) -> bool:
        """One scene in sixteen, chosen by its content, is kept from all training."""
        return hashlib.blake2b(repr(self).encode(), digest_size=1).digest()[0] % 16 == 0


def sample_scene(rng: np.random.Generator, num_objects: int | None = None, *, held_out: bool = False) -> Scene:
    """Draw a scene of ``num_objects`` (2 to 16; default: any), from the training or the held-out part."""
    while True:
        n = int(num_objects or rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
        scene = _sample(rng, n)
        if scene.held_out() == held_out:
            return scene


def _sample(rng: np.random.Generator, n: int) -> Scene:
    if not MIN_OBJECTS <= n <= MAX_OBJECTS:
        raise ValueError(f"expected {MIN_OBJECTS} to {MAX_OBJECTS} objects, got {n}")
    colours, shapes = list(COLOURS), list(SHAPES)
    items: list[Item] = []
    for _ in range(n):
        # Small words are capped so that sixteen objects fit in 77 tokens with the quality template around them.
        small = rng.random() < 0.35 and sum(i.size == "small" for i in items) < 10
        items.append(Item(str(rng.choice(colours)), str(rng.choice(shapes)), "small" if small else "large"))
    chance = rng.random()
    if n <= 3 and chance < 0.4:
        relations: tuple[str, ...] = (str(rng.choice(["left", "right", "above", "below"])),)
        if n == 3:
            relations = (str(rng.choice(["left", "right"])), str(rng.choice(["above", "below"])))
        return Scene("relation", tuple(items), relations=relations)
    if n <= MAX_FREE and chance > 0.8:
        return Scene("free", tuple(items))
    return Scene("rows", tuple(items), rows=_row_lengths(rng, n))


def _row_lengths(rng: np.random.Generator, n: int) -> tuple[int, ...]:
    count = int(rng.integers(-(-n // MAX_COLUMNS), min(MAX_ROWS, n) + 1))
    even = n % count == 0 and n // count <= MAX_COLUMNS
    if even and rng.random() < 0.5:
        return (n // count,) * count
    lengths = [1] * count
    for _ in range(n - count):
        free = [row for row in range(count) if lengths[row] < MAX_COLUMNS]
        lengths[int(rng.choice(free))] += 1
    return tuple(lengths)


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Write the scene as a caption; ``rng`` picks among paraphrases (None: the plainest)."""
    pick = (
        (lambda options: options[int(rng.integers(len(options)))]) if rng is not None else (lambda options: options[0])
    )
    # Articles cost a token each, so crowded scenes go without.
    article = len(scene.items) <= 6 and pick([True, False])
    words = [_phrase(item, article, pick, brief=len(scene.items) > 6) for item in scene.items]
    if scene.kind == "free":
        return pick([f"scattered: {_join(words)}", f"{_join(words)} scattered around", f"some shapes: {_join(words)}"])
    if scene.kind == "relation":
        text = words[0]
        for index, relation in enumerate(scene.relations):
            phrase = pick([p for p, r in RELATIONS.items() if r == relation])
            text += f"{' and' if index else ''} {phrase} {words[index + 1]}"
        return text
    rows, start = [], 0
    for length in scene.rows:
        rows.append(_join(words[start : start + length]))
        start += length
    if len(rows) == 1:
        return pick([f"{rows[0]} in a row", f"a row of {rows[0]}", f"from left to right: {rows[0]}"])
    if max(scene.rows) == 1:
        options = [f"from top to bottom: {_join(words)}", f"{_join(words)} in a column", f"a column of {_join(words)}"]
        return pick([*options, " above ".join(words)] if len(rows) > 2 else options)
    options = ["; ".join(rows), "a grid: " + "; ".join(rows), "rows: " + "; ".join(rows), " above ".join(rows)]
    if len(rows) <= 3 and len(words) <= 12:
        names = ["top row", "middle row", "bottom row"] if len(rows) == 3 else ["top row", "bottom row"]
        options.append("; ".join(f"{name} {row}" for name, row in zip(names, rows, strict=True)))
    return pick(options)


def _phrase(item: Item, article: bool, pick, brief: bool) -> str:
    sizes = ["small", "tiny"] if item.size == "small" else ["", ""] if brief else ["", "", "large", "big"]
    words = " ".join(filter(None, [pick(sizes), item.colour, item.shape]))
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}" if article else words


def _join(words: list[str]) -> str:
    return ", ".join(words)


def parse(text: str) -> Scene:
    """Read a caption (with or without a quality template).

    Raises:
        ValueError: the text is not in the grammar; the message says what was not understood and shows examples.
    """
    body = re.sub(r"\s+", " ", text.strip().lower()).rstrip(". ")
    body = re.sub(r"^an? (?:high|low)-quality image of ", "", body)
    kind, rows_text = _split_rows(body)
    if kind == "relation":
        return _parse_relation(body, text)
    rows = [_items(row, text) for row in rows_text]
    items = tuple(item for row in rows for item in row)
    if not MIN_OBJECTS <= len(items) <= MAX_OBJECTS:
        raise ValueError(
            f"expected {MIN_OBJECTS} to {MAX_OBJECTS} objects, got {len(items)} in {text!r}. {GRAMMAR_HELP}"
        )
    if kind == "free":
        if len(items) > MAX_FREE:
            raise ValueError(
                f"expected at most {MAX_FREE} scattered objects, got {len(items)} in {text!r}. {GRAMMAR_HELP}"
            )
        return Scene("free", items)
    lengths = tuple(len(row) for row in rows)
    if len(lengths) > MAX_ROWS or max(lengths) > MAX_COLUMNS:
        raise ValueError(
            f"expected at most {MAX_ROWS} rows of {MAX_COLUMNS}, got rows of {lengths} in {text!r}. {GRAMMAR_HELP}"
        )
    return Scene("rows", items, rows=lengths)


_BETWEEN = r", and |, | and "


def _split_rows(body: str) -> tuple[str, list[str]]:
    for pattern in (r"^scattered: (.+)$", r"^(.+) scattered around$", r"^some shapes: (.+)$"):
        if match := re.match(pattern, body):
            return "free", [match.group(1)]
    for pattern in (r"^(.+) in a row$", r"^a row of (.+)$", r"^from left to right: (.+)$"):
        if match := re.match(pattern, body):
            return "rows", [match.group(1)]
    for pattern in (r"^from top to bottom: (.+)$", r"^(.+) in a column$", r"^a column of (.+)$"):
        if match := re.match(pattern, body):
            return "rows", re.split(_BETWEEN, match.group(1))
    body = re.sub(r"^(?:a grid: |rows: )", "", body)
    if re.search(r"\b(?:left of|right of|below|under|over)\b", body) or _is_pair_above(body):
        return "relation", []
    return "rows", _rows_in_order(re.split(r"; (?:and )?|;| above ", body))


def _rows_in_order(rows: list[str]) -> list[str]:
    """Rows without their names, from the top: by their names where they have some, else as they come."""
    found = [re.match(r"^(?:the )?(top|middle|bottom) row:? (.+)$", row) for row in rows]
    named = {match.group(1): match.group(2) for match in found if match}
    if not named:
        return rows
    if len(named) < len(rows):
        raise ValueError(
            f"expected a name of its own for each row or for none, got {'; '.join(rows)!r}. {GRAMMAR_HELP}"
        )
    return [named[name] for name in ("top", "middle", "bottom") if name in named]


def _is_pair_above(body: str) -> bool:
    parts = body.split(" above ")
    return len(parts) == 2 and not any(mark in body for mark in (",", ";", " and "))


def _parse_relation(body: str, text: str) -> Scene:
    pattern = "|".join(RELATIONS)
    parts = re.split(rf" (?:and )?({pattern}) ", body)
    items = tuple(item for part in parts[::2] for item in _items(part, text))
    relations = tuple(RELATIONS[phrase] for phrase in parts[1::2])
    axes = ["x" if r in ("left", "right") else "y" for r in relations]
    if len(items) != len(relations) + 1 or len(items) > 3 or axes not in (["x"], ["y"], ["x", "y"]):
        raise ValueError(
            f"expected one relation, or a sideways and then an upright one ('A left of B and above C'), got {text!r}. {GRAMMAR_HELP}"
        )
    return Scene("relation", items, relations=relations)


def _items(row: str, text: str) -> list[Item]:
    return [_item(phrase, text) for phrase in re.split(_BETWEEN, row.strip())]


def _item(phrase: str, text: str) -> Item:
    words = phrase.split()
    if words and words[0] in ("a", "an", "the", "one"):
        words = words[1:]
    size = SIZE_WORDS.get(words[0]) if words else None
    colour, *shape = words[1:] if size else (words or [""])
    if len(shape) != 1 or colour not in COLOURS or shape[0] not in SHAPES:
        raise ValueError(f"cannot read {phrase!r} as an object in {text!r}. {GRAMMAR_HELP}")
    return Item(colour, shape[0], size or "large")
