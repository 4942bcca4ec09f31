"""``lotts score`` and ``doctor``: looking at what exists."""

from __future__ import annotations

import argparse
from typing import Any

from lotts.cli.arguments import STYLE, add

SCORE = """\
examples:
  lotts score out/best.png --prompt "a red circle left of a blue star" --verifier shapes
  lotts score pictures/ --prompts prompts.json --verifier imagereward,pickscore --out scores.csv
  lotts score one.png two.png --prompt "a cat" --verifier "zscore(imagereward:2,hpsv2=/models/hps)"

Prompts: --prompt is one for all pictures. --prompts is a file: an object {"file name": "prompt"} in .json, else one line
a picture in the pictures' order.

Verifiers: a name (`lotts doctor` lists them), or several with commas. Each has a column on its own scale; of several,
"combined" is the mean of their ranks among the pictures of the same prompt, 0 to 1. zscore(...) takes standard scores
instead of ranks, NAME:2 counts twice, NAME=PLACE reads the weights from a folder, a file or another hub id.
"""


def add_commands(commands: Any) -> None:
    """``commands`` is what ``add_subparsers`` returned."""
    score = commands.add_parser("score", help="judge pictures that exist", epilog=SCORE, **STYLE)
    score.set_defaults(run=_score)
    score.add_argument("images", metavar="IMAGE", nargs="+", help="pictures, or folders of them")
    prompts = score.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", metavar="TEXT", help="what every picture should show")
    prompts.add_argument("--prompts", metavar="FILE", help="a prompt for each picture")
    score.add_argument("--verifier", metavar="NAME", required=True, help="who judges: a,b makes an ensemble of two")
    add(score, "--device", str, None, "DEV", "cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    add(score, "--batch-size", int, None, "B", "pictures at once (default: the verifier's own)")
    add(score, "--out", str, None, "FILE", "also write a .json or .csv")

    doctor = commands.add_parser("doctor", help="show what this installation can do", **STYLE)
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--json", action="store_true", help="as JSON")


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
