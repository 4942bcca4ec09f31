"""``lotts compare``, ``ablate`` and ``sweep``: which method, and which of its parts and settings, is worth its compute."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from lotts.cli.arguments import STYLE, add, add_model, add_sampling, model_settings

if TYPE_CHECKING:
    from lotts.compare import Variant

PROMPTS = """\
PROMPTS is a file - .txt (a prompt a line), .jsonl (GenEval, Pick-a-Pic), .csv (DrawBench), .tsv (PartiPrompts), .json (COCO
captions) - or shapes:512, which draws as many prompts that the embedded models never saw; shapes:256@9-16 has only
scenes of 9 to 16 objects.

Every prompt, method, budget and seed is an item of its own in DIR/items, whole or not there: stop the command at any
moment, run it again, and it goes on. What fails is told in DIR/failures and tried again. More prompts, seeds,
budgets, methods or metrics later only add what is missing. DIR then holds table.md, table.csv, table.json,
curves.csv, timings.csv and a plot.
"""
COMPARE = f"""\
examples:
  lotts compare shapes:64 --methods best_of_n,lotts,lotts_chain --budget samples=9 --metrics checker --out comparison
  lotts compare shapes:64 --methods "best_of_n,lotts(num_refinements=4),particle(strength=10)" --budget nfe=180,nfe=360
  lotts compare shapes:64 --methods "best_of_n(budget=nfe=720),lotts_adaptive" --budget nfe=180
  lotts compare DrawBench.csv --model owner/name --verifier imagereward --metrics hpsv2,clipscore --workers 4 --out drawbench

{PROMPTS}
Methods: resampling, best_of_n, zero_order, particle, lotts, lotts_chain, lotts_adaptive, with their own options in brackets.
The first is what the others are tested against, unless --reference names another. A budget in samples gives all methods as
many pictures to choose from, one in nfe the same compute; several, with commas, make a table each. A method may have a
budget of its own, in brackets.
--metrics judge the chosen pictures and no search sees them: checker (exact, for prompts of shapes), or names of verifiers.
"""
ABLATE = f"""\
examples:
  lotts ablate shapes:64 --metrics checker --out ablation
  lotts ablate shapes:64 --method lotts_chain --known-masks --budget nfe=270 --metrics checker

Takes one thing at a time away from how the mask is found - no mask, a random one, without CA'_orig, without CA'_diff, without
propagation, other words in the quality prompts - and compares with the method whole.

{PROMPTS}"""
SWEEP = f"""\
examples:
  lotts sweep shapes:64 --metrics checker --out sweep
  lotts sweep shapes:64 --vary k=1,2,4,8 --vary t0=4,8,12,16
  lotts sweep shapes:64 --method lotts_chain --vary r=0.1,0.25,0.5 --vary "background=replay,fixed"

Varies one setting at a time, the others stay at their defaults: k refinements of each candidate, r the share of the
picture that is resampled, t0 the step a refinement starts from; or any option of the method by its name. Tests are against
the first line that is the method at its defaults, or else the first of all.

