"""What the metrics say where the truth is known: ``python -m bench.metrics {frechet,samples,damage,ocr} ...``.

``frechet``: the distance in the embedded verifier's features between drawings of two seeds, by number of pictures; and to
drawings that were resized, compressed or damaged. ``samples``: the same to samples of shapes-sd, and what the exact
checker finds wrong in them. ``damage``: the checker's shares on damaged drawings beside the true ones. ``ocr``: the text
verifier on drawn signs, spelled right and with one letter changed. Each replaces its own part of the JSON file.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from bench.record import write_json
from lotts.metrics import ShapesFeatures, clip_score, damage, fid, moments_of, shapes_damage
from lotts.shapes.draw import SIDE, draw
from lotts.shapes.sampling import held_out_scenes, on_all_cores, sample_images
from lotts.shapes.scenes import caption, sample_scene

COUNTS, REPEATS, REFERENCE = (50, 100, 200, 500, 1000, 2000), 4, 4000
WORDS = (
    "COFFEE",
    "OPEN",
    "BAKERY",
    "WELCOME",
    "SUMMER SALE",
    "HAPPY BIRTHDAY",
    "LONDON",
    "Danger",
    "Exit",
    "no parking",
)


def drawings(count: int, seed: int, damaged: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [draw(sample_scene(rng), rng, damaged=damaged).image for _ in range(count)]


def resized_back(resample: Image.Resampling, side: int) -> Callable[[np.ndarray], np.ndarray]:
    """Shrinks a picture to ``side`` and brings it back."""

    def transform(image: np.ndarray) -> np.ndarray:
        small = Image.fromarray(image).resize((side, side), resample)
        return np.array(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    return transform


def compressed(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return np.array(Image.open(buffer))


def frechet() -> dict[str, Any]:
    extractor = ShapesFeatures()
    reference = moments_of(drawings(REFERENCE, 1), extractor)
    pool = drawings(max(COUNTS), 2)
    by_count = {}
    for count in COUNTS:
        starts = range(0, len(pool) - count + 1, max(count, (len(pool) - count) // REPEATS or 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few pictures are the point
            values = [fid(reference, moments_of(pool[s : s + count], extractor)).value for s in starts][:REPEATS]
        by_count[count] = {"mean": round(float(np.mean(values)), 4), "sets": len(values)}
    base = pool[:1000]
    altered = {
        "unaltered": base,
        **{
            f"by way of {side} px, {way.name.lower()}": [resized_back(way, side)(image) for image in base]
            for side in (SIDE // 2, SIDE // 4)
            for way in (Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
        },
        "jpeg_75": [compressed(image) for image in base],
        "damaged": drawings(1000, 3, damaged=True),
    }
    return {
        "reference": REFERENCE,
        "dim": extractor.dim,
        "other_drawings": by_count,
        "thousand": {
            name: round(fid(reference, moments_of(images, extractor)).value, 4) for name, images in altered.items()
        },
    }


def _sampled(jobs: list[tuple[str, int]]) -> list[np.ndarray]:
    from lotts.models import GUIDANCE, load_pipeline

    texts, seeds = zip(*jobs, strict=True)
    return list(sample_images(load_pipeline("shapes-sd"), texts, seeds, guidance_scale=GUIDANCE["shapes-sd"]))


def samples(count: int, processes: int | None = None) -> dict[str, Any]:
    scenes = held_out_scenes(count, 5)
    prompts = [text for _, text in scenes]
    images = on_all_cores(_sampled, [(text, index) for index, text in enumerate(prompts)], processes=processes)
    drawn = [draw(scene, np.random.default_rng([6, index])).image for index, (scene, _) in enumerate(scenes)]
    extractor = ShapesFeatures()
    reference = moments_of(drawings(REFERENCE, 1), extractor)
    out: dict[str, Any] = {"prompts": count}
    for name, pictures in (("shapes-sd", images), ("drawn", drawn)):
        shares = damage([shapes_damage(*pair) for pair in zip(pictures, prompts, strict=True)])
        judged = clip_score(pictures, prompts, "shapes")
        out[name] = {
            "frechet": round(fid(reference, moments_of(pictures, extractor)).value, 4),
            "damage": {key: round(value, 5) for key, value in shares.as_dict().items()},
            "verifier_mean": round(judged.mean, 4),
            "verifier_standard_error": round(judged.standard_error or 0, 4),
        }
    return out


def damaged_shares(count: int) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    scenes = [sample_scene(rng) for _ in range(count)]
    out: dict[str, Any] = {"drawings": count}
    for name, damaged in (("clean", False), ("damaged", True)):
        made = [draw(scene, rng, damaged=damaged) for scene in scenes]
        found = [shapes_damage(each.image, caption(scene)) for each, scene in zip(made, scenes, strict=True)]
        truth = damage([np.asarray(each.damage.any(0)) for each in made])
        out[name] = {
            "images": round(damage(found).images, 4),
            "images_true": round(truth.images, 4),
            "pixels": round(damage(found).pixels, 5),
            "pixels_true": round(truth.pixels, 5),
        }
    return out


def sign(text: str, font_size: int, noise: float, rng: np.random.Generator) -> Image.Image:
    """``text``, a line a word, dark on light or light on dark, 512 x 320 pixels, with Gaussian noise in levels."""
    dark, light = tuple(int(v) for v in rng.integers(0, 90, 3)), tuple(int(v) for v in rng.integers(170, 256, 3))
    ink, ground = (dark, light) if rng.random() < 0.5 else (light, dark)
    image = Image.new("RGB", (512, 320), ground)
    for row, word in enumerate(text.split()):
        spot = (int(rng.integers(10, 80)), 30 + row * int(1.5 * font_size))
        ImageDraw.Draw(image).text(spot, word, ink, ImageFont.load_default(font_size))
    noisy = np.asarray(image) + rng.normal(0, noise, (320, 512, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def misspelled(text: str, rng: np.random.Generator) -> str:
    """One letter replaced by another of the alphabet, in the same case."""
    at = int(rng.choice([index for index, letter in enumerate(text) if letter.isalpha()]))
    others = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter != text[at].upper()]
    letter = str(rng.choice(others))
    return text[:at] + (letter if text[at].isupper() else letter.lower()) + text[at + 1 :]


def ocr() -> dict[str, Any]:
    from lotts.verifiers import load
    from lotts.verifiers.base import Verifier

    verifier = load("ocr")
    assert isinstance(verifier, Verifier)
    out: dict[str, Any] = {"version": verifier.version, "threads": torch.get_num_threads(), "signs": {}}
    seconds, read = 0.0, 0
    for font_size in (16, 28, 56):
        for noise in (0.0, 40.0):
            rng = np.random.default_rng([7, font_size, int(noise)])
            right = [sign(word, font_size, noise, rng) for word in WORDS]
            wrong = [sign(misspelled(word, rng), font_size, noise, rng) for word in WORDS]
            start = time.perf_counter()
            scores = verifier.score([*right, *wrong], [f'a sign that says "{word}"' for word in WORDS * 2]).numpy()
            seconds, read = seconds + time.perf_counter() - start, read + len(scores)
            a, b = scores[: len(WORDS)], scores[len(WORDS) :]
            out["signs"][f"{font_size} px, noise {noise:g}"] = {
                "right": round(float(a.mean()), 4),
                "one_letter_wrong": round(float(b.mean()), 4),
                "read_in_full": round(float((a == 1).mean()), 4),
                "ranked_right": round(float(np.mean((a > b) + 0.5 * (a == b))), 4),
            }
    return {**out, "seconds_a_picture": round(seconds / read, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.metrics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=["frechet", "samples", "damage", "ocr"])
    parser.add_argument("--prompts", type=int, default=256, help="samples of shapes-sd")
    parser.add_argument("--processes", type=int, help="processes that sample (default: one a core)")
    parser.add_argument("--drawings", type=int, default=400, help="clean and as many damaged drawings (damage)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/metrics.json"))
    args = parser.parse_args()
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "frechet": frechet,
        "samples": functools.partial(samples, args.prompts, args.processes),
        "damage": functools.partial(damaged_shares, args.drawings),
        "ocr": ocr,
    }
    report = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    for what in args.what:
        report[what] = work[what]()
        print(json.dumps({what: report[what]}, indent=1))
        write_json(args.out, report)


if __name__ == "__main__":
    main()
