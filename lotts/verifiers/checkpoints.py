"""Weights as published: found on the hub, in a folder or as a file, read without pickles, and put into a module strictly."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A file of a hub repository at one revision.

    Attributes:
        repository: hub id "owner/name".
        revision: commit, branch or tag; the verifiers pin a commit.
        file: inside the repository; empty: the repository as a whole, in the layout of ``save_pretrained``.
        key: a tensor that the weights hold, so that messages can tell what is looked for.
    """

    repository: str
    revision: str | None
    file: str = ""
    key: str = ""

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision[:12]}"

    @property
    def content(self) -> str:
        """What is in it, for messages."""
        return f" with tensors such as {self.key}" if self.key else ""

    @property
    def command(self) -> str:
        """What fetches it into a folder that can be given as the location."""
        parts = ["hf download", self.repository, self.file, f"--revision {self.revision}" if self.revision else ""]
        return " ".join([*(part for part in parts if part), "--local-dir FOLDER"])

    def at(self, location: str | Path | None, revision: str | None = None) -> Checkpoint | Path:
        """Where ``location`` points: an existing path, another repository, or (None) this one.

        Another repository has no revision but the one given; a branch or None there may give other weights tomorrow.

        Raises:
            FileNotFoundError: neither a path that exists nor a hub id.
        """
        if location is None:
            return self if revision is None else replace(self, revision=revision)
        if Path(location).exists():
            return Path(location)
        text = str(location)
        if isinstance(location, Path) or text.count("/") != 1 or text.startswith((".", "/", "~")):
            raise FileNotFoundError(
                f"expected a file, a folder or a hub id owner/name{self.content}, got {text}, which does not exist; "
                f"get the weights with {self.command}"
            )
        return replace(self, repository=text, revision=revision)

    def path(self, location: str | Path | None = None, revision: str | None = None) -> Path:
        """The file on this machine, downloaded if it has to be.

        Raises:
            FileNotFoundError: it is not there and cannot be had; the message names the file and the command to get it.
        """
        place = self.at(location, revision)
        if isinstance(place, Path):
            found = place / self.file if place.is_dir() else place
            if not found.is_file():
                raise FileNotFoundError(f"no {self.file}{self.content} in {place}; get it with {self.command}")
            return found
        return Path(place._reached(lambda: _download(place)))

    def pretrained(self, load: Callable[..., Any], location: str | Path | None, revision: str | None, **options) -> Any:
        """``load`` (a ``from_pretrained``) of the location; FileNotFoundError as ``path`` says."""
        place = self.at(location, revision)
        if isinstance(place, Path):
            return self._reached(lambda: load(place, **options))
        return place._reached(lambda: load(place.repository, revision=place.revision, **options))

    def model(self, kind: Any, location: str | Path | None, revision: str | None, **options) -> Any:
        """A ``kind`` of transformers' models whose every tensor is the location's; from_pretrained makes up what is missing.

        Raises:
            FileNotFoundError: as ``path`` says.
            ValueError: a tensor is missing or of another shape; the message names the place, such keys and how to get them.
        """
        strict = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded, found = self.pretrained(kind.from_pretrained, location, revision, **strict, **options)
        place = self.at(location, revision)
        _complain(place, self, list(loaded.state_dict()), list(found["missing_keys"]), list(found["mismatched_keys"]))
        _warn_of_more(place, list(found["unexpected_keys"]))
        return loaded

    def _reached(self, get: Callable[[], Any]) -> Any:
        try:
            return get()
        except (OSError, ValueError, SafetensorError, UnpicklingError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            what = f"{self.file} of {self.repository}" if self.file else self.repository
            raise FileNotFoundError(
                f"could not load {what} at revision {self.revision}{self.content} ({reason}); get it with {self.command}, "
                "then give that folder as the verifier's location"
            ) from error


def check_vocabulary(tokenizer: Any, words: int, checkpoint: Checkpoint) -> Any:
    """The tokenizer; FileNotFoundError unless it has that many entries.

    transformers makes an empty tokenizer where its files are missing, which would give scores all the same.
    """
    if len(tokenizer) != words:
        raise FileNotFoundError(
            f"expected a tokenizer of {words} entries for the model, got {len(tokenizer)}: its files are missing or another "
            f"model's; get them with {checkpoint.command}"
        )
    return tokenizer


def _download(checkpoint: Checkpoint) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(checkpoint.repository, checkpoint.file, revision=checkpoint.revision)


def describe(checkpoint: Checkpoint, location: str | Path | None, revision: str | None) -> str:
    """Which weights: ``repository@revision``, or the path of local ones."""
    return str(checkpoint.at(location, revision))


def read_state(path: Path, checkpoint: Checkpoint) -> State:
    """The tensors of a .safetensors or a torch file, out of a "state_dict" entry and without the prefix "module.".

    Raises:
        ValueError: it holds anything but tensors by name; nothing in it is run.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            held: Any = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"expected tensors by name in {path}, got {reason}; get it with {checkpoint.command}"
        ) from error
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if not isinstance(held, Mapping) or not held or not any(isinstance(v, torch.Tensor) for v in held.values()):
        raise ValueError(
            f"expected tensors by name in {path}, got {type(held).__name__}; get it with {checkpoint.command}"
        )
    return {str(k).removeprefix("module."): v for k, v in held.items() if isinstance(v, torch.Tensor)}


Names = Sequence[tuple[str, str]]


def renamed(key: str, names: Names) -> str:
    """``key`` with the first of the old beginnings that it has replaced by the new one; {} stands for a number."""
    for old, new in names:
        if found := re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), key):
            return new.format(*found.groups()) + key[found.end() :]
    return key


def fill(module: torch.nn.Module, state: State, path: Path, checkpoint: Checkpoint, names: Names = ()) -> None:
    """Put every tensor of the module in place, and warn of those that the module has no place for.

    Args:
        names: beginnings of keys in the checkpoint and in the module, so that messages can use the checkpoint's own.

    Raises:
        ValueError: a tensor is missing or of another shape; the message names the file, such keys and how to get it.
    """
    wanted = module.state_dict()
    back = [(ours, theirs) for theirs, ours in names]
    missing = [renamed(key, back) for key in wanted if key not in state]
    shapes = [
        (renamed(key, back), state[key].shape, wanted[key].shape)
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    _complain(path, checkpoint, [renamed(key, back) for key in wanted], missing, shapes)
    _warn_of_more(path, [key for key in state if key not in wanted])
    module.load_state_dict({key: state[key] for key in wanted})


def _complain(
    place: object, checkpoint: Checkpoint, wanted: list[str], missing: list[str], shapes: list[tuple[str, Any, Any]]
) -> None:
    """ValueError where tensors are missing or, as (key, shape, expected shape), of another shape."""
    if not missing and not shapes:
        return
    if missing:
        wrong = f"lacks {len(missing)} of them, such as {', '.join(sorted(missing)[:3])}"
    else:
        key, got, expected = shapes[0]
        wrong = f"has {len(shapes)} of another shape: {key} is {list(got)}, not {list(expected)}"
    raise ValueError(
        f"expected a checkpoint of {checkpoint.repository} with {len(wanted)} tensors such as {wanted[0]}, "
        f"got {place}, which {wrong}; get it with {checkpoint.command}"
    )


def _warn_of_more(place: object, extra: list[str]) -> None:
    # Old releases of transformers saved the range of positions.
    if extra := [key for key in extra if not key.endswith("position_ids")]:
        warnings.warn(
            f"{place} has {len(extra)} tensors that are not used, such as {', '.join(extra[:3])}", stacklevel=3
        )
