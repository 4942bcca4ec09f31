"""manifest.json: everything that made a run's pictures, and the digests that tell whether a second run made the same."""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from lotts.models import weights_digest
from lotts.output import LoTTSOutput, Sample

FORMAT = 1
NAME, SAMPLES, MASK = "manifest.json", "samples", "given-mask.png"
PACKAGES = ("lotts", "torch", "triton", "diffusers", "transformers", "numpy", "pillow")
KINDS = ("candidate", "particle", "refinement", "original")
CONTEXT = ("model", "verifier", "dtype", "device")


@dataclass(frozen=True)
class Entry:
    """One picture: ``file`` is relative to the manifest, ``sha256`` the digest of its PNG; the rest as in ``Sample``."""

    file: str
    kind: str
    seed: int
    parent: int | None
    refinement: int | None
    score: float
    sha256: str

    def __post_init__(self) -> None:
        _expect(self.kind in KINDS, f"a sample's kind out of {', '.join(KINDS)}", self.kind)
        _expect(_is_inside(self.file), "a sample's file inside the manifest's folder", self.file)
        _expect(_whole(self.seed), "a sample's seed as a whole number", self.seed)
        for name in ("parent", "refinement"):
            value = getattr(self, name)
            _expect(value is None or (_whole(value) and value >= 0), f"a sample's {name} as an index or null", value)
        _expect(isinstance(self.score, (int, float)), "a sample's score as a number", self.score)
        digest = isinstance(self.sha256, str) and len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")
        _expect(digest, "a sample's sha256 as 64 hexadecimal digits", self.sha256)


@dataclass(frozen=True)
class Manifest:
    """A run on paper.

    Attributes:
        environment: versions of the packages and of the verifier, the scheduler's configuration, a digest of embedded
            weights, the processor and the number of CPU threads: what pictures and scores depend on besides the arguments.
        model, verifier, dtype, device: as the caller named them; None where it did not.
        settings: arguments of ``LoTTS.__call__`` or, where the first sample is an "original", of ``lotts.repair``;
            ``source`` is the map source's name, None where it had arguments of its own.
        mask: the file of the mask that was given to ``repair``, None where it was found.
    """

    environment: dict[str, Any]
    prompt: str
    settings: dict[str, Any]
    seeds: list[int]
    samples: list[Entry]
    best: int
    improvement: float
    cost: dict[str, Any]
    model: str | None = None
    verifier: str | None = None
    dtype: str | None = None
    device: str | None = None
    mask: str | None = None
    format: int = field(default=FORMAT)

    def __post_init__(self) -> None:
        _expect(self.format == FORMAT, f"a manifest of format {FORMAT}", self.format)
        for name in ("environment", "settings", "cost"):
            _expect(isinstance(getattr(self, name), dict), f"{name} as an object", getattr(self, name))
        _expect(isinstance(self.prompt, str) and bool(self.prompt.strip()), "prompt as text", self.prompt)
        for name in CONTEXT:
            value = getattr(self, name)
            _expect(value is None or isinstance(value, str), f"{name} as text or null", value)
        seeds = isinstance(self.seeds, list) and bool(self.seeds) and all(_whole(seed) for seed in self.seeds)
        _expect(seeds, "seeds as a list of whole numbers", self.seeds)
        _expect(isinstance(self.samples, list) and bool(self.samples), "samples as a list", self.samples)
        for index, sample in enumerate(self.samples):
            earlier = sample.parent is None or sample.parent < index
            _expect(earlier, f"the parent of sample {index} before it", sample.parent)
        _expect(_whole(self.best) and 0 <= self.best < len(self.samples), "best as the index of a sample", self.best)
        _expect(isinstance(self.improvement, (int, float)), "improvement as a number", self.improvement)
        _expect(self.mask is None or _is_inside(self.mask), "mask inside the manifest's folder", self.mask)

    @classmethod
    def of(cls, output: LoTTSOutput, pngs: Mapping[str, bytes], context: Mapping[str, Any] | None = None) -> Manifest:
        """Describe a run whose pictures are encoded as ``pngs`` (by file name).

        Args:
            context: any of model, verifier, dtype, device: what the output itself does not know.
        """
        known = {name: None if value is None else str(value) for name, value in (context or {}).items()}
        if unknown := set(known) - set(CONTEXT):
            raise ValueError(f"expected context with {', '.join(CONTEXT)}, got {', '.join(sorted(unknown))}")
        entries = []
        for index, sample in enumerate(output.samples):
            file = sample_file(index, sample)
            digest = hashlib.sha256(pngs[file]).hexdigest()
            entries.append(
                Entry(file, sample.kind, sample.seed, sample.parent, sample.refinement, float(sample.score), digest)
            )
        settings = {name: value for name, value in output.settings.items() if name != "seeds"}
        return cls(
            environment={
                **environment(known.get("device")),
                **output.made_with,
                "weights": weights_digest(known.get("model") or ""),
            },
            prompt=output.prompt,
            settings=settings,
            seeds=list(output.settings["seeds"]),
            samples=entries,
            best=output.best,
            improvement=output.improvement,
            cost=output.cost.as_dict(),
            model=known.get("model"),
            verifier=known.get("verifier"),
            dtype=known.get("dtype"),
            device=known.get("device"),
            mask=MASK if MASK in pngs else None,
        )

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read a manifest, or the one in a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not JSON, or a field is missing, unknown or not what it should be.
        """
        path = manifest_path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"expected a manifest in JSON, got {path}: {error}") from None
        data = _fields(cls, data, str(path))
        _expect(isinstance(data["samples"], list), "samples as a list", data["samples"])
        data["samples"] = [Entry(**_fields(Entry, entry, f"{path}, a sample")) for entry in data["samples"]]
        return cls(**data)

    def text(self) -> str:
        """The JSON, in a fixed order."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def same_run(self, other: Manifest) -> bool:
        """Whether both tell of the same pictures by the same means; how long it took does not count."""
        # As a file has them: a tuple in memory is a list there.
        mine, theirs = (json.loads(manifest.text()) for manifest in (self, other))
        return all(mine[name] == theirs[name] for name in mine if name != "cost")

    @property
    def repaired(self) -> bool:
        """Whether ``lotts.repair`` made this run."""
        return self.samples[0].kind == "original"