{PROMPTS}"""


def add_commands(commands: Any) -> None:
    """``commands`` is what ``add_subparsers`` returned."""
    compare = commands.add_parser("compare", help="compare methods on many prompts", epilog=COMPARE, **STYLE)
    compare.set_defaults(run=_compare)
    _add_study(compare)
    add(compare, "--methods", str, "best_of_n,lotts", "A,B", "what to compare")
    add(compare, "--reference", str, None, "A", "which of them the others are tested against (default: the first)")

    ablate = commands.add_parser("ablate", help="take a method's mask apart", epilog=ABLATE, **STYLE)
    ablate.set_defaults(run=_ablate)
    _add_study(ablate)
    add(ablate, "--method", str, "lotts", "M", "lotts or lotts_chain, options in brackets")
    ablate.add_argument(
        "--known-masks",
        action="store_true",
        help="also the verifier's own mask, the foreground and the true defects, which the checker knows",
    )

    sweep = commands.add_parser("sweep", help="vary a method's settings", epilog=SWEEP, **STYLE)
    sweep.set_defaults(run=_sweep)
    _add_study(sweep)
    add(sweep, "--method", str, "lotts", "M", "a method that looks for defects, options in brackets")
    sweep.add_argument(
        "--vary",
        action="append",
        metavar="NAME=V,V",
        help="a setting and its values, once for each setting (default: k=1,2,8, r=0.2,0.5,0.8 and four of t0)",
    )


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", metavar="PROMPTS", help="a file of prompts, or shapes:COUNT")
    add(parser, "--limit", int, None, "N", "only the first N prompts")
    parser.add_argument(
        "--budget",
        action="append",
        metavar="B",
        help="samples=9, nfe=450, tokens=1e6 or seconds=60; several with commas (default: samples=9)",
    )
    add(parser, "--seeds", int, 3, "S", "runs of each prompt, each with pictures of its own")
    add(parser, "--metrics", str, "", "A,B", "held-out metrics: checker, or verifiers that are not searched with")
    add_model(parser)
    add_sampling(parser)
    add(parser, "--height", int, None, "PX", "height in pixels (default: the model's)")
    add(parser, "--width", int, None, "PX", "width in pixels (default: the model's)")
    add(parser, "--threads", int, None, "N", "CPU threads of each process; the same number gives the same bits")
    add(parser, "--workers", int, 0, "N", "processes over Ray, each with a pipeline; DIR has to be seen by all")
    add(
        parser, "--gpus-per-worker", float, None, "X", "share of a GPU of each worker (default: 1 where there are GPUs)"
    )
    add(parser, "--out", str, "comparison", "DIR", "folder for everything; the same one to go on")


def _compare(args: argparse.Namespace) -> int:
    from lotts.compare import Variant
    from lotts.compare.study import split

    return _run(args, [Variant.parse(part) for part in split(args.methods)], args.reference or "", "scaling")


def _ablate(args: argparse.Namespace) -> int:
    from lotts.compare.variants import FULL, ablations

    whole = _whole(args.method)
    if whole.source != "attention":
        raise ValueError(f"expected the attention's mask to take apart, got source={whole.source}")
    return _run(args, ablations(whole.method, whole.options, known=args.known_masks), FULL, "ablation")


def _whole(text: str) -> Variant:
    """The method that is taken apart or varied; its budget is the study's."""
    from lotts.compare import Variant

    whole = Variant.parse(text)
    if whole.budget is not None:
        raise ValueError(f"expected --budget {whole.budget} instead of a budget in brackets")
    return whole


def _sweep(args: argparse.Namespace) -> int:
    from lotts.compare.variants import default_of, default_sweep, sweeps

    steps, whole = model_settings(args)["num_inference_steps"], _whole(args.method)
    values = _values(args.vary) if args.vary else default_sweep(whole.method, steps)
    if not values:
        raise ValueError(f"expected --vary with options of {whole.method}, which has no k, r or t0 to vary")
    rest = (whole.options, whole.source)
    variants = sweeps(whole.method, values, steps, *rest)
    return _run(args, variants, default_of(whole.method, variants, steps, *rest), "sweep")


def _values(vary: list[str]) -> dict[str, list[Any]]:
    from lotts.compare.study import literal, split

    found: dict[str, list[Any]] = {}
    for text in vary:
        name, equals, values = text.partition("=")
        if not equals or not split(values):
            raise ValueError(f"expected --vary like k=1,2,8, got {text!r}")
        found.setdefault(name.strip(), []).extend(literal(value) for value in split(values))
    return found


def _run(args: argparse.Namespace, variants: list[Variant], reference: str, form: str) -> int:
    from lotts.compare import Study, compare
    from lotts.compare.judges import load_metric
    from lotts.compare.runner import versions_of
    from lotts.compare.study import split
    from lotts.prompts import load_prompts

    settings = model_settings(args)
    verifier, metrics = settings.pop("verifier"), split(args.metrics)
    study = Study(
        prompts=load_prompts(args.prompts, args.limit),
        variants=variants,
        budgets=[part for text in args.budget or ["samples=9"] for part in split(text)],
        seeds=args.seeds,
        model=args.model,
        verifier=verifier,
        metrics=metrics,
        reference=reference,
        settings={**settings, "height": args.height, "width": args.width},
        versions=versions_of(args.model, verifier),
        metric_versions={name: load_metric(name).version for name in metrics},
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
    )
    outcome = compare(study, args.out, workers=args.workers, gpus_per_worker=args.gpus_per_worker, form=form)
    print(outcome.text)
    print(
        f"{args.out}: {outcome.made} runs made, {outcome.kept} kept; table.md, table.csv, table.json, curves.csv, timings.csv"
    )
    if outcome.failed:
        print(
            f"lotts: {outcome.failed} runs failed, see {args.out}/failures; one of them: {outcome.error}",
            file=sys.stderr,
        )
    return 1 if outcome.failed else 0
