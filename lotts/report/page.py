"""The report: the best picture before and after, then every candidate with its maps, mask and refinements."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from lotts.output import LoTTSOutput, Sample
from lotts.report.pictures import difference, fit, heat, heat_over, outlined
from lotts.report.style import (
    ACCENT,
    ACCENT_SOFT,
    FAINT,
    GAP,
    INK,
    LINE,
    MARGIN,
    PADDING,
    PAPER,
    WORSE,
    Colour,
    card,
    chip,
    font,
    place,
    wrap,
    write,
)

PANEL, HERO = 256, 512  # longer sides in pixels
CELL, CAPTION, HEADING = 240, 48, 62  # least width of a cell; room under a picture and above a column
FIGURES = 250  # width of the column of numbers beside the best picture
PER_LINE = 4  # refinements side by side
MAPS = {
    "CA_orig": "attention to the prompt",
    "CA'_diff": "low against high quality",
    "P": "defect map",
}


def draw_report(output: LoTTSOutput) -> Image.Image:
    """Draw a run as one RGB picture; it grows with the number of candidates and refinements."""
    grid = Grid.of(output)
    width = max(grid.width, 3 * 384 + FIGURES + 3 * GAP + 2 * PADDING) + 2 * MARGIN
    parts = [_header(output, width), _hero(output, width), grid.draw(width), _footer(output, width)]
    page = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        page.paste(part, (0, y))
        y += part.height
    return page


def number(score: float, signed: bool = False) -> str:
    """A score to four figures or so: 0.611, 22.31, 1534."""
    digits = 3 if abs(score) < 10 else 2 if abs(score) < 1000 else 0
    return f"{score:{'+' if signed else ''}.{digits}f}"


def sample_label(sample: Sample) -> str:
    if sample.kind == "refinement":
        return f"refinement {(sample.refinement or 0) + 1}"
    return "the original" if sample.kind == "original" else f"seed {sample.seed}"


def _header(output: LoTTSOutput, width: int) -> Image.Image:
    lines = wrap(output.prompt, font(36, output.prompt), width - 2 * MARGIN)
    section = Image.new("RGB", (width, MARGIN + 30 + 46 * len(lines) + 44), PAPER)
    write(section, (MARGIN, MARGIN - 8), "LoTTS", 20, ACCENT)
    y = MARGIN + 26
    for line in lines:
        write(section, (MARGIN, y), line, 36)
        y += 46
    write(section, (MARGIN, y + 4), " · ".join(settings_in_words(output)), 20, FAINT)
    return section


def settings_in_words(output: LoTTSOutput) -> list[str]:
    """What was asked for, in words."""
    s = output.settings
    firsts = [sample for sample in output.samples if sample.parent is None]
    refined = len(output.samples) - len(firsts)
    words = []
    if firsts[0].kind != "original":
        words.append(_count(len(firsts), "candidate"))
    each, rest = divmod(refined, len(firsts))
    if rest:
        words.append(_count(refined, "refinement") + " in all")
    else:
        words.append(_count(each, "refinement") + (" each" if len(firsts) > 1 else ""))
    if refined and "mask_ratio" in s and any(sample.heatmaps for sample in firsts):
        ratio, threshold = f"{s['mask_ratio']:.0%}", s.get("mask_threshold")
        limited = f"resampled where P is above {threshold}, {ratio} at most"
        words.append(f"the weakest {ratio} resampled" if threshold is None else limited)
    if refined and "noise_step" in s:
        words.append(f"from step {s['noise_step']} of {s['num_inference_steps']}")
    scales = {"guidance": s.get("guidance_scale", 1.0), "true CFG": s.get("true_cfg_scale", 1.0)}
    words += [f"{name} {scale:g}" for name, scale in scales.items() if scale != 1]
    words += [f"eta {s['eta']:g}"] if s.get("eta") else []
    return words


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _hero(output: LoTTSOutput, width: int) -> Image.Image:
    inner = width - 2 * MARGIN - 2 * PADDING
    side = min(HERO, (inner - FIGURES - 3 * GAP) // 3)
    panels = _best_panels(output, side)
    height = max(max(panel.height for _, _, panel, _ in panels), 330)
    section = Image.new("RGB", (width, height + HEADING + 2 * PADDING + GAP), PAPER)
    card(section, (MARGIN, 0, width - MARGIN, section.height - GAP))
    x, top = MARGIN + PADDING, PADDING
    for title, note, panel, frame in panels:
        written = write(section, (x, top + 4), title, 24, ACCENT if frame else INK)
        write(section, (x + written + 12, top + 9), note, 19, FAINT)
        place(section, panel, (x, top + HEADING - 10), frame)
        x += max(panel.width, CELL) + GAP + GAP // 2
    _figures(section, output, (x + GAP // 2, top + HEADING - 14))
    return section


def _best_panels(output: LoTTSOutput, side: int) -> list[tuple[str, str, Image.Image, Colour | None]]:
    """(title, note, picture, frame) of the best sample's story."""
    best = output.samples[output.best]
    after = fit(best.pixels, side)
    if best.parent is None:
        panels: list[tuple[str, str, Image.Image, Colour | None]] = [("best", sample_label(best), after, ACCENT)]
        if "P" in best.heatmaps:
            panels.append(("defect map", "P over the picture", heat_over(after, best.heatmaps["P"]), None))
        if best.mask is not None:
            refined = any(sample.parent is not None for sample in output.samples)
            note = "no refinement scored higher" if refined else "what a refinement resamples"
            note = note if best.mask.any() else "nothing here to resample"
            panels.append(("mask", note, outlined(after, best.mask), None))
        return panels
    parent = output.samples[best.parent]
    before = fit(parent.pixels, side)
    changed, share = difference(parent.pixels, best.pixels, side)
    if best.mask is not None:
        before = outlined(before, best.mask, fade=0.35)
    return [
        ("before", f"{sample_label(parent)}, {number(parent.score)}", before, None),
        ("after", f"{sample_label(best)}, {number(best.score)}", after, ACCENT),
        ("difference", f"{share:.0%} of the pixels differ visibly", changed, None),
    ]


