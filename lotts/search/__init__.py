"""Ways to spend compute on one prompt, behind one call: the paper's baselines, LoTTS, and our own.

>>> out = lotts.search.run(pipe, "a red circle left of a blue star", "best_of_n", budget="nfe=450")
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lotts.checks import plain
from lotts.offloading import frees_hooks
from lotts.output import LoTTSOutput
from lotts.search.adaptive import lotts_adaptive, lotts_chain
from lotts.search.baselines import best_of_n, resampling, zero_order
from lotts.search.budget import Budget
from lotts.search.independent import RESAMPLE, lotts
from lotts.search.particle import particle
from lotts.search.pool import Pool
from lotts.sources import MapSource
from lotts.verifiers import Judge

__all__ = ["METHODS", "Budget", "Method", "check", "check_comparable", "run"]


#: Raised whenever the same arguments draw other pictures than before, or find other masks: comparisons then begin anew.
VERSION = 4


class Method(NamedTuple):
    """A search: its function, whether it looks for defects, and whether it returns the best by the verifier."""

    search: Callable[..., LoTTSOutput]
    localises: bool = False
    keeps_best: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Its own arguments and their defaults, with those of its refinements."""
        own = inspect.signature(self.search).parameters.values()
        plain = {p.name: p.default for p in own if p.kind is p.KEYWORD_ONLY}
        return plain | (RESAMPLE if any(p.kind is p.VAR_KEYWORD for p in own) else {})


METHODS: dict[str, Method] = {
    "resampling": Method(resampling, keeps_best=False),
    "best_of_n": Method(best_of_n),
    "zero_order": Method(zero_order),
    "particle": Method(particle),
    "lotts": Method(lotts, localises=True),
    "lotts_chain": Method(lotts_chain, localises=True),
    "lotts_adaptive": Method(lotts_adaptive, localises=True),
}


@frees_hooks
def run(
    pipe: Any,
    prompt: str,
    method: str = "lotts",
    *,
    budget: str | Budget = "samples=9",
    verifier: str | Judge = "shapes",
    source: str | MapSource = "attention",
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    true_cfg_scale: float = 1.0,
    eta: float = 0.0,
    negative_prompt: str = "",
    height: int | None = None,
    width: int | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    batch_size: int = 1,
    callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
    output_type: str = "pil",
    **options: Any,
) -> LoTTSOutput:
    """Draw pictures of one prompt until the budget is spent, and return the best.

    Args:
        method: one of ``lotts.search.METHODS``; ``options`` are its own (see each method's function).
        budget: "samples=9", "nfe=450", "tokens=1e6" or "seconds=60": no method goes beyond it, and each draws as long as
            another picture of its kind fits. "seconds" looks at the clock before each batch, and lets it end.

    The other arguments are those of ``lotts.LoTTS``. ``samples`` of the output holds all pictures, ``cost`` what each thing cost.

    Raises:
        TypeError, ValueError: something does not fit; raised before any compute.
    """
    return _run(Pool, options, **{name: value for name, value in locals().items() if name != "options"})


_SIGNATURE = inspect.signature(run)


def check(pipe: Any, prompt: str, method: str = "lotts", **arguments: Any) -> None:
    """Raise what ``run`` would raise of these arguments; no step is computed."""
    bound = _SIGNATURE.bind(pipe, prompt, method, **arguments)
    bound.apply_defaults()
    given = dict(bound.arguments)
    options = given.pop("options")
    with contextlib.suppress(_Accepted):
        _run(_Closed, options, **given)


class _Accepted(Exception):
    """A method asked for its first picture: its arguments are fine."""


class _Closed(Pool):
    """Gives no picture."""

    opened = False

    def affords(self, steps: int, localise: bool = True) -> int:
        if self.opened:
            raise _Accepted
        self.opened = True  # the first to ask is not the method
        return super().affords(steps, localise)


@torch.no_grad()
def _run(
    kind: type[Pool],
    options: dict[str, Any],
    *,
    pipe: Any,
    method: str,
    budget: str | Budget,
    verifier: str | Judge,
    source: str | MapSource,
    num_inference_steps: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    **arguments: Any,
) -> LoTTSOutput:
    from lotts.backbones import backbone_for
    from lotts.request import Request
    from lotts.sources import map_source
    from lotts.verifiers import load

    if method not in METHODS:
        raise ValueError(f"expected a method out of {', '.join(METHODS)}, got {method!r}")
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    chosen = METHODS[method]
    if unknown := set(options) - set(chosen.options):
        known = ", ".join(chosen.options) or "none"
        raise TypeError(f"expected options of {method} out of {known}, got {', '.join(sorted(unknown))}")
    options = {name: plain(value) for name, value in options.items()}
    backbone, judge = backbone_for(pipe), load(verifier)
    check_comparable(judge)
    request = Request.build(
        backbone,
        judge,
        map_source(source, judge),
        num_candidates=len(generator) if isinstance(generator, Sequence) else 1,
        num_inference_steps=num_inference_steps,
        generator=generator,
        localise=chosen.localises,
        **arguments,
    )
    pool = kind(request, budget, chosen.localises)
    if not pool.affords(num_inference_steps):
        rows, (height, width) = pool.rows(num_inference_steps), request.size
        least = f"{rows * height * width} tokens" if budget.unit == "tokens" else f"{rows} network rows"
        raise ValueError(f"expected a budget for one picture at least ({least}), got {budget}")
    out = chosen.search(pool, **options)
    shared = {name: value for name, value in request.settings.items() if name in (*_SIGNATURE.parameters, "seeds")}
    out.settings = {**shared, "method": method, "budget": str(budget), **chosen.options, **options, **out.settings}
    return out


def check_comparable(verifier: Judge) -> None:
    """ValueError for a verifier whose scores only say where a picture stands among those scored with it."""
    if getattr(verifier, "relative", False):
        told = getattr(verifier, "name", verifier)
        raise ValueError(
            f"expected a verifier whose scores compare between calls, got {told}: a search scores pictures as they come, and "
            "an ensemble's scores only say where one stands among those scored with it"
        )
