"""A run as a folder: best.png, samples/, report.png and manifest.json."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lotts.files import write_whole
from lotts.manifest import MASK, NAME, SAMPLES, Manifest, png_bytes, sample_file
from lotts.output import LoTTSOutput
from lotts.report.page import draw_report

BEST, REPORT = "best.png", "report.png"


def save_output(output: LoTTSOutput, folder: str | Path, context: Mapping[str, Any] | None = None) -> Path:
    """Write a run into ``folder`` and return the folder that was used.

    A folder that holds another run is left alone: folder-2, folder-3, ... is used instead. Saving the same run again
    renews its files. Each file appears complete or not at all; the report, which only shows the rest, last.

    Args:
        context: any of model, verifier, dtype and device, for the manifest: ``replay`` needs the first two.
    """
    pngs = {sample_file(i, sample): png_bytes(sample.pixels) for i, sample in enumerate(output.samples)}
    first = output.samples[0]
    if first.kind == "original" and first.mask is not None and not first.heatmaps:
        # The mask was given, not found: a replay needs it. One pixel a latent cell.
        pngs[MASK] = png_bytes(first.mask.cpu().numpy().astype(np.uint8) * 255)
    manifest = Manifest.of(output, pngs, context)
    text = manifest.text().encode()
    folder = _claim(Path(folder), manifest)
    for file, data in pngs.items():
        write_whole(folder / file, data)
    write_whole(folder / BEST, pngs[sample_file(output.best, output.samples[output.best])])
    write_whole(folder / NAME, text)
    write_whole(folder / REPORT, png_bytes(draw_report(output)))
    return folder


def _claim(folder: Path, manifest: Manifest) -> Path:
    """The first of folder, folder-2, ... that is free or holds this very run."""
    folder = Path(os.path.abspath(folder)) if folder.name in ("", "..") else folder
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(chosen for chosen in itertools.chain([folder], numbered) if _take(chosen, manifest))


def _take(folder: Path, manifest: Manifest) -> bool:
    """Make the folder this run's, unless it is another's. Making samples/ is the claim: of two runs one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if os.path.lexists(folder):  # a file, or a link to nowhere
            return False
        raise  # a folder above it is one
    if _holds(folder, manifest):
        return True
    if any((folder / name).exists() for name in (BEST, REPORT, NAME, MASK)):
        return False
    try:
        (folder / SAMPLES).mkdir()
    except FileExistsError:
        return False
    return True


def _holds(folder: Path, manifest: Manifest) -> bool:
    try:
        return Manifest.read(folder).same_run(manifest) and (folder / SAMPLES).is_dir()
    except (FileNotFoundError, ValueError):
        return False
