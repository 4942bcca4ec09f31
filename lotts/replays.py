"""Run a manifest again and compare every picture with what the manifest says."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lotts.manifest import Manifest, environment, manifest_path, png_bytes
from lotts.output import LoTTSOutput
from lotts.sources import MapSource
from lotts.threads import cpu_threads
from lotts.verifiers import Judge


@dataclass(frozen=True)
class Difference:
    """A picture that came out otherwise.

    Attributes:
        file: as the manifest names it.
        largest: greatest difference of a channel, of 255; None where the recorded picture is not there to compare.
        share: of the pixels that differ at all, in (0, 1]; None likewise.
    """

    file: str
    largest: int | None
    share: float | None

    def __str__(self) -> str:
        if self.largest is None or self.share is None:
            return f"{self.file}: not the recorded picture, which is not there to compare"
        return f"{self.file}: up to {self.largest} of 255, on {self.share:.2%} of the pixels"


@dataclass(frozen=True)
class Replay:
    """What a second run gave.

    Attributes:
        output: the run, as ``LoTTS`` or ``repair`` returned it.
        differences: the pictures that are not the recorded ones, empty when all are the same bit for bit.
        changes: what differs between then and now, by name: (then, now).
    """

    manifest: Manifest
    output: LoTTSOutput
    differences: list[Difference]
    changes: dict[str, tuple[Any, Any]]

    @property
    def exact(self) -> bool:
        """Whether every picture is the recorded one, bit for bit."""
        return not self.differences


def replay(
    path: str | Path,
    *,
    pipe: Any = None,
    verifier: str | Judge | None = None,
    source: str | MapSource | None = None,
    callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
) -> Replay:
    """Rebuild the pipeline that a manifest names, run it again and compare the pictures.

    On the same versions, processor and number of threads (which is set for the run) the pictures are the same bit for
    bit; elsewhere a UserWarning says what differs, and ``differences`` which pictures do and by how much.

    Args:
        path: a manifest.json or the folder that ``LoTTSOutput.save`` wrote.
        pipe, verifier, source: instead of what the manifest names; needed where these were not known by a name.

    Raises:
        FileNotFoundError: there is no manifest, or the picture that was repaired is gone.
        ValueError: the manifest is not valid, or names no model or verifier where none is given.
    """
    manifest, folder = Manifest.read(path), manifest_path(path).parent
    verifier = manifest.verifier if verifier is None else verifier
    source = manifest.settings.get("source", "attention") if source is None else source
    if verifier is None:
        raise ValueError("expected a manifest that names its verifier, got none: pass verifier=...")
    pipe = _pipeline(manifest) if pipe is None else pipe
    changes = _changes(manifest, str(pipe.device))
    if changes:
        told = ", ".join(f"{name} {then} then, {now} now" for name, (then, now) in changes.items())
        warnings.warn(f"pictures may differ from the recorded ones: {told}", stacklevel=2)
    threads = manifest.environment.get("threads")
    with cpu_threads(threads if isinstance(threads, int) and threads > 0 else None):
        if manifest.repaired:
            output = _repair(manifest, folder, pipe, verifier, source, callback_on_step_end)
        else:
            output = _generate(manifest, pipe, verifier, source, callback_on_step_end)
    return Replay(manifest, output, _differences(manifest, folder, output), changes)


def _generate(manifest: Manifest, pipe, verifier, source, callback) -> LoTTSOutput:
    from lotts.pipeline import LoTTS

    arguments = _arguments(manifest, LoTTS.__call__)
    generators = [torch.Generator().manual_seed(seed) for seed in manifest.seeds]
    lotts = LoTTS(pipe, verifier, source=source)
    return lotts(manifest.prompt, generator=generators, callback_on_step_end=callback, **arguments)


def _repair(manifest: Manifest, folder: Path, pipe, verifier, source, callback) -> LoTTSOutput:
    from lotts.repairs import repair

    # The picture's own size and the single seed say these already.
    arguments = _arguments(manifest, repair, without=("num_candidates", "height", "width"))
    return repair(
        pipe,
        folder / manifest.samples[0].file,
        manifest.prompt,
        None if manifest.mask is None else folder / manifest.mask,
        verifier=verifier,
        source=source,
        generator=torch.Generator().manual_seed(manifest.seeds[0]),
        callback_on_step_end=callback,
        **arguments,
    )


def _arguments(manifest: Manifest, function: Callable[..., Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The recorded settings that ``function`` takes; ValueError for one that it does not know."""
    settings = {name: value for name, value in manifest.settings.items() if name not in ("source", *without)}
    own = {"prompt", "image", "mask", "pipe", "verifier", "generator", "callback_on_step_end", "output_type", "self"}
    allowed = set(inspect.signature(function).parameters) - own
    if unknown := set(settings) - allowed:
        raise ValueError(
            f"expected settings out of {', '.join(sorted(allowed))} in the manifest, got {', '.join(sorted(unknown))}"
        )
    return settings


def _pipeline(manifest: Manifest) -> Any:
    from lotts.models import load_pipeline

    if manifest.model is None:
        raise ValueError("expected a manifest that names its model, got none: pass pipe=...")
    device = manifest.device
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        device = None
    return load_pipeline(manifest.model, device=device, dtype=manifest.dtype)


def _changes(manifest: Manifest, device: str) -> dict[str, tuple[Any, Any]]:
    # Threads are set to what they were, so they are no change.
    now = {**environment(device), "threads": manifest.environment.get("threads")}
    then = manifest.environment
    return {name: (then.get(name), now[name]) for name in now if then.get(name) not in (None, now[name])}


def _differences(manifest: Manifest, folder: Path, output: LoTTSOutput) -> list[Difference]:
    if len(output.samples) != len(manifest.samples):
        raise ValueError(f"the manifest lists {len(manifest.samples)} samples, the run made {len(output.samples)}")
    found = []
    for entry, sample in zip(manifest.samples, output.samples, strict=True):
        pixels = sample.pixels
        if hashlib.sha256(png_bytes(pixels)).hexdigest() == entry.sha256:
            continue
        recorded = _recorded(folder / entry.file, entry.sha256)
        if recorded is None or recorded.shape != pixels.shape:
            found.append(Difference(entry.file, None, None))
            continue
        change = np.abs(recorded.astype(np.int16) - pixels).max(-1)
        # Another Pillow may pack the same pixels into other bytes.
        if change.any():
            found.append(Difference(entry.file, int(change.max()), float((change > 0).mean())))
    return found


def _recorded(file: Path, sha256: str) -> np.ndarray | None:
    """The picture of the first run, if it is there and still what it was."""
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        return None
    return np.asarray(Image.open(file).convert("RGB"))
