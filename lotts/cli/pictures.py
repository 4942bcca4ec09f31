"""``lotts generate``, ``repair`` and ``replay``: making pictures."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lotts.cli.arguments import STYLE, add, add_method, add_run, checked_settings

if TYPE_CHECKING:
    import torch

    from lotts.output import LoTTSOutput

GENERATE = """\
examples:
  lotts generate "a red circle left of a blue star"
  lotts generate "a red ring, a pink cross in a row" --candidates 5 --refinements 4 --mask-ratio 0.3 --seed 7
  lotts generate "scattered: a red circle, a blue star" --source prediction --pixel-paste --out stars

The verifier judges every picture: 3 candidates with 2 refinements each make a pool of 9. best.png is the winner,
report.png shows the whole run, manifest.json lets `lotts replay` make it again.
"""
REPAIR = """\
examples:
  lotts repair out/samples/00-candidate-seed0.png "a red circle left of a blue star"
  lotts repair picture.png "a green heart above a black ring" --mask here.png --refinements 8

Without --mask the weak region is found; with it, what is white in the mask is resampled. The given picture stays in
the pool: if no refinement scores higher, it comes back unchanged.
"""
REPLAY = """\
examples:
  lotts replay out
  lotts replay out/manifest.json --out again

Exits with 0 when every picture is the recorded one bit for bit, with its score, and the same one was picked; with 1 when
anything differs. Bits are the same on the same versions, weights, processor and number of threads.
"""


def add_commands(commands: Any) -> None:
    """``commands`` is what ``add_subparsers`` returned."""
    generate = commands.add_parser("generate", help="make a picture of a prompt", epilog=GENERATE, **STYLE)
    generate.set_defaults(run=_generate)
    generate.add_argument("prompt", metavar="PROMPT", help="what to draw")
    add(generate, "--candidates", int, 3, "N", "whole pictures, one a seed")
    add_method(generate, refinements=2, background="replay", paste=False)
    add(generate, "--height", int, None, "PX", "height in pixels (default: the model's)")
    add(generate, "--width", int, None, "PX", "width in pixels (default: the model's)")
    add_run(generate)

    repair = commands.add_parser("repair", help="improve a picture that exists", epilog=REPAIR, **STYLE)
    repair.set_defaults(run=_repair)
    repair.add_argument("image", metavar="IMAGE", help="the picture")
    repair.add_argument("prompt", metavar="PROMPT", help="what it shows")
    add(
        repair,
        "--mask",
        str,
        None,
        "MASK",
        "where to resample: white on black, as large as the picture (default: find it)",
    )
    add_method(repair, refinements=4, background="fixed", paste=True)
    add_run(repair)

    replay = commands.add_parser("replay", help="make a recorded run again and compare", epilog=REPLAY, **STYLE)
    replay.set_defaults(run=_replay)
    replay.add_argument("manifest", metavar="MANIFEST", help="a manifest.json, or the folder it lies in")
    add(replay, "--out", str, None, "DIR", "also write the new run's files here")
    add(
        replay,
        "--verifier",
        str,
        None,
        "NAME",
        "who judges (default: as recorded; needed where that is an address, which a manifest does not decide)",
    )


def _generate(args: argparse.Namespace) -> int:
    from lotts.pipeline import LoTTS

    own = {"num_candidates": args.candidates, "height": args.height, "width": args.width}
    pipe, settings, context = _prepare(args, **own)
    lotts = LoTTS(pipe, settings.pop("verifier"), source=settings.pop("source"))
    with _progress(args, args.candidates, settings) as tick:
        output = lotts(args.prompt, callback_on_step_end=tick, **settings, **own)
    return finish(output, args.out, context)


def _repair(args: argparse.Namespace) -> int:
    from lotts.repairs import check_without_run, read_mask, read_picture, repair

    picture = read_picture(args.image)
    mask = None if args.mask is None else read_mask(args.mask)
    check_without_run(args.background, args.sparse)
    pipe, settings, context = _prepare(args, num_candidates=1)
    with _progress(args, 0, settings) as tick:
        output = repair(pipe, picture, args.prompt, mask, callback_on_step_end=tick, **settings)
    return finish(output, args.out, context)


def _prepare(args: argparse.Namespace, **own: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The pipeline, the arguments that ``LoTTS`` and ``repair`` share, and what the manifest is to say of both.

    All that needs no pipeline is checked first, so that nothing is loaded or downloaded in vain. ``own``: a command's own
    numbers.
    """
    from lotts.arguments import check_numbers, check_prompt
    from lotts.models import load_pipeline
    from lotts.sources import map_source
    from lotts.verifiers import load

    name, settings = checked_settings(args)
    method = {
        "num_refinements": args.refinements,
        "mask_ratio": args.mask_ratio,
        "mask_threshold": args.mask_threshold,
        "dilate": args.dilate,
        "noise_step": args.noise_step,
        "background": args.background,
        "global_steps": args.global_steps,
        "sparse": args.sparse,
        "refresh_every": args.refresh_every,
        "sparse_offload": args.sparse_offload,
    }
    numbers = {key: value for key, value in settings.items() if key != "negative_prompt"}
    check_numbers(**numbers, **method, **own)
    generator = seeded(args.seed)
    check_folder(args.out)
    verifier = load(name)
    check_prompt(args.prompt, verifier)
    map_source(args.source, verifier)
    pipe = load_pipeline(args.model, device=args.device, dtype=args.dtype)
    settings |= {
        **method,
        "verifier": verifier,
        "source": args.source,
        "generator": generator,
        "pixel_paste": args.pixel_paste,
    }
    return pipe, settings, context_of(args, name, pipe)


