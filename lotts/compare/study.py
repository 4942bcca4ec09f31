"""What a comparison consists of: prompts, variants of methods, budgets and seeds, and the items that they make."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lotts.checks import whole
from lotts.localize import LocalizeConfig
from lotts.models import default_dtype, dtype_name
from lotts.prompts import Prompt
from lotts.resample import derive_seed
from lotts.search import METHODS, VERSION, Budget
from lotts.sources import SOURCES


@dataclass(frozen=True)
class Variant:
    """One line of a table: a search with its options.

    Args:
        name: what the line is called.
        method: out of ``lotts.search.METHODS``.
        options: arguments of the method's own; what is not given has its default.
        source: where defect maps come from, by name.
        localize: arguments of ``LocalizeConfig``, for the source "attention".
        budget: a budget of the line's own, in every table of the study: what the others reach against four times the compute.
    """

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    source: str = "attention"
    localize: dict[str, Any] = field(default_factory=dict)
    budget: str | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            object.__setattr__(self, "budget", str(Budget.parse(str(self.budget))))
        if self.method not in METHODS:
            raise ValueError(f"expected a method out of {', '.join(METHODS)}, got {self.method!r}")
        known = METHODS[self.method].options
        if unknown := set(self.options) - set(known):
            raise ValueError(
                f"expected options of {self.method} out of {', '.join(known) or 'none'}, got {', '.join(sorted(unknown))}"
            )
        if self.source not in SOURCES:
            raise ValueError(f"expected a map source out of {', '.join(SOURCES)}, got {self.source!r}")
        if (self.source != "attention" or self.localize) and not METHODS[self.method].localises:
            raise ValueError(
                f"expected a source with a method that looks for defects, got {self.source!r} for {self.method}"
            )
        if self.localize and self.source != "attention":
            raise ValueError(f"expected source 'attention' to configure its maps, got {self.source!r}")
        LocalizeConfig(**self.localize)

    @classmethod
    def parse(cls, text: str) -> Variant:
        """From "lotts", "lotts(num_refinements=4, source=random)" or "best_of_n(budget=nfe=720)"."""
        method, options = method_of(text)
        own = {name: options.pop(name) for name in ("source", "budget") if name in options}
        return cls(text.strip(), method, options, **own)

    def spec(self) -> dict[str, Any]:
        """All that decides what is drawn: not the name, and every option, so that two ways to say the same are one."""
        chosen = METHODS[self.method]
        localised = {"source": self.source, "localize": self.localize} if chosen.localises else {}
        return {"method": self.method, "options": {**chosen.options, **self.options}, **localised}


@dataclass(frozen=True)
class Item:
    """One run: a prompt, a variant, a budget and a seed. ``key`` is a digest of all that decides its outcome.

    ``budget`` is that of the table it stands in.
    """

    prompt: Prompt
    variant: Variant
    budget: str
    seed: int
    key: str

    @property
    def spends(self) -> str:
        """The budget of the run: the study's, or the variant's own."""
        return self.variant.budget or self.budget

    @property
    def first_seed(self) -> int:
        """The seed of its first picture, the same for all methods; pictures of two seeds have none in common."""
        return derive_seed(self.seed, "compare", self.prompt.text)


@dataclass(frozen=True)
class Study:
    """A comparison.

    Args:
        seeds: how many runs of each prompt, variant and budget.
        verifier: who chooses within every search.
        metrics: who judges what was chosen: "checker" (the exact one, for prompts of shapes) or other verifiers' names.
        reference: the variant that the others are tested against; default: the first.
        settings: the arguments that ``lotts.search.run`` shares among methods: steps, guidance, size, batch size.
        versions: of the model and of the verifier, so that a study does not go on with others.
        metric_versions: of each metric, by name: pictures that another version judged are judged again.
        dtype: of the model; None: its default on ``device`` here, so that a study goes on in the same one elsewhere.
        threads: of the CPU, for the same bits wherever it runs; None: as torch has it.
    """

    prompts: list[Prompt]
    variants: list[Variant]
    budgets: list[str]
    seeds: int
    model: str
    verifier: str
    metrics: list[str] = field(default_factory=list)
    reference: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    metric_versions: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("prompts", "variants", "budgets"):
            if not getattr(self, name):
                raise ValueError(f"expected {name} to compare, got none")
        if not isinstance(self.seeds, int) or self.seeds < 1:
            raise ValueError(f"expected seeds from 1 up, got {self.seeds!r}")
        if self.threads is not None:
            whole("threads", self.threads, 1)
        if self.dtype is None:
            object.__setattr__(self, "dtype", dtype_name(default_dtype(self.model, self.device)))
        object.__setattr__(self, "budgets", [str(Budget.parse(budget)) for budget in self.budgets])
        names = [variant.name for variant in self.variants]
        for what, given in (("variants", names), ("budgets", self.budgets), ("metrics", self.metrics)):
            if len(set(given)) < len(given):
                raise ValueError(f"expected {what} that differ, got {', '.join(given)}")
        if self.verifier in self.metrics:
            raise ValueError(
                f"expected held-out metrics, got {self.verifier}: it is the verifier that is searched with"
            )
        object.__setattr__(self, "reference", self.reference or names[0])
        if self.reference not in names:
            raise ValueError(f"expected a reference out of {', '.join(names)}, got {self.reference!r}")

    def items(self) -> Iterator[Item]:
        """All runs, prompt by prompt, so that a study that ends early has treated all methods alike."""
        for prompt in self.prompts:
            for seed in range(self.seeds):
                for variant in self.variants:
                    for budget in self.budgets:
                        yield Item(prompt, variant, budget, seed, self._key(prompt, variant, budget, seed))

    def _key(self, prompt: Prompt, variant: Variant, budget: str, seed: int) -> str:
        spec = {
            "prompt": prompt.text,
            **variant.spec(),
            "budget": variant.budget or budget,
            "seed": seed,
            "model": self.model,
            "verifier": self.verifier,
            "settings": self.settings,
            "versions": self.versions,
            "search": VERSION,
            "dtype": self.dtype,
        }
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:20]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def method_of(text: str) -> tuple[str, dict[str, Any]]:
    """A method's name and what stands in the brackets behind it, from "lotts" or "lotts(num_refinements=4, source=random)"."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text)
    if match is None:
        raise ValueError(f"expected a method like lotts or lotts(num_refinements=4), got {text!r}")
    options: dict[str, Any] = {}
    for part in split(match[2] or ""):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"expected options like num_refinements=4, got {part!r} in {text!r}")
        options[key.strip()] = literal(value)
    return match[1], options


def split(text: str) -> list[str]:
    """Parts between commas that are not inside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
