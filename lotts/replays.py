"""Run a manifest again and compare every picture and score with what the manifest says."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lotts import models
from lotts.manifest import Entry, Manifest, environment, made_with, manifest_path, png_bytes, sample_file
from lotts.output import LoTTSOutput, Sample
from lotts.sources import MapSource
from lotts.threads import cpu_threads
from lotts.verifiers import Judge, load, places


@dataclass(frozen=True)
class Difference:
    """A picture that came out otherwise.

    Attributes:
        file: as the manifest names it.
        largest: greatest difference of a channel, of 255; None where there are no two pictures to compare.
        share: of the pixels that differ at all, in (0, 1]; None likewise.
        reason: why there are not.
    """

    file: str
    largest: int | None = None
    share: float | None = None
    reason: str = "not the recorded picture, which is not there to compare"

    def __str__(self) -> str:
        if self.largest is None or self.share is None:
            return f"{self.file}: {self.reason}"
        return f"{self.file}: up to {self.largest} of 255, on {self.share:.2%} of the pixels"


@dataclass(frozen=True)
class Rescored:
    """A picture that the verifier scored otherwise, then and now."""

    file: str
    then: float
    now: float

    def __str__(self) -> str:
        return f"{self.file}: {self.then} then, {self.now} now"


@dataclass(frozen=True)
class Replay:
    """What a second run gave.

    Attributes:
        output: the run, as ``LoTTS``, ``repair`` or ``lotts.search.run`` returned it.
        differences: the pictures that are not the recorded ones, empty when all are the same bit for bit.
        rescored: the pictures whose scores are not the recorded ones.
        changes: what differs between then and now, by name: (then, now).
        device: where it ran.
    """

    manifest: Manifest
    output: LoTTSOutput
    differences: list[Difference]
    rescored: list[Rescored]
    changes: dict[str, tuple[Any, Any]]
    device: str

    @property
    def same_best(self) -> bool:
        """Whether the same sample was picked."""
        then, now = _lineages(self.manifest.samples), _lineages(self.output.samples)
        return now[self.output.best] == then[self.manifest.best]

    @property
    def exact(self) -> bool:
        """Whether every picture is the recorded one, bit for bit, with its score, and the same was picked."""
        return not self.differences and not self.rescored and self.same_best


def replay(
    path: str | Path,
    *,
    pipe: Any = None,
    verifier: str | Judge | None = None,
    source: str | MapSource | None = None,
    callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
) -> Replay:
    """Rebuild the pipeline that a manifest names, run it again and compare the pictures and their scores.

    On the same versions, weights, scheduler, processor and number of threads (which is set for the run) the pictures are the
    same bit for bit; elsewhere a UserWarning says what differs, and ``differences`` which pictures do and by how much.

    Args:
        path: a manifest.json or the folder that ``LoTTSOutput.save`` wrote.
        pipe, verifier, source: instead of what the manifest names; needed where these were not known by a name.

    Raises:
        FileNotFoundError: there is no manifest, or the picture that was repaired is gone.
        ValueError: the manifest is not valid, or names no model, verifier or map source where none is given.
    """
    manifest, folder = Manifest.read(path), manifest_path(path).parent
    verifier = _verifier(manifest) if verifier is None else verifier
    source = _source(manifest) if source is None else source
    loaded = pipe is None
    if loaded and manifest.model is None:
        raise ValueError("expected a manifest that names its model, got none: pass pipe=...")
    if str(manifest.settings.get("budget", "")).startswith("seconds"):
        raise ValueError("expected a search that can be run again, got one whose budget was in seconds")
    judge = load(verifier)
    pipe = _pipeline(manifest) if loaded else pipe
    device = str(pipe.device)
    now = {**environment(device), **made_with(pipe.scheduler, judge)}
    if loaded:
        now["weights"] = models.weights_digest(manifest.model or "")
    changes = _changes(manifest, now)
    if changes:
        told = ", ".join(f"{name} {then} then, {now} now" for name, (then, now) in changes.items())
        warnings.warn(f"pictures may differ from the recorded ones: {told}", stacklevel=2)
    threads = manifest.environment.get("threads")
    with cpu_threads(threads if isinstance(threads, int) and threads > 0 else None):
        if manifest.repaired:
            output = _repair(manifest, folder, pipe, judge, source, callback_on_step_end)
        elif "method" in manifest.settings:
            output = _search(manifest, pipe, judge, source, callback_on_step_end)
        else:
            output = _generate(manifest, pipe, judge, source, callback_on_step_end)
    differences = _differences(manifest, folder, output)
    return Replay(manifest, output, differences, _rescored(manifest, output), changes, device)


def _generate(manifest: Manifest, pipe, verifier, source, callback) -> LoTTSOutput:
    from lotts.pipeline import LoTTS

    arguments = _arguments(manifest, LoTTS.__call__)
    generators = [torch.Generator().manual_seed(seed) for seed in manifest.seeds]
    lotts = LoTTS(pipe, verifier, source=source)
    return lotts(manifest.prompt, generator=generators, callback_on_step_end=callback, **arguments)


def _search(manifest: Manifest, pipe, verifier, source, callback) -> LoTTSOutput:
    from lotts.search import METHODS, run

    method = manifest.settings["method"]
    options = METHODS[method].options if method in METHODS else {}
    return run(
        pipe,
        manifest.prompt,
        verifier=verifier,
        source=source,
        generator=[torch.Generator().manual_seed(seed) for seed in manifest.seeds],
        callback_on_step_end=callback,
        **_arguments(manifest, run, without=("lineage", "given_up"), options=options),
    )


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


def _arguments(
    manifest: Manifest, function: Callable[..., Any], without: tuple[str, ...] = (), options: Iterable[str] = ()
) -> dict[str, Any]:
    """The recorded settings that ``function`` takes, ``options`` among them; ValueError for one that it does not know."""
    settings = {name: value for name, value in manifest.settings.items() if name not in ("source", *without)}
    # What older versions took and did nothing with.
    if settings.get("sparse") == "dense" and settings.get("sparse_offload"):
        settings["sparse_offload"] = False
    if "pixel_paste" in settings:
        settings["pixel_paste"] = bool(settings["pixel_paste"])
    own = {"prompt", "image", "mask", "pipe", "verifier", "generator", "callback_on_step_end", "output_type", "self"}
    allowed = {*inspect.signature(function).parameters, *options} - own
    if unknown := set(settings) - allowed:
        raise ValueError(
            f"expected settings out of {', '.join(sorted(allowed))} in the manifest, got {', '.join(sorted(unknown))}"
        )
    return settings


def _verifier(manifest: Manifest) -> str:
    """The verifier's name. Where it is an address it is not taken: a manifest may come from anywhere, and pictures and the
    environment's key would go there."""
    if manifest.verifier is None:
        raise ValueError("expected a manifest that names its verifier, got none: pass verifier=...")
    if any(name == "vlm" and place for name, place in places(manifest.verifier)):
        raise ValueError(
            "expected the address that judges the pictures from you, not from a manifest, which says "
            f"{manifest.verifier}: pass verifier=... if you trust it (lotts replay --verifier)"
        )
    return manifest.verifier


