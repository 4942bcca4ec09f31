"""``lotts search``: one prompt, any method, a budget."""

from __future__ import annotations

import argparse
from typing import Any

from lotts.cli.arguments import STYLE, add, add_run, add_sampling, checked_settings
from lotts.cli.pictures import check_folder, context_of, finish, seeded

SEARCH = """\
examples:
  lotts search "a red circle left of a blue star"
  lotts search "a red ring, a pink cross in a row" --budget nfe=720
  lotts search "scattered: a red circle, a blue star" --method "lotts_chain(mask_ratio=0.25)" --source attention
  lotts search "a red circle left of a blue star" --method best_of_n --budget seconds=20 --out best

Methods: lotts_adaptive spends each unit of compute where a better picture is likeliest for its cost; lotts, lotts_chain,
best_of_n, zero_order, particle, resampling are the others, with their own options in brackets. `lotts compare` says which of
them is worth it on prompts of yours. DIR gets what `lotts generate` writes, and `lotts replay` makes it again, unless the
budget was in seconds.
"""


def add_commands(commands: Any) -> None:
    """``commands`` is what ``add_subparsers`` returned."""
    search = commands.add_parser("search", help="spend a budget on one prompt", epilog=SEARCH, **STYLE)
    search.set_defaults(run=_search)
    search.add_argument("prompt", metavar="PROMPT", help="what to draw")
    add(search, "--method", str, "lotts_adaptive", "M", "how to search, options in brackets")
    add(search, "--budget", str, "samples=9", "B", "samples=9, nfe=450, tokens=1e6 or seconds=60")
    add(search, "--source", str, "prediction", "prediction|attention|verifier", "where defect maps come from")
    add_sampling(search)
    add(search, "--height", int, None, "PX", "height in pixels (default: the model's)")
    add(search, "--width", int, None, "PX", "width in pixels (default: the model's)")
    add_run(search)


def _search(args: argparse.Namespace) -> int:
    """All that needs no pipeline is checked first, so that nothing is loaded or downloaded in vain."""
    from tqdm import tqdm

    from lotts import search
    from lotts.arguments import check_prompt
    from lotts.compare.study import Variant, method_of
    from lotts.models import load_pipeline
    from lotts.sources import map_source
    from lotts.verifiers import load

    name, settings = checked_settings(args)
    method, options = method_of(args.method)
    if "source" in options:
        raise ValueError(f"expected --source {options['source']} instead of a source in brackets")
    Variant(args.method, method, options)
    budget, generator = search.Budget.parse(args.budget), seeded(args.seed)
    check_folder(args.out)
    verifier = load(name)
    check_prompt(args.prompt, verifier)
    search.check_comparable(verifier)
    map_source(args.source, verifier)
    pipe = load_pipeline(args.model, device=args.device, dtype=args.dtype)
    with tqdm(unit="step", leave=False, disable=None) as bar:

        def tick(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            bar.set_description(kwargs.get("stage"), refresh=False)
            bar.update()
            return {}

        output = search.run(
            pipe,
            args.prompt,
            method,
            budget=budget,
            verifier=verifier,
            source=args.source,
            generator=generator,
            height=args.height,
            width=args.width,
            callback_on_step_end=tick,
            **settings,
            **options,
        )
    return finish(output, args.out, context_of(args, name, pipe))
