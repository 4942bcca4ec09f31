"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

#: How every command's help is laid out.
STYLE: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}


def add(
    parser: argparse.ArgumentParser, flag: str, kind: Callable[[str], Any], default: Any, metavar: str, what: str
) -> None:
    shown = "" if default in (None, "") else f" (default: {default})"
    parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=what + shown)


def add_method(parser: argparse.ArgumentParser, *, refinements: int, background: str, paste: bool) -> None:
    """What the method itself takes."""
    add(parser, "--refinements", int, refinements, "K", "refinements of each")
    add(parser, "--mask-ratio", float, 0.5, "R", "share of the picture to resample, in (0, 1]")
    add(
        parser,
        "--mask-threshold",
        float,
        None,
        "P",
        "resample only what the defect map puts above P; goes well with --source verifier, whose map is a chance",
    )
    add(parser, "--dilate", int, 0, "N", "grow the mask by so many latent cells")
    add(
        parser,
        "--noise-step",
        int,
        None,
        "N",
        "step, counted from pure noise, to restart from (default: half of the steps)",
    )
    add(
        parser,
        "--global-steps",
        int,
        None,
        "N",
        "last steps that denoise the whole picture, so that seams vanish (default: 2, or as few as leave a masked one)",
    )
    choices = "replay|fixed|fresh|clean" if background == "replay" else "fixed|fresh|clean"
    add(parser, "--background", str, background, choices, "what stands outside the mask while it is refined")
    add(parser, "--source", str, "attention", "attention|prediction|verifier", "where defect maps come from")
    modes = "dense|stale|trace" if background == "replay" else "dense|stale"
    add(parser, "--sparse", str, "dense", modes, "what masked steps compute: all, or the mask beside what is stored")
    add(parser, "--refresh-every", int, None, "N", "stale: every N-th masked step is dense (default: 2)")
    parser.add_argument("--sparse-offload", action="store_true", help="keep what is stored in the CPU's memory")
    parser.add_argument(
        "--pixel-paste",
        action=argparse.BooleanOptionalAction,
        default=paste,
        help=f"keep the pixels outside the mask, feathered at the seam (default: {'yes' if paste else 'no'})",
    )
    add_sampling(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How the model itself is driven."""
    add(
        parser, "--steps", int, None, "N", "denoising steps (default: 20 for shapes-sd, -sdxl and -flux, 50 for others)"
    )
    add(
        parser,
        "--guidance-scale",
        float,
        None,
        "G",
        "guidance; 1 is none (default: 2 for shapes-sd and -sdxl, else the pipeline's own)",
    )
    add(
        parser,
        "--true-cfg-scale",
        float,
        None,
        "G",
        "FLUX: classifier-free guidance as well; 1 is none (default: 2 for shapes-flux, else 1)",
    )
    add(
        parser,
        "--eta",
        float,
        0.0,
        "E",
        "fresh noise in each step, 0 to 1: with DDIM 1 is DDPM, with Euler it is Euler ancestral",
    )
    add(parser, "--negative-prompt", str, "", "TEXT", "what to stay away from (default: nothing)")


def add_run(parser: argparse.ArgumentParser) -> None:
    """What runs it and where it goes."""
    add_model(parser)
    add(parser, "--seed", int, 0, "S", "seed of the first candidate; the others follow")
    add(parser, "--out", str, "out", "DIR", "folder for the files; a folder that holds another run is left alone")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Who draws, who judges, and on what."""
    add(
        parser,
        "--model",
        str,
        "shapes-sd",
        "NAME",
        "shapes-sd, shapes-sdxl, shapes-flux, a folder, or a hub id owner/name",
    )
    add(
        parser,
        "--verifier",
        str,
        None,
        "NAME",
        "who picks the best, a,b for an ensemble; `lotts doctor` lists them (default: the model's own)",
    )
    add(parser, "--device", str, None, "DEV", "cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    add(
        parser,
        "--dtype",
        str,
        None,
        "fp32|fp16|bf16",
        "precision (default: fp32; for hub models on cuda bf16 of FLUX and SD3, fp16 of others)",
    )
    add(
        parser,
        "--batch-size",
        int,
        1,
        "B",
        "samples at once: faster on a GPU; 1 gives the same bits whatever else runs",
    )


def model_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Verifier, steps and guidance: what was asked for, else the model's own.

    Raises:
        FileNotFoundError, ValueError: there is no such model, or it has no verifier of its own and none was asked for.
    """
    from lotts.models import EMBEDDED, default_settings, location
    from lotts.verifiers import available

    location(args.model)
    defaults = default_settings(args.model)
    verifier = args.verifier or defaults["verifier"]
    if verifier is None:
        raise ValueError(
            f"expected --verifier for {args.model}: only {', '.join(EMBEDDED)} have one of their own. "
            f"Verifiers: {', '.join(available())}"
        )
    return {
        "verifier": verifier,
        "num_inference_steps": defaults["num_inference_steps"] if args.steps is None else args.steps,
        "guidance_scale": defaults["guidance_scale"] if args.guidance_scale is None else args.guidance_scale,
        "true_cfg_scale": defaults["true_cfg_scale"] if args.true_cfg_scale is None else args.true_cfg_scale,
        "negative_prompt": args.negative_prompt,
        "batch_size": args.batch_size,
        **({"eta": args.eta} if args.eta else {}),
    }


def checked_settings(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The verifier's name and the other ``model_settings`` of a command on one prompt; raises what is wrong before anything is loaded."""
    from lotts.arguments import check_prompt
    from lotts.models import check_device, check_dtype
    from lotts.verifiers import check_name

    settings = model_settings(args)
    name = settings.pop("verifier")
    check_name(name)
    check_device(args.device)
    check_dtype(args.dtype)
    check_prompt(args.prompt)
    return name, settings