def _source(manifest: Manifest) -> str:
    """The map source's name. A mask that was given takes none, whatever the manifest says."""
    name = "attention" if manifest.mask is not None else manifest.settings.get("source", "attention")
    if name is None:
        raise ValueError("expected a manifest that names its map source, got null, one with arguments: pass source=...")
    return name


def _pipeline(manifest: Manifest) -> Any:
    try:
        device = None if manifest.device is None else models.check_device(manifest.device)
    except ValueError:  # it was another machine's
        device = None
    return models.load_pipeline(manifest.model or "", device=device, dtype=manifest.dtype)


def _changes(manifest: Manifest, now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name, value in now.items():
        then = manifest.environment.get(name)
        if name == "threads":  # they are set to what they were
            continue
        if isinstance(then, dict) and isinstance(value, dict):
            both = [key for key in value if key in then]  # another version may know more settings
            found |= {f"{name}.{key}": (then[key], value[key]) for key in both if then[key] != value[key]}
        elif then not in (None, value):
            found[name] = (then, value)
    return found


def _lineages(samples: Sequence[Entry | Sample]) -> list[tuple[Any, ...]]:
    """Which sample each is, wherever it comes in the order: another processor's run may draw more, or fewer."""
    found: list[tuple[Any, ...]] = []
    copies: Counter[tuple[Any, ...]] = Counter()
    for sample in samples:
        before = () if sample.parent is None else found[sample.parent]
        own = (*before, sample.kind, sample.seed, sample.refinement)
        # Of particles that go back to one noise, and the like: which of them it is.
        found.append((*own, copies[own]) if copies[own] else own)
        copies[own] += 1
    return found


def _pairs(manifest: Manifest, output: LoTTSOutput) -> list[tuple[Entry, Sample]]:
    drawn = dict(zip(_lineages(output.samples), output.samples, strict=True))
    recorded = zip(_lineages(manifest.samples), manifest.samples, strict=True)
    return [(entry, drawn[lineage]) for lineage, entry in recorded if lineage in drawn]


def _rescored(manifest: Manifest, output: LoTTSOutput) -> list[Rescored]:
    return [Rescored(e.file, e.score, float(s.score)) for e, s in _pairs(manifest, output) if e.score != s.score]


def _differences(manifest: Manifest, folder: Path, output: LoTTSOutput) -> list[Difference]:
    then, now = _lineages(manifest.samples), _lineages(output.samples)
    found = [
        Difference(entry.file, reason="recorded, but not drawn again")
        for entry, lineage in zip(manifest.samples, then, strict=True)
        if lineage not in now
    ]
    found += [
        Difference(sample_file(index, output.samples[index]), reason="drawn, but not recorded")
        for index, lineage in enumerate(now)
        if lineage not in then
    ]
    for entry, sample in _pairs(manifest, output):
        pixels = sample.pixels
        if hashlib.sha256(png_bytes(pixels)).hexdigest() == entry.sha256:
            continue
        recorded = _recorded(folder / entry.file, entry.sha256)
        if recorded is None or recorded.shape != pixels.shape:
            found.append(Difference(entry.file))
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
