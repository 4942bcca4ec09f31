"""The command ``lotts``: generate, repair, replay, search, score, compare, ablate, sweep, doctor."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lotts import __version__
from lotts.cli import pictures, scores, searches, studies
from lotts.cli.arguments import STYLE

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
  lotts search "a red circle left of a blue star" --budget samples=9
  lotts compare shapes:16 --methods best_of_n,lotts --metrics checker
  lotts doctor
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status.

    0; 1 for a replay that differs or a comparison with failures; 2 for a user's error; 130 for an interrupt.
    """
    args = _parser().parse_args(argv)
    # Its advice to install torchvision would come first on every command, and nothing here needs that.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return args.run(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"lotts: error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this
            raise
        print(
            f"lotts: error: {error}\nTry a smaller --batch-size, --dtype fp16 or bf16, or --device cpu.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("lotts: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lotts", description=DESCRIPTION, epilog=EXAMPLES, **STYLE)
    parser.add_argument("--version", action="version", version=f"lotts {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (pictures, searches, scores, studies):
        group.add_commands(commands)
    return parser