def _figures(section: Image.Image, output: LoTTSOutput, at: tuple[int, int]) -> None:
    """The numbers of the run, one under the other."""
    x, y = at
    what = "the original" if output.samples[0].kind == "original" else "the best candidate"
    rows = [
        (number(output.samples[output.best].score), "best score", INK),
        (number(output.improvement, signed=True), f"over {what}", ACCENT if output.improvement > 0 else INK),
        (str(output.cost.nfe), "network evaluations", INK),
        (f"{output.cost.seconds:.1f} s", "in all", INK),
    ]
    for value, label, colour in rows:
        write(section, (x, y), value, 34, colour)
        write(section, (x, y + 42), label, 18, FAINT)
        y += 82


def _footer(output: LoTTSOutput, width: int) -> Image.Image:
    from lotts import __version__

    cost = output.cost
    localised = f", {cost.localization_rows} of them only to localise" if cost.localization_rows else ""
    words = [
        f"{cost.nfe} network evaluations (NFE){localised}",
        f"{_count(cost.verifier_calls, 'picture')} judged",
        f"{cost.seconds:.1f} s",
        f"improvement {number(output.improvement, signed=True)}",
    ]
    section = Image.new("RGB", (width, MARGIN + 4), PAPER)
    write(section, (MARGIN, 2), " · ".join(words), 18, FAINT)
    write(section, (width - MARGIN, 2), f"lotts {__version__}", 18, FAINT, anchor="ra")
    return section


