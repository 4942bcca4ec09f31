"""A contact sheet of heatmaps, drawn with Pillow and NumPy alone."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL = 224
GAP = 16
CAPTION = 40
BACKGROUND = (250, 250, 249)
INK = (38, 38, 42)
FAINT = (128, 128, 134)

# Anchors of a dark-to-light ramp with steadily rising lightness, so that it reads in grey too.
RAMP = np.array(
    [
        (6, 6, 22),
        (36, 16, 78),
        (84, 22, 112),
        (136, 36, 106),
        (186, 56, 84),
        (226, 90, 52),
        (246, 140, 24),
        (250, 198, 62),
        (252, 248, 178),
    ],
    dtype=np.float32,
)


def colorize(values: np.ndarray) -> np.ndarray:
    """Colours uint8 [h, w, 3] for values in [0, 1] of shape [h, w]."""
    position = np.clip(values, 0.0, 1.0) * (len(RAMP) - 1)
    low = np.minimum(position.astype(np.int64), len(RAMP) - 2)
    fraction = (position - low)[..., None]
    return np.round(RAMP[low] * (1 - fraction) + RAMP[low + 1] * fraction).astype(np.uint8)


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str]) -> Image.Image:
    """One panel a map, one row of panels an image; each is coloured over its own range, printed beneath its label.

    Args:
        rows: for each image its maps, arrays [h, w] of shares in [0, 1]; all rows have as many as there are labels.
        labels: the captions, one for each column.
    """
    height, width = rows[0][0].shape
    scale = PANEL / max(height, width)
    panel_w, panel_h = max(1, round(width * scale)), max(1, round(height * scale))
    # Captions of narrow panels would run into each other.
    cell_w = max(panel_w, PANEL // 2)
    sheet = Image.new(
        "RGB",
        (GAP + len(labels) * (cell_w + GAP), GAP + len(rows) * (panel_h + CAPTION + GAP)),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(size=15), ImageFont.load_default(size=11)
    for i_row, maps in enumerate(rows):
        for i_column, (values, label) in enumerate(zip(maps, labels, strict=True)):
            x = GAP + i_column * (cell_w + GAP)
            y = GAP + i_row * (panel_h + CAPTION + GAP)
            sheet.paste(_panel(values, (panel_w, panel_h)), (x, y))
            draw.text((x, y + panel_h + 5), _shortened(label, title, cell_w), font=title, fill=INK)
            limits = f"{values.min():.1%} to {values.max():.1%}"
            draw.text((x, y + panel_h + 25), limits, font=small, fill=FAINT)
    return sheet


def _panel(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    normalised = (values - low) / (high - low) if high > low else np.zeros_like(values)
    # Enlarged before colouring: blending colours would leave the ramp.
    smooth = Image.fromarray(normalised.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(colorize(np.asarray(smooth)))


def _shortened(text: str, font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
