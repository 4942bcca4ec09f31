"""Lists of variants: the paper's ablation of the mask (figure 7), and one parameter at a time (figure 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lotts.compare.study import Variant
from lotts.search import METHODS

FULL = "full"
#: name -> (map source, what is changed in the making of maps, what is changed in the method)
MASKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "no mask": ("random", {}, {"mask_ratio": 1.0, "mask_threshold": None}),
    "random mask": ("random", {}, {}),
    "without CA'_orig": ("attention", {"reweighting": "diff"}, {}),
    "without CA'_diff": ("attention", {"reweighting": "orig"}, {}),
    "without propagation": ("attention", {"propagate": False}, {}),
    "good/bad prompts": (
        "attention",
        {"positive": "A good image of {p}.", "negative": "A bad image of {p}."},
        {},
    ),
}
#: For scenes of shapes alone: what their verifier finds, and what only their checker knows.
KNOWN = {"verifier's mask": "verifier", "foreground mask": "foreground", "true mask": "defects"}
SHORT = {"k": "num_refinements", "r": "mask_ratio", "t0": "noise_step"}


def ablations(method: str, options: Mapping[str, Any] | None = None, *, known: bool = False) -> list[Variant]:
    """The method whole, and without one thing at a time. The mask is found anew under each, its area stays.

    Args:
        known: also with masks that only scenes of shapes have: the verifier's own, the foreground and the true defects.

    Raises:
        ValueError: the method has no mask to ablate.
    """
    options = dict(options or {})
    if "mask_ratio" not in METHODS[_localising(method)].options:
        raise ValueError(f"expected a method with one mask_ratio, such as lotts or lotts_chain, got {method}")
    if options.get("mask_threshold") is not None:
        raise ValueError("expected masks of one area to ablate, got a mask_threshold, under which each map has its own")
    found = [
        Variant(name, method, {**options, **changes}, source, localize)
        for name, (source, localize, changes) in MASKS.items()
    ]
    if known:
        found += [Variant(name, method, options, source) for name, source in KNOWN.items()]
    return [*found, Variant(FULL, method, options)]


def sweeps(
    method: str,
    values: Mapping[str, Sequence[Any]],
    steps: int,
    options: Mapping[str, Any] | None = None,
    source: str = "attention",
) -> list[Variant]:
    """A variant for each value of each parameter, the others as ``options`` say or at their defaults.

    Args:
        values: by option of the method, or by the paper's letter: k, r or t0.
        steps: of the sampler: half of them is the default of t0.

    Raises:
        ValueError: the method has no such option.
    """
    known = METHODS[_localising(method)].options
    base = {"noise_step": steps // 2} if known.get("noise_step", 0) is None else {}
    return [
        Variant(f"{name}={value}", method, {**base, **(options or {}), SHORT.get(name, name): value}, source)
        for name, listed in values.items()
        for value in listed
    ]


def default_of(
    method: str,
    variants: Sequence[Variant],
    steps: int,
    options: Mapping[str, Any] | None = None,
    source: str = "attention",
) -> str:
    """The name of the first variant that is the method with its options as it is; "" where none is."""
    kept = {**METHODS[_localising(method)].options, **(options or {})}
    (default,) = sweeps(method, {"global_steps": [kept["global_steps"]]}, steps, options, source)
    return next((variant.name for variant in variants if variant.spec() == default.spec()), "")


def default_sweep(method: str, steps: int) -> dict[str, list[Any]]:
    """The paper's values of k and r, and four noise steps as its 0, 10, 25 and 40 of 50; of what the method has."""
    values: dict[str, list[Any]] = {
        "k": [1, 2, 8],
        "r": [0.2, 0.5, 0.8],
        # At least one masked step before the two global ones.
        "t0": sorted({min(steps * share // 50, max(0, steps - 3)) for share in (0, 10, 25, 40)}),
    }
    known = METHODS[_localising(method)].options
    return {name: listed for name, listed in values.items() if SHORT[name] in known}


def _localising(method: str) -> str:
    names = [name for name, entry in METHODS.items() if entry.localises]
    if method not in names:
        raise ValueError(f"expected a method that looks for defects ({', '.join(names)}), got {method!r}")
    return method
