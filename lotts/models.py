"""Pipelines by name: the embedded ones, a local folder, or a hub id."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lotts.shapes.draw import SIDE

#: Embedded pipelines: the folder of their weights and what ``python -m lotts.shapes.train`` calls them.
EMBEDDED: dict[str, tuple[Path, str]] = {
    f"shapes-{name}": (Path(__file__).parent / "shapes" / "weights" / name, name) for name in ("sd", "sdxl", "flux")
}
#: Classifier-free guidance that suits each; docs/shapes.md has how scenes come out under others.
GUIDANCE = {"shapes-sd": 2.0, "shapes-sdxl": 2.0, "shapes-flux": 2.0}
FLOWS = ("FluxPipeline", "StableDiffusion3Pipeline")
DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def load_pipeline(
    name: str, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Any:
    """Load a diffusers pipeline that ``LoTTS`` can drive, with its progress bars off.

    Only safetensors are read, and no code of a model's repository is run.

    Args:
        name: an embedded pipeline ("shapes-sd", "shapes-sdxl", "shapes-flux"), a local folder with a model_index.json, or
            a hub id "owner/name".
        device: where it goes; default: cuda if there is one, else cpu.
        dtype: "fp32", "fp16", "bf16" or a torch dtype. Default: fp32, but on cuda, for other models than the embedded, bf16 for
            FLUX and Stable Diffusion 3 and fp16 for the rest.

    Raises:
        FileNotFoundError: the embedded weights are not there.
        TypeError: the pipeline is of a class that ``LoTTS`` cannot drive; told before its weights are read.
        ValueError: ``name``, ``device`` or ``dtype`` is none of these, or the scheduler is of a process of its own.
    """
    target = check_device(device)
    precision = check_dtype(dtype) or default_dtype(name, target)
    place = location(name)
    _check_class(place)
    with _quiet() if name in EMBEDDED else nullcontext():  # what comes from a hub or a large folder takes a while
        pipe = _read(place, precision)
    _make_restartable(pipe)
    if name in EMBEDDED and hasattr(pipe, "default_sample_size"):
        pipe.default_sample_size = SIDE // pipe.vae_scale_factor  # FLUX pipelines take it for 1024 px whatever they are
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(target)


def default_settings(name: str) -> dict[str, Any]:
    """Steps, guidance (None: the pipeline's own) and verifier (None: one has to be chosen) that suit a model."""
    if name not in EMBEDDED:
        return {"num_inference_steps": 50, "guidance_scale": None, "true_cfg_scale": 1.0, "verifier": None}
    # No guidance is distilled into our FLUX: it takes the classifier-free kind.
    scales = (None, GUIDANCE[name]) if name == "shapes-flux" else (GUIDANCE[name], 1.0)
    return {
        "num_inference_steps": 20,
        "guidance_scale": scales[0],
        "true_cfg_scale": scales[1],
        "verifier": "shapes",
    }


def default_dtype(name: str, device: str | torch.device | None = None) -> torch.dtype:
    """The precision that ``load_pipeline`` takes by itself."""
    if check_device(device).type != "cuda" or name in EMBEDDED:
        return torch.float32
    # Those trained to follow a flow are published in bfloat16, and some of their text encoders overflow in float16.
    return torch.bfloat16 if _class_name(location(name)) in FLOWS else torch.float16


def dtype_name(dtype: torch.dtype) -> str:
    """What ``load_pipeline`` calls a dtype."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))


def has_weights(name: str) -> bool:
    """Whether the weights of an embedded pipeline are there."""
    return (EMBEDDED[name][0] / "model_index.json").is_file()


def weights_digest(name: str) -> str | None:
    """What tells one state of an embedded pipeline's weights from another; None for other models."""
    if name not in EMBEDDED:
        return None
    whole = hashlib.sha256()
    for path in sorted(EMBEDDED[name][0].rglob("*.safetensors")):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def location(name: str) -> str:
    """The folder or hub id that a name stands for; raises as ``load_pipeline`` does where it stands for none."""
    if name in EMBEDDED:
        folder, training = EMBEDDED[name]
        if not has_weights(name):
            raise FileNotFoundError(
                f"no weights of {name} in {folder}: install a lotts that ships them, or train them with "
                f"python -m lotts.shapes.train {training}"
            )
        return str(folder)
    if name and Path(name).is_dir():
        if not (Path(name) / "model_index.json").is_file():
            raise ValueError(f"expected a folder saved by a diffusers pipeline, got {name}: it has no model_index.json")
        return name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ValueError(
            f"expected a model out of {', '.join(EMBEDDED)}, a folder or a hub id owner/name, got {name!r}"
        )
    return name


def _check_class(location: str) -> None:
    """TypeError for a pipeline of a class that no family drives."""
    import diffusers

    from lotts.backbones import FAMILIES

    name = _class_name(location)
    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not {base.__name__ for base in found.__mro__} & set(FAMILIES):
        raise TypeError(f"expected a pipeline out of {', '.join(FAMILIES)}, got {name} in {location}")


def _class_name(location: str) -> str:
    """What pipeline a folder or a hub id says it is."""
    import diffusers

    return str(diffusers.DiffusionPipeline.load_config(location).get("_class_name"))


def _read(location: str, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(location, dtype=dtype, use_safetensors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars while a small pipeline loads."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    switched = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in switched:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in switched:
            log.enable_progress_bar()


def _make_restartable(pipe: Any) -> None:
    """Put the family's first scheduler, of the same configuration, in the place of one that cannot begin in the middle."""
    import diffusers

    from lotts.backbones import family_of
    from lotts.backbones.schedulers import same_process, translated

    name, family = type(pipe.scheduler).__name__, family_of(pipe)
    if name not in family.schedulers:
        substitute = family.schedulers[0]
        if not same_process(pipe.scheduler, substitute):
            raise ValueError(
                f"expected a scheduler out of {', '.join(family.schedulers)}, got {name}: none of them makes the same of its "
                "configuration"
            )
        warnings.warn(
            f"{name} cannot restart in the middle of sampling: {substitute} of the same configuration takes its place",
            stacklevel=3,
        )
        pipe.scheduler = getattr(diffusers, substitute).from_config(
            pipe.scheduler.config, **translated(pipe.scheduler, substitute)
        )


def check_device(device: str | torch.device | None) -> torch.device:
    """A torch device that is there: the given one, else cuda if there is one, else the CPU; ValueError otherwise."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise ValueError(f"expected a torch device such as cpu, cuda or cuda:1, got {device!r}") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"expected a device that is there, got {device}: no CUDA device is available")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        there = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise ValueError(f"expected a device that is there, got {device}: there is {there}")
    if target.type not in ("cpu", "cuda"):
        try:
            torch.zeros((), device=target).item()
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            raise ValueError(f"expected a device that is there, got {device}: {error}") from None
    return target


def check_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype by its name or itself, None as it is; ValueError otherwise."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"expected dtype to be one of {', '.join(DTYPES)} or a torch dtype, got {dtype!r}")
    return DTYPES[dtype]