@dataclass
class Grid:
    """The table of candidates: one row each, its refinements to the right, ``PER_LINE`` on a line."""

    output: LoTTSOutput
    rows: list[tuple[int, list[int]]]
    maps: list[str]
    masked: bool
    panel: tuple[int, int]

    @classmethod
    def of(cls, output: LoTTSOutput) -> Grid:
        samples = output.samples
        children: dict[int, list[int]] = {i: [] for i, sample in enumerate(samples) if sample.parent is None}
        for i in range(len(samples)):
            if i not in children:
                children[_root(samples, i)].append(i)
        firsts = [samples[i] for i in children]
        maps = [name for name in MAPS if any(name in sample.heatmaps for sample in firsts)]
        masked = any(sample.mask is not None for sample in firsts)
        return cls(output, list(children.items()), maps, masked, fit(samples[0].pixels, PANEL).size)

    @property
    def pitch(self) -> int:
        return max(self.panel[0], CELL) + GAP

    @property
    def before_refinements(self) -> int:
        return 1 + len(self.maps) + self.masked

    @property
    def columns(self) -> int:
        return self.before_refinements + min(PER_LINE, max(len(refined) for _, refined in self.rows))

    @property
    def width(self) -> int:
        return self.columns * self.pitch - GAP + 2 * PADDING

    def draw(self, width: int) -> Image.Image:
        line = self.panel[1] + CAPTION
        lines = [max(1, -(-len(refined) // PER_LINE)) for _, refined in self.rows]
        height = HEADING + sum(n * line + GAP for n in lines) - GAP + 2 * PADDING
        section = Image.new("RGB", (width, height + GAP), PAPER)
        card(section, (MARGIN, 0, width - MARGIN, height))
        self._headings(section)
        y = PADDING + HEADING
        for row, ((first, refined), n) in enumerate(zip(self.rows, lines, strict=True)):
            if row:
                section.paste(LINE, (MARGIN + PADDING, y - GAP // 2 - 4, width - MARGIN - PADDING, y - GAP // 2 - 3))
            self._row(section, y, first, refined)
            y += n * line + GAP
        return section

    def _x(self, column: int) -> int:
        return MARGIN + PADDING + column * self.pitch

    def _headings(self, section: Image.Image) -> None:
        original = self.output.samples[0].kind == "original"
        heads = [("original" if original else "candidate", "as given" if original else "as generated")]
        heads += [(name, MAPS[name]) for name in self.maps]
        heads += [("mask", "what is resampled")] * self.masked
        heads += [("refinements", "scores against their parent's")] * (self.columns > self.before_refinements)
        for column, (title, note) in enumerate(heads):
            write(section, (self._x(column), PADDING - 6), title, 22)
            write(section, (self._x(column), PADDING + 22), note, 17, FAINT)

    def _row(self, section: Image.Image, y: int, first: int, refined: list[int]) -> None:
        sample = self.output.samples[first]
        picture = self._sample(section, (self._x(0), y), first)
        for column, name in enumerate(self.maps, 1):
            if name in sample.heatmaps:
                values = sample.heatmaps[name]
                panel = heat_over(picture, values) if name == "P" else heat(values, picture.size)
                place(section, panel, (self._x(column), y))
        if sample.mask is not None:
            # A refinement's own mask is the candidate's after dilation.
            children = [self.output.samples[index] for index in refined]
            mask = next(
                (child.mask for child in children if child.parent == first and child.mask is not None), sample.mask
            )
            place(section, outlined(picture, mask), (self._x(1 + len(self.maps)), y))
        for i, index in enumerate(refined):
            at = self._x(self.before_refinements + i % PER_LINE), y + i // PER_LINE * (self.panel[1] + CAPTION)
            self._sample(section, at, index)

    def _sample(self, section: Image.Image, at: tuple[int, int], index: int) -> Image.Image:
        """A picture with its label and score under it; returns the picture."""
        sample, best = self.output.samples[index], index == self.output.best
        picture = fit(sample.pixels, PANEL)
        place(section, picture, at, ACCENT if best else None)
        x, y = at[0], at[1] + picture.height + 12
        score, gain = number(sample.score), ""
        if sample.parent is not None and not best:
            gain = number(sample.score - self.output.samples[sample.parent].score, signed=True)
        written = write(section, (x, y + 3), sample_label(sample), 18, ACCENT if best else FAINT) + 10
        if best:
            written += chip(section, (x + written, y - 1), "best", ACCENT, ACCENT_SOFT, 15)
        scored, gained = (round(font(size).getlength(text)) for size, text in ((22, score), (18, gain)))
        # Numbers align with the picture's right edge unless it is too narrow for them.
        right = x + max(picture.width, written + scored + gained + 20)
        write(section, (right, y), score, 22, ACCENT if best else INK, anchor="ra")
        colour = WORSE if gain.startswith("-") else ACCENT
        write(section, (right - scored - 10, y + 3), gain, 18, colour, anchor="ra")
        return picture


def _root(samples: list[Sample], index: int) -> int:
    """The candidate that a sample goes back to."""
    while (parent := samples[index].parent) is not None:
        index = parent
    return index
