"""The command ``lotts``: generate, repair, replay, score, doctor."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lotts import __version__

if TYPE_CHECKING:
    from lotts.output import LoTTSOutput

DESCRIPTION = """\
Localised test-time scaling for diffusion models: generate candidates, find the weak region of each, resample only
there, and keep the best by a verifier. The result never scores lower than the best candidate.
"""
EXAMPLES = """\
examples:
  lotts generate "a red circle left of a blue star"
  lotts repair out/best.png "a red circle left of a blue star" --out repaired
  lotts replay out
  lotts score out/samples --prompt "a red circle left of a blue star" --verifier shapes
  lotts doctor
"""
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

Exits with 0 when every picture is the recorded one bit for bit, and with 1 when any differs. Bits are the same on
the same versions, processor and number of threads.
"""
SCORE = """\
examples:
  lotts score out/best.png --prompt "a red circle left of a blue star" --verifier shapes
  lotts score pictures/ --prompts prompts.json --verifier imagereward,pickscore --out scores.csv
  lotts score *.png --prompt "a cat" --verifier "zscore(imagereward:2,hpsv2=/models/hps)"

Prompts: --prompt is one for all pictures. --prompts is a file: an object {"file name": "prompt"} in .json, else one line
a picture in the pictures' order.

Verifiers: a name (`lotts doctor` lists them), or several with commas. Each has a column on its own scale; of several,
"combined" is the mean of their ranks among the pictures of the same prompt, 0 to 1. zscore(...) takes standard scores
instead of ranks, NAME:2 counts twice, NAME=PLACE reads the weights from a folder, a file or another hub id.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0, 1 for a replay that differs, 2 for a user's error."""
    args = _parser().parse_args(argv)
    # Its advice to install torchvision would come first on every command, and nothing here needs that.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return args.run(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"lotts: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lotts: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="lotts", description=DESCRIPTION, epilog=EXAMPLES, **style)
    parser.add_argument("--version", action="version", version=f"lotts {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    generate = commands.add_parser("generate", help="make a picture of a prompt", epilog=GENERATE, **style)
    generate.set_defaults(run=_generate)
    generate.add_argument("prompt", metavar="PROMPT", help="what to draw")
    _add(generate, "--candidates", int, 3, "N", "whole pictures, one a seed")
    _add_method(generate, refinements=2, background="replay", paste=False)
    _add(generate, "--height", int, None, "PX", "height in pixels (default: the model's)")
    _add(generate, "--width", int, None, "PX", "width in pixels (default: the model's)")
    _add_run(generate)

    repair = commands.add_parser("repair", help="improve a picture that exists", epilog=REPAIR, **style)
    repair.set_defaults(run=_repair)
    repair.add_argument("image", metavar="IMAGE", help="the picture")
    repair.add_argument("prompt", metavar="PROMPT", help="what it shows")
    _add(repair, "--mask", str, None, "MASK", "where to resample, white on black, as large as the picture")
    _add_method(repair, refinements=4, background="fixed", paste=True)
    _add_run(repair)

    replay = commands.add_parser("replay", help="make a recorded run again and compare", epilog=REPLAY, **style)
    replay.set_defaults(run=_replay)
    replay.add_argument("manifest", metavar="MANIFEST", help="a manifest.json, or the folder it lies in")
    _add(replay, "--out", str, None, "DIR", "also write the new run's files here")

    score = commands.add_parser("score", help="judge pictures that exist", epilog=SCORE, **style)
    score.set_defaults(run=_score)
    score.add_argument("images", metavar="IMAGE", nargs="+", help="pictures, or folders of them")
    prompts = score.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", metavar="TEXT", help="what every picture should show")
    prompts.add_argument("--prompts", metavar="FILE", help="a prompt for each picture")
    score.add_argument("--verifier", metavar="NAME", required=True, help="who judges: a,b makes an ensemble of two")
    _add(score, "--device", str, None, "DEV", "cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    _add(score, "--batch-size", int, None, "B", "pictures at once (default: the verifier's own)")
    _add(score, "--out", str, None, "FILE", "also write a .json or .csv")

    doctor = commands.add_parser("doctor", help="show what this installation can do", **style)
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _add(
    parser: argparse.ArgumentParser, flag: str, kind: Callable[[str], Any], default: Any, metavar: str, what: str
) -> None:
    shown = "" if default in (None, "") else f" (default: {default})"
    parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=what + shown)


def _add_method(parser: argparse.ArgumentParser, *, refinements: int, background: str, paste: bool) -> None:
    """What the method itself takes."""
    _add(parser, "--refinements", int, refinements, "K", "refinements of each")
    _add(parser, "--mask-ratio", float, 0.5, "R", "share of the picture to resample, in (0, 1]")
    _add(
        parser,
        "--noise-step",
        int,
        None,
        "N",
        "step, counted from pure noise, to restart from (default: half of the steps)",
    )
    _add(parser, "--global-steps", int, 2, "N", "last steps that denoise the whole picture, so that seams vanish")
    choices = "replay|fixed|fresh|clean" if background == "replay" else "fixed|fresh|clean"
    _add(parser, "--background", str, background, choices, "what stands outside the mask while it is refined")
    _add(parser, "--source", str, "attention", "attention|prediction", "where defect maps come from")
    modes = "dense|stale|trace" if background == "replay" else "dense|stale"
    _add(parser, "--sparse", str, "dense", modes, "what masked steps compute: all, or the mask beside what is stored")
    _add(parser, "--refresh-every", int, None, "N", "stale: masked steps between dense ones (default: one midway)")
    parser.add_argument("--sparse-offload", action="store_true", help="keep what is stored in the CPU's memory")
    parser.add_argument(
        "--pixel-paste",
        action=argparse.BooleanOptionalAction,
        default=paste,
        help=f"keep the pixels outside the mask, feathered at the seam (default: {'yes' if paste else 'no'})",
    )
    _add(parser, "--steps", int, None, "N", "denoising steps (default: 20 for shapes-sd, 50 for others)")
    _add(
        parser,
        "--guidance-scale",
        float,
        None,
        "G",
        "guidance; 1 is none (default: 3 for shapes-sd, else the pipeline's own)",
    )
    _add(parser, "--true-cfg-scale", float, 1.0, "G", "FLUX: classifier-free guidance as well; 1 is none (default 1)")
    _add(parser, "--negative-prompt", str, "", "TEXT", "what to stay away from (default: nothing)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    """What runs it and where it goes."""
    _add(parser, "--model", str, "shapes-sd", "NAME", "shapes-sd, a folder, or a hub id owner/name")
    _add(
        parser,
        "--verifier",
        str,
        None,
        "NAME",
        "who picks the best, a,b for an ensemble; `lotts doctor` lists them (default: the model's own)",
    )
    _add(parser, "--seed", int, 0, "S", "seed of the first candidate; the others follow")
    _add(parser, "--device", str, None, "DEV", "cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    _add(parser, "--dtype", str, None, "fp32|fp16|bf16", "precision (default: fp32; fp16 for hub models on cuda)")
    _add(
        parser,
        "--batch-size",
        int,
        1,
        "B",
        "samples at once: faster on a GPU; 1 gives the same bits whatever else runs",
    )
    _add(parser, "--out", str, "out", "DIR", "folder for the files; a folder that holds another run is left alone")


def _generate(args: argparse.Namespace) -> int:
    from lotts.pipeline import LoTTS

    pipe, settings, context = _prepare(args)
    lotts = LoTTS(pipe, settings.pop("verifier"), source=settings.pop("source"))
    settings.update(num_candidates=args.candidates, height=args.height, width=args.width)
    with _progress(args, args.candidates, settings) as tick:
        output = lotts(args.prompt, callback_on_step_end=tick, **settings)
    return _finish(output, args.out, context)


def _repair(args: argparse.Namespace) -> int:
    from lotts.repairs import repair

    pipe, settings, context = _prepare(args)
    with _progress(args, 0, settings) as tick:
        output = repair(pipe, args.image, args.prompt, args.mask, callback_on_step_end=tick, **settings)
    return _finish(output, args.out, context)


def _prepare(args: argparse.Namespace) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The pipeline, the arguments that ``LoTTS`` and ``repair`` share, and what the manifest is to say of both."""
    import torch

    from lotts.models import EMBEDDED, default_settings, dtype_name, load_pipeline
    from lotts.verifiers import available

    defaults = default_settings(args.model)
    verifier = args.verifier or defaults["verifier"]
    if verifier is None:
        raise ValueError(
            f"expected --verifier for {args.model}: only {', '.join(EMBEDDED)} has one of its own. "
            f"Verifiers: {', '.join(available())}"
        )
    pipe = load_pipeline(args.model, device=args.device, dtype=args.dtype)
    settings = {
        "verifier": verifier,
        "source": args.source,
        "num_refinements": args.refinements,
        "mask_ratio": args.mask_ratio,
        "noise_step": args.noise_step,
        "background": args.background,
        "global_steps": args.global_steps,
        "num_inference_steps": defaults["num_inference_steps"] if args.steps is None else args.steps,
        "guidance_scale": defaults["guidance_scale"] if args.guidance_scale is None else args.guidance_scale,
        "true_cfg_scale": args.true_cfg_scale,
        "negative_prompt": args.negative_prompt,
        "generator": torch.Generator().manual_seed(args.seed),
        "sparse": args.sparse,
        "refresh_every": args.refresh_every,
        "sparse_offload": args.sparse_offload,
        "pixel_paste": args.pixel_paste,
        "batch_size": args.batch_size,
    }
    context = {"model": args.model, "verifier": verifier, "dtype": dtype_name(pipe.dtype), "device": pipe.device}
    return pipe, settings, context


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


def _finish(output: LoTTSOutput, folder: str, context: dict[str, Any]) -> int:
    from lotts.report import save_output

    written = save_output(output, folder, context)
    print(summary(output))
    print(f"{written}: best.png, report.png, manifest.json, samples")
    return 0


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
    from lotts.manifest import CONTEXT
    from lotts.replays import replay
    from lotts.report import save_output

    replayed = replay(args.manifest)
    print(summary(replayed.output))
    if args.out is not None:
        context = {name: getattr(replayed.manifest, name) for name in CONTEXT}
        print(f"{save_output(replayed.output, args.out, context)}: written")
    if replayed.exact:
        print(f"all {len(replayed.output.samples)} pictures are the recorded ones, bit for bit")
        return 0
    print(f"{len(replayed.differences)} of {len(replayed.output.samples)} pictures differ:")
    for difference in replayed.differences:
        print(f"  {difference}")
    return 1


def _score(args: argparse.Namespace) -> int:
    from lotts.models import check_device
    from lotts.scoring import check_out, files_of, read_prompts, score_files

    if args.out is not None:
        check_out(args.out)
    images = files_of(args.images)
    prompts = [args.prompt] * len(images) if args.prompts is None else read_prompts(args.prompts, images)
    device = check_device(args.device)
    scored = score_files(images, prompts, args.verifier, device=device, batch_size=args.batch_size)
    print(scored.table())
    if args.out is not None:
        print(f"{scored.save(args.out)}: written")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    import json

    from lotts.doctor import diagnose, table

    found = diagnose()
    print(json.dumps(found, indent=2) if args.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