def environment(device: str | None) -> dict[str, Any]:
    """What the last bits of a picture may depend on: packages, processor, CPU threads."""
    versions = {name: _version(name) for name in PACKAGES}
    return {**versions, "processor": _processor(device), "threads": torch.get_num_threads()}


def made_with(scheduler: Any, verifier: Any) -> dict[str, Any]:
    """The verifier's version, the scheduler's class and configuration, as JSON has them, and the CPU threads of the run."""
    version = getattr(verifier, "version", None)
    config = {name: _plain(value) for name, value in scheduler.config.items() if not name.startswith("_")}
    return {
        "verifier": None if version is None else str(version),
        "scheduler": {"class": type(scheduler).__name__, **config},
        "threads": torch.get_num_threads(),
    }


def sample_file(index: int, sample: Sample) -> str:
    """Where a picture goes. Never named after the prompt: prompts can be private, long, or no file name."""
    if sample.kind == "refinement":
        return f"{SAMPLES}/{index:02}-refinement-of-{sample.parent:02}.png"
    seed = "" if sample.kind == "original" else f"-seed{sample.seed}"
    return f"{SAMPLES}/{index:02}-{sample.kind}{seed}.png"


def png_bytes(image: Image.Image | np.ndarray) -> bytes:
    """A PNG without metadata: the same pixels give the same bytes on the same Pillow."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def manifest_path(path: str | Path) -> Path:
    """The manifest itself, given it or its folder; FileNotFoundError if there is none."""
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"expected a manifest or a folder with {NAME}, found none at {path}")
    return path


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor(device: str | None) -> str | None:
    if device is None:
        return None
    place = torch.device(device)
    if place.type == "cuda" and torch.cuda.is_available() and (place.index or 0) < torch.cuda.device_count():
        return torch.cuda.get_device_name(device)
    if place.type == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return device


def _plain(value: Any) -> Any:
    """A setting as JSON has it; what JSON has no form for, infinity among it, as text."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    plain = value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)


def _fields(kind: type, data: Any, where: str) -> dict[str, Any]:
    """``data`` as keyword arguments of the dataclass ``kind``: all it needs, nothing it does not know."""
    _expect(isinstance(data, dict), f"an object in {where}", data)
    names = {f.name for f in fields(kind)}
    if missing := names - set(data):
        raise ValueError(f"expected {', '.join(sorted(missing))} in {where}: not there")
    if unknown := set(data) - names:
        raise ValueError(f"expected only {', '.join(sorted(names))} in {where}, got {', '.join(sorted(unknown))}")
    return dict(data)


def _expect(holds: bool, what: str, got: Any) -> None:
    if not holds:
        raise ValueError(f"expected {what} in the manifest, got {got!r}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_inside(file: Any) -> bool:
    """A relative path that stays in its folder: a manifest from elsewhere must not read what it likes."""
    return (
        isinstance(file, str)
        and bool(file)
        and not PurePosixPath(file).is_absolute()
        and not set("\\:") & set(file)
        and ".." not in file.split("/")
    )
