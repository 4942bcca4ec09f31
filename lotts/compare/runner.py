"""Making the items of a study, one after the other in this process."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lotts import models, search
from lotts.backbones import family_of
from lotts.compare.judges import load_metric
from lotts.compare.records import (
    discard,
    failure_of,
    is_intact,
    pixels_of,
    read_record,
    unasked,
    write_failure,
    write_metrics,
    write_record,
)
from lotts.compare.study import Item, Study, Variant
from lotts.manifest import environment
from lotts.sources import AttentionSource, MapSource
from lotts.threads import cpu_threads
from lotts.verifiers import load

#: Prompts that a variant is checked on before it counts as impossible.
_TRIED = 3


class Runner:
    """Holds the pipeline, the verifier and the metrics of a study, and makes items with them.

    Raises:
        ValueError, FileNotFoundError: the device, a verifier or a metric is not there.
    """

    def __init__(self, study: Study, out: Path) -> None:
        self.study, self.out = study, out
        device = models.check_device(study.device)
        self.verifier: Any = load(study.verifier)
        self.metrics = {name: load_metric(name, device) for name in study.metrics}

    @functools.cached_property
    def pipe(self) -> Any:
        """Loaded when it is first needed: to check prompts, or to ask one more metric, it is not."""
        return models.load_pipeline(self.study.model, device=self.study.device, dtype=self.study.dtype)

    def release(self) -> None:
        """Let go of the pipeline; it is loaded again when it is needed."""
        self.__dict__.pop("pipe", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def check(self) -> None:
        """ValueError for a verifier that no search takes, or a prompt that it or a metric does not: before any compute."""
        search.check_comparable(self.verifier)
        for prompt in self.study.prompts:
            for judge in (self.verifier, *self.metrics.values()):
                if hasattr(judge, "check_prompt"):
                    judge.check_prompt(prompt.text)

    def check_options(self, items: Iterable[Item]) -> None:
        """ValueError, TypeError for a variant that no item of it can be made of: an option or a budget out of range.

        A prompt that it cannot take is a failure of that item; so a few are tried.
        """
        by_line: dict[tuple[str, str], dict[str, Item]] = {}
        for item in items:
            by_line.setdefault((item.variant.name, item.budget), {}).setdefault(item.prompt.text, item)
        for by_prompt in by_line.values():
            errors = []
            for item in itertools.islice(by_prompt.values(), _TRIED):
                try:
                    search.check(**self._arguments(item))
                    break
                except (ValueError, TypeError) as error:
                    errors.append(error)
            else:
                raise errors[0]

    def __call__(self, item: Item) -> bool:
        """Make an item, or record why it was not made; returns whether it was."""
        try:
            with cpu_threads(self.study.threads):
                record = read_record(self.out, item)
                if record is not None and unasked(self.study, record) and not is_intact(self.out, item, record):
                    discard(self.out, item)
                    record = None
                if record is None:
                    record = self._search(item)
                self._judge(item, record)
        except Exception as error:
            write_failure(self.out, item, error)
            return False
        failure_of(self.out, item).unlink(missing_ok=True)
        return True

    def _search(self, item: Item) -> dict[str, Any]:
        output = search.run(**self._arguments(item))
        circumstances = environment(str(self.pipe.device)) | output.made_with
        return write_record(self.out, self.study, item, output, circumstances)

    def _arguments(self, item: Item) -> dict[str, Any]:
        variant = item.variant
        return {
            "pipe": self.pipe,
            "prompt": item.prompt.text,
            "method": variant.method,
            "budget": item.spends,
            "verifier": self.verifier,
            "source": self._source(variant),
            "generator": torch.Generator().manual_seed(item.first_seed),
            **self.study.settings,
            **variant.options,
        }

    def _source(self, variant: Variant) -> str | MapSource:
        if not variant.localize:
            return variant.source
        return AttentionSource(dataclasses.replace(family_of(self.pipe).localize, **variant.localize))

    def _judge(self, item: Item, record: dict[str, Any]) -> None:
        """Ask the metrics that have not been asked of every picture that the item led with."""
        if missing := unasked(self.study, record):
            chosen = sorted({point["sample"] for point in record["points"]})
            pictures = {sample: pixels_of(self.out, item, sample) for sample in chosen}
            said = {
                name: {str(k): self.metrics[name](picture, item.prompt.text) for k, picture in pictures.items()}
                for name in missing
            }
            write_metrics(self.out, self.study, item, record, said)


def missing_items(study: Study, out: Path) -> list[Item]:
    """What is still to be made, each once."""
    left: dict[str, Item] = {}
    for item in study.items():
        if item.key not in left:
            record = read_record(out, item)
            if record is None or unasked(study, record):
                left[item.key] = item
    return list(left.values())


def run_here(runner: Runner, items: Iterable[Item]) -> int:
    """Make items in this process; returns how many failed."""
    items = list(items)
    return sum(not runner(item) for item in tqdm(items, unit="item", disable=None))


def versions_of(model: str, verifier: str) -> dict[str, Any]:
    """What tells one state of a model and of a verifier from another: a digest of embedded weights, a verifier's version."""
    return {"model": models.weights_digest(model), "verifier": getattr(load(verifier), "version", None)}
