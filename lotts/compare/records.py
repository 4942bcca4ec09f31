"""What an item leaves on disk: a folder with the pictures it led with and item.json, which says everything else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import traceback
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lotts.compare.study import Item, Study
from lotts.files import write_whole
from lotts.manifest import png_bytes
from lotts.output import LoTTSOutput, Sample
from lotts.search import METHODS

NAME, FORMAT = "item.json", 1
UNFINISHED = ".unfinished-"
COUNTS = (
    *(
        "nfe",
        "network_rows",
        "localization_rows",
        "capture_rows",
        "tokens",
        "text_encodes",
        "vae_encodes",
        "vae_decodes",
    ),
    *("verifier_calls", "sparse_rows", "stored_bytes", "notes"),
)
_ABANDONED = 3600  # seconds after which nobody is writing any more


def folder_of(out: Path, item: Item) -> Path:
    return out / "items" / item.variant.method / item.key


def read_record(out: Path, item: Item) -> dict[str, Any] | None:
    """What an item left, or None where it is not done, or was cut short by a machine that went down."""
    try:
        record = json.loads((folder_of(out, item) / NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    if record.get("format") != FORMAT:
        raise ValueError(f"expected an item of format {FORMAT} in {folder_of(out, item)}, got {record.get('format')}")
    return record


def write_record(
    out: Path, study: Study, item: Item, output: LoTTSOutput, environment: dict[str, Any]
) -> dict[str, Any]:
    """Write an item's folder under another name, then rename it: it is whole or not there.

    Where another process has made the item meanwhile, its record counts.
    """
    points = leaders(output.samples, METHODS[item.variant.method].keeps_best)
    pngs = {f"{point['sample']:03}.png": png_bytes(output.samples[point["sample"]].pixels) for point in points}
    record = {
        "format": FORMAT,
        "prompt": asdict(item.prompt),
        "seed": item.seed,
        "budget": item.spends,
        "model": study.model,
        "verifier": study.verifier,
        "versions": study.versions,
        **item.variant.spec(),
        "settings": output.settings,
        "environment": environment,
        "best": output.best,
        "points": points,
        "samples": [
            {name: getattr(sample, name) for name in ("kind", "seed", "parent", "refinement", "score", "nfe")}
            for sample in output.samples
        ],
        "cost": {name: getattr(output.cost, name) for name in COUNTS},
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in pngs.items()},
        "metrics": {},
        "metric_versions": {},
        "timings": {
            "seconds": output.cost.seconds,
            "stages": output.cost.stages,
            "peak_bytes": output.cost.peak_bytes,
            "at": [output.samples[point["samples"] - 1].seconds for point in points],
            "host": socket.gethostname(),
            "process": os.getpid(),
        },
    }
    target = folder_of(out, item)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{UNFINISHED}{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        for name, data in pngs.items():
            (temporary / name).write_bytes(data)
        (temporary / NAME).write_text(_text(record), encoding="utf-8")
        if target.exists() and read_record(out, item) is None:
            shutil.rmtree(target)
        try:
            os.rename(temporary, target)
        except OSError:
            if (theirs := read_record(out, item)) is None:
                raise
            return theirs
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record


def sweep_up(out: Path) -> None:
    """Remove what killed processes left half written, an hour ago or more: another one may be at work."""
    for left in [*(out / "items").glob(f"*/{UNFINISHED}*"), *(out / "items").glob(f"*/*/.{NAME}.*")]:
        try:
            age = time.time() - left.stat().st_mtime
        except FileNotFoundError:  # its process has finished it meanwhile
            continue
        if age > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def unasked(study: Study, record: dict[str, Any]) -> list[str]:
    """Metrics that have not judged an item's pictures yet, in the version that the study has."""
    versions = record.get("metric_versions", {})
    return [
        name
        for name in study.metrics
        if name not in record["metrics"] or versions.get(name) != study.metric_versions.get(name)
    ]


def write_metrics(
    out: Path, study: Study, item: Item, record: dict[str, Any], metrics: dict[str, dict[str, list[float]]]
) -> None:
    """Add what held-out metrics said of the pictures that an item led with."""
    record["metrics"] |= metrics
    record["metric_versions"] = record.get("metric_versions", {}) | {n: study.metric_versions.get(n) for n in metrics}
    write_whole(folder_of(out, item) / NAME, _text(record).encode())


def pixels_of(out: Path, item: Item, sample: int) -> np.ndarray:
    """uint8 [H, W, 3] of a picture that an item led with."""
    with Image.open(folder_of(out, item) / f"{sample:03}.png") as image:
        return np.asarray(image.convert("RGB"))


def is_intact(out: Path, item: Item, record: dict[str, Any]) -> bool:
    """Whether the pictures that an item led with are there, as they were written."""
    files = {folder_of(out, item) / name: digest for name, digest in record["sha256"].items()}
    return all(f.is_file() and hashlib.sha256(f.read_bytes()).hexdigest() == digest for f, digest in files.items())


def discard(out: Path, item: Item) -> None:
    """Remove what an item left."""
    shutil.rmtree(folder_of(out, item))


def leaders(samples: list[Sample], keeps_best: bool) -> list[dict[str, int]]:
    """What a search would have returned, had it ended earlier: ``sample`` after ``samples`` of them at ``nfe`` rows.

    Samples that came to their end at the same row, as the particles of a swarm, count together.
    """
    points, best = [], 0
    for index, sample in enumerate(samples):
        if not keeps_best or sample.score > samples[best].score:
            best = index
        if index + 1 == len(samples) or samples[index + 1].nfe != sample.nfe:
            points.append({"samples": index + 1, "nfe": sample.nfe, "sample": best})
    return points


def write_failure(out: Path, item: Item, error: Exception) -> None:
    """Say why an item was not made; the next run tries it again."""
    text = _text(
        {
            "prompt": item.prompt.text,
            "variant": item.variant.name,
            "budget": item.spends,
            "seed": item.seed,
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exception(error),
        }
    )
    path = failure_of(out, item)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode(errors="backslashreplace"))


def read_failure(out: Path, item: Item) -> str | None:
    """What went wrong with an item, None if nothing did."""
    path = failure_of(out, item)
    return json.loads(path.read_text(encoding="utf-8"))["error"] if path.is_file() else None


def failure_of(out: Path, item: Item) -> Path:
    return out / "failures" / f"{item.key}.json"


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False, default=list) + "\n"