def context_of(args: argparse.Namespace, verifier: str, pipe: Any) -> dict[str, Any]:
    """What the manifest says of the pipeline and the verifier; files and folders by their whole path, wherever it is read."""
    from lotts.models import EMBEDDED, dtype_name
    from lotts.verifiers import with_places

    model = args.model if args.model in EMBEDDED else _whole(args.model)
    return {
        "model": model,
        "verifier": with_places(verifier, _whole),
        "dtype": dtype_name(pipe.dtype),
        "device": pipe.device,
    }


def _whole(place: str) -> str:
    return os.path.abspath(place) if Path(place).exists() else place


def check_folder(out: str) -> None:
    """ValueError for a folder that can neither be written to nor made."""
    folder = Path(out).absolute()
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), None)
    if there is None:
        raise ValueError(f"expected a folder as --out, got {out}: there is no {folder.anchor}")
    if not there.is_dir():
        raise ValueError(f"expected a folder as --out, got {out}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"expected a folder that can be written to as --out, got {out}: {there} is not open to you")


def seeded(seed: int) -> torch.Generator:
    import torch

    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"expected --seed from -2**63 to 2**64 - 1, got {seed}")
    return torch.Generator().manual_seed(seed)


@contextmanager
def _progress(args: argparse.Namespace, candidates: int, settings: dict[str, Any]):
    """A bar over all denoising steps, as a diffusers callback; silent where stderr is no terminal."""
    from tqdm import tqdm

    steps = settings["num_inference_steps"]
    start = steps // 2 if args.noise_step is None else args.noise_step
    size = max(1, args.batch_size)
    refinements = max(1, candidates) * args.refinements
    total = -(-candidates // size) * steps + -(-refinements // size) * (steps - start)
    with tqdm(total=max(0, total), unit="step", leave=False, disable=None) as bar:

        def tick(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            bar.set_description(kwargs.get("stage"), refresh=False)
            bar.update()
            return {}

        yield tick


def finish(output: LoTTSOutput, folder: str, context: dict[str, Any]) -> int:
    from lotts.report import save_output

    print(summary(output))
    try:
        written, status = save_output(output, folder, context), 0
    except OSError as error:
        # What was drawn is not lost with a folder that filled up or went away meanwhile.
        print(f"lotts: {folder} cannot be written to: {error}", file=sys.stderr)
        written, status = save_output(output, Path(tempfile.mkdtemp(prefix="lotts-")), context), 1
    print(f"{written}: best.png, report.png, manifest.json, samples")
    return status


def summary(output: LoTTSOutput) -> str:
    """A table of the pool and what came of it."""
    lines = ["  #  score    sample"]
    for index, sample in enumerate(output.samples):
        name = f"refinement of {sample.parent}" if sample.kind == "refinement" else f"{sample.kind}, seed {sample.seed}"
        mark = "  <- best" if index == output.best else ""
        lines.append(f"{index:3}  {sample.score:<7.4g}  {name}{mark}")
    first = "the original" if output.samples[0].kind == "original" else "the best candidate"
    lines.append(f"{output.improvement:+.4g} over {first}, {output.cost.nfe} NFE, {output.cost.seconds:.1f} s")
    lines += output.cost.notes
    return "\n".join(lines)


def _replay(args: argparse.Namespace) -> int:
    from lotts.manifest import CONTEXT, sample_file
    from lotts.replays import replay
    from lotts.report import save_output
    from lotts.verifiers import with_places

    if args.out is not None:
        check_folder(args.out)
    replayed = replay(args.manifest, verifier=args.verifier)
    print(summary(replayed.output))
    samples = replayed.manifest.samples
    if args.out is not None:
        context = {name: getattr(replayed.manifest, name) for name in CONTEXT} | {"device": replayed.device}
        if args.verifier is not None:
            context["verifier"] = with_places(args.verifier, _whole)
        print(f"{save_output(replayed.output, args.out, context)}: written")
    if replayed.exact:
        print(f"all {len(samples)} pictures are the recorded ones, bit for bit, with the recorded scores")
        return 0
    for found, what in ((replayed.differences, "pictures"), (replayed.rescored, "scores")):
        if found:
            print(f"{len(found)} of {len(samples)} {what} differ:")
            print("\n".join(f"  {difference}" for difference in found))
    if not replayed.same_best:
        now, then = replayed.output.best, samples[replayed.manifest.best].file
        print(f"the best is {sample_file(now, replayed.output.samples[now])} now, {then} then")
    return 1
