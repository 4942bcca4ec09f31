"""Colours, type and small shapes that every part of a report shares."""

from __future__ import annotations

import functools

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER: Colour = (246, 246, 248)
CARD: Colour = (255, 255, 255)
LINE: Colour = (228, 228, 233)
INK: Colour = (24, 24, 32)
FAINT: Colour = (118, 118, 130)
ACCENT: Colour = (5, 150, 105)
ACCENT_SOFT: Colour = (220, 243, 234)
WORSE: Colour = (185, 80, 72)

MARGIN, GAP, PADDING, RADIUS = 48, 24, 28, 8
# The type that Pillow carries has little beyond ASCII; prompts in other scripts use what the system has.
WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "msyh.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf", "arial.ttf")


def font(size: int, text: str = "") -> Font:
    """Pillow's own scalable type, or a system font where ``text`` has letters that it lacks."""
    return _wide_font(size) if any(ord(c) > 126 and c not in "·…±" for c in text) else _font(size)


@functools.cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


@functools.cache
def _wide_font(size: int) -> Font:
    for name in WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return _font(size)


def wrap(text: str, face: Font, width: int, max_lines: int = 4) -> list[str]:
    """Lines of at most ``width`` pixels; what exceeds ``max_lines`` ends in an ellipsis."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if face.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = word
        while len(lines) <= max_lines and len(line) > 1 and face.getlength(line) > width:
            # One word, or a script without spaces: at least one letter, however narrow the line.
            fits, exceeds = 1, len(line)
            while exceeds - fits > 1:
                middle = (fits + exceeds) // 2
                fits, exceeds = (middle, exceeds) if face.getlength(line[:middle]) <= width else (fits, middle)
            lines.append(line[:fits])
            line = line[fits:]
        if len(lines) > max_lines:  # the rest is not shown
            break
    lines.append(line)
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and face.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], last.rstrip() + "…"]
    return lines


@functools.cache
def rounded_mask(size: tuple[int, int], radius: int) -> Image.Image:
    """An anti-aliased "L" mask of a rectangle with round corners; Pillow's own has stairs."""
    fine = Image.new("L", (8 * radius, 8 * radius), 0)
    ImageDraw.Draw(fine).ellipse((0, 0, 8 * radius - 1, 8 * radius - 1), fill=255)
    disc = fine.resize((2 * radius, 2 * radius), Image.Resampling.BOX)
    mask = Image.new("L", size, 255)
    for x, left in ((0, 0), (size[0] - radius, radius)):
        for y, top in ((0, 0), (size[1] - radius, radius)):
            mask.paste(disc.crop((left, top, left + radius, top + radius)), (x, y))
    return mask


def fill_rounded(page: Image.Image, box: tuple[int, int, int, int], colour: Colour, radius: int = RADIUS) -> None:
    """Fill the box (left, top, right, bottom) with round corners."""
    left, top, right, bottom = box
    page.paste(colour, box, rounded_mask((right - left, bottom - top), radius))


def card(page: Image.Image, box: tuple[int, int, int, int]) -> None:
    """A white card with a hairline around it."""
    left, top, right, bottom = box
    fill_rounded(page, box, LINE, 2 * RADIUS)
    fill_rounded(page, (left + 1, top + 1, right - 1, bottom - 1), CARD, 2 * RADIUS - 1)


def place(page: Image.Image, picture: Image.Image, at: tuple[int, int], frame: Colour | None = None) -> None:
    """Put a picture with softly rounded corners on the page, framed in a colour if one is given."""
    x, y = at
    width, height = picture.size
    if frame:
        fill_rounded(page, (x - 7, y - 7, x + width + 7, y + height + 7), frame, RADIUS + 6)
        fill_rounded(page, (x - 3, y - 3, x + width + 3, y + height + 3), CARD, RADIUS + 2)
    page.paste(picture, at, rounded_mask(picture.size, RADIUS // 2))


def write(
    page: Image.Image, at: tuple[int, int], text: str, size: int, colour: Colour = INK, *, anchor: str = "la"
) -> int:
    """Write one line; returns its width in pixels."""
    face = font(size, text)
    ImageDraw.Draw(page).text(at, text, font=face, fill=colour, anchor=anchor)
    return round(face.getlength(text))


def chip(page: Image.Image, at: tuple[int, int], text: str, colour: Colour, ground: Colour, size: int = 18) -> int:
    """A small rounded label with its top left corner at ``at``; returns its width."""
    width = round(font(size, text).getlength(text)) + 20
    fill_rounded(page, (at[0], at[1], at[0] + width, at[1] + size + 12), ground, (size + 12) // 2)
    write(page, (at[0] + width // 2, at[1] + (size + 12) // 2), text, size, colour, anchor="mm")
    return width
