"""Whether the verifier ``imagereward`` gives the rewards of the package ``image-reward``, at full size, bit for bit.

The package does not import beside today's transformers, so it runs in an environment of its own:

    python -m venv ../original
    ../original/bin/pip install torch torchvision transformers==4.49.0 fairscale==0.4.13 pillow
    ../original/bin/pip install --no-deps timm==0.6.13 image-reward==1.5
    python -m bench imagereward_parity --python ../original/bin/python

Both sides read the same random weights, written by the package, from one file of 1.8 GB, and the same pictures through
their own preprocessing and tokenizer (over a made-up vocabulary, so that no hub is asked). Exit status 0: equal to
--tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.record import environment, write_json

WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "cat",
    "dog",
    "sofa",
    "on",
    "under",
    "the",
    "photo",
    "of",
    "old",
    "man",
    "with",
    "umbrella",
    ",",
    ".",
    "!",
    "##s",
    "##ing",
    "run",
    "1",
    "2",
    "##3",
]
PROMPTS = [
    "a red cat on the sofa",
    "A photo of an OLD man running, with cats!",
    "dogs " * 60,
    "",
    "the blue umbrella [SEP] 123",
    "a green dog.",
]
SIZES = [(224, 224), (512, 512), (300, 225), (227, 224), (97, 411), (640, 353)]
MODES = ["RGB", "RGB", "RGB", "RGBA", "L", "P"]


def prepare(folder: Path) -> None:
    """Pictures of odd sizes and modes with their prompts, and a vocabulary of BERT's size."""
    rng = np.random.default_rng(0)
    pairs = []
    for index, (size, mode, prompt) in enumerate(zip(SIZES, MODES, PROMPTS, strict=True)):
        coarse = rng.integers(0, 256, (12, 9, 4), dtype=np.uint8)
        image = Image.fromarray(coarse, "RGBA").resize(size, Image.Resampling.BICUBIC)
        image.convert("RGB" if mode == "P" else "RGBA").convert(mode).save(folder / f"{index}.png")
        pairs.append((f"{index}.png", prompt))
    (folder / "pictures.json").write_text(json.dumps(pairs), encoding="utf-8")
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    lines = [special.get(i, f"[unused{i}]") for i in range(30522)]
    lines[1000 : 1000 + len(WORDS)] = WORDS
    text = "\n".join(lines) + "\n"
    (folder / "bert-base-uncased").mkdir()
    for place in (folder, folder / "bert-base-uncased"):
        (place / "vocab.txt").write_text(text, encoding="utf-8")


def our_rewards(folder: Path) -> list[float]:
    """The verifier's scores of the folder's pictures with the folder's weights, one picture at a time as the package."""
    from lotts.verifiers.imagereward import ImageRewardVerifier

    verifier = ImageRewardVerifier(folder)
    pairs = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
    images = [Image.open(folder / file) for file, _ in pairs]
    return verifier.score(images, [prompt for _, prompt in pairs], batch_size=1).tolist()


def compare(theirs: list[float], ours: list[float]) -> float:
    """The largest difference of a reward; RuntimeError where the rewards could not show one."""
    if len(theirs) != len(ours) or max(theirs) - min(theirs) < 0.1 or not np.isfinite(theirs).all():
        raise RuntimeError(f"expected finite rewards that tell the pictures apart, got {theirs}")
    return max(abs(one - other) for one, other in zip(theirs, ours, strict=True))


def compare_in_process() -> float:
    """The largest difference where both can be imported in this process."""
    from bench.imagereward_original import original_rewards

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        os.chdir(folder)  # the package asks for "bert-base-uncased", which is a folder here
        try:
            return compare(original_rewards(folder), our_rewards(folder))
        finally:
            os.chdir(before)


def compare_across(python: Path) -> dict[str, Any]:
    """Rewards of both sides, the package's from another interpreter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        script = Path(__file__).with_name("imagereward_original.py")
        done = subprocess.run([str(python.absolute()), str(script)], cwd=folder, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"--python: the package's side ended with status {done.returncode}; see above")
        answer = json.loads(done.stdout.splitlines()[-1])
        ours = our_rewards(folder)
    return {
        "environment": environment(),
        "original_versions": answer["versions"],
        "original": answer["rewards"],
        "lotts": ours,
        "largest_difference": compare(answer["rewards"], ours),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench imagereward_parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", type=Path, required=True, metavar="PYTHON", help="an interpreter with image-reward")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest difference allowed (default 1e-5)")
    parser.add_argument("--out", type=Path, help="write the result there as JSON")
    arguments = parser.parse_args(argv)
    if not arguments.python.is_file():
        print(f"--python: expected an interpreter, got {arguments.python}", file=sys.stderr)
        return 2
    result = compare_across(arguments.python)
    if arguments.out:
        write_json(arguments.out, result)
    for one, other in zip(result["original"], result["lotts"], strict=True):
        print(f"{one:12.7f} {other:12.7f}")
    print(f"largest difference {result['largest_difference']:g}")
    return 0 if result["largest_difference"] <= arguments.tolerance else 1
