"""What a refinement changes, by mask and noise step: ``python -m bench.refinement --prompts 512``.

For each held-out prompt one candidate is drawn and refined once under every mask (the method's from attention, in U-Nets
also from attention to the words that say the quality, the prediction source's, the verifier's on half and on a fifth of the
picture and where it is sure that something is wrong, the true defects, the foreground, a random one, the whole picture) from
three noise steps, all with the same injected noise. The
pictures are kept, a file a prompt, so an interrupted run resumes, and a new verifier can judge them again in minutes. The
verifier and the exact checker judge each against its candidate; a JSON holds the summary with standard errors.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import embedded
from bench.localization import cells
from bench.record import result_file, write_json
from lotts.compare.runner import versions_of
from lotts.localize import LocalizeConfig, quality_mask, smooth
from lotts.models import EMBEDDED, GUIDANCE
from lotts.resample import denoise, grow, refine
from lotts.resample_config import ResampleConfig
from lotts.shapes.checker import check
from lotts.shapes.sampling import held_out_scenes, on_all_cores
from lotts.shapes.scenes import parse
from lotts.sources import AttentionSource, PredictionSource
from lotts.sources.verifier import VerifierSource

STEPS, SIZE = 20, (16, 16)
NOISE_STEPS = (4, 8, 12)
RATIO, SMALL_RATIO, SURE = 0.5, 0.2, 0.5
#: What led on samples and on drawings of shapes-sd (docs/localization.md): the finest layers of the way up.
WORDS = LocalizeConfig(contrast="log_ratio", sign=-1, words=("high", "low", "quality"), layers=("up_blocks.1",))
BANDS = {"all": (2, 16), "2-4": (2, 4), "5-8": (5, 8), "9-12": (9, 12), "13-16": (13, 16)}


def judge(image: np.ndarray, text: str) -> dict[str, float]:
    """The verifier's score of a picture uint8 [H, W, 3], and the checker's share of objects right and whether all are."""
    verdict = check(image, parse(text))
    score = float(embedded.verifier()([image.astype(np.float32) / 255], [text])[0])
    return {"score": score, "objects": float(verdict.objects_right), "scene": float(verdict.scene_right)}


@torch.no_grad()
def _draw(text: str, seed: int, model: str) -> tuple[dict[str, float], np.ndarray]:
    """Share of the picture under the mask of each arm, and the pictures uint8 [1 + arms, H, W, 3], the candidate's first."""
    backbone, conditioning = embedded.backbone(model), embedded.encode(model, text)
    with AttentionSource().watch(backbone, text, [0], SIZE, STEPS, conditioning) as watch:
        (candidate,) = denoise(backbone, conditioning, [seed], SIZE, STEPS, watch=watch.step)
        attention = watch.maps(lambda step: candidate.at(step)[None])["P"]
    words = None
    if backbone.order is None:
        with AttentionSource(WORDS).watch(backbone, text, [0], SIZE, STEPS, conditioning) as watch:
            denoise(backbone, conditioning, [seed], SIZE, STEPS, watch=watch.step)
            words = watch.maps(lambda step: candidate.at(step)[None])["P"]
    with PredictionSource().watch(backbone, text, [0], SIZE, STEPS, conditioning) as watch:
        prediction = watch.maps(lambda step: candidate.at(step)[None])["P"]
    with VerifierSource(embedded.verifier()).watch(backbone, text, [0], SIZE, STEPS, conditioning) as watch:
        verifier = watch.maps(lambda step: candidate.result[None])["P"]
    image = levels(backbone.decode(candidate.result[None]))
    verdict = check(image[0], parse(text))
    noise = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(seed))
    masks = {
        "attention": quality_mask(attention, RATIO),
        **({} if words is None else {"attention, quality words": quality_mask(words, RATIO)}),
        "prediction": quality_mask(prediction, RATIO),
        "verifier": quality_mask(verifier, RATIO),
        "verifier, a fifth": quality_mask(verifier, SMALL_RATIO),
        "verifier, where sure": grow(quality_mask(verifier, RATIO, SURE), 1),
        "true defects": grow(torch.from_numpy(cells(verdict.defects))[None], 1),
        "foreground": torch.from_numpy(cells(verdict.foreground | verdict.defects))[None],
        "random": quality_mask(smooth(noise), RATIO),
        "whole": torch.ones(1, *SIZE, dtype=torch.bool),
    }
    areas: dict[str, float] = {}
    pictures = [image]
    for step in NOISE_STEPS:
        refined = refine(
            backbone, conditioning, [candidate] * len(masks), torch.cat(list(masks.values())), [0] * len(masks),
            ResampleConfig(noise_step=step), STEPS,
        )  # fmt: skip
        pictures.append(levels(backbone.decode(torch.stack([r.result for r in refined]))))
        areas |= {f"{name} @ {step}": float(mask.float().mean()) for name, mask in masks.items()}
    return areas, np.concatenate(pictures)


def levels(images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Pictures in [0, 1] as uint8."""
    return np.rint(np.asarray(images) * 255).astype(np.uint8)


def _one(job: tuple[Path, str, int], model: str) -> dict[str, Any]:
    path, text, seed = job
    if not path.exists():
        areas, pictures = _draw(text, seed, model)
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez_compressed(file, arms=list(areas), areas=list(areas.values()), pictures=pictures)
        path.with_suffix(".tmp").replace(path)
    with np.load(path) as kept:
        arms, areas, pictures = kept["arms"].tolist(), kept["areas"].tolist(), kept["pictures"]
    return {
        "objects": len(parse(text).items),
        "candidate": judge(pictures[0], text),
        "arms": {
            arm: {"area": area, **judge(picture, text)}
            for arm, area, picture in zip(arms, areas, pictures[1:], strict=True)
        },
    }


def _work(jobs: list[tuple[Path, str, int]], model: str) -> list[dict[str, Any]]:
    return [_one(job, model) for job in jobs]


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean change against the candidate, and the mean when the verifier keeps the better of the two."""
    table: dict[str, Any] = {}
    for band, (low, high) in BANDS.items():
        chosen = [r for r in rows if low <= r["objects"] <= high]
        base = {key: np.array([r["candidate"][key] for r in chosen]) for key in ("score", "objects", "scene")}
        table[band] = {
            "prompts": len(chosen),
            "candidate": {key: mean_and_error(v) for key, v in base.items()},
            "arms": {},
        }
        for arm in rows[0]["arms"]:
            now = {key: np.array([r["arms"][arm][key] for r in chosen]) for key in base}
            # Under an empty mask the picture is the candidate's, but for the last bits of another batch.
            touched = np.array([r["arms"][arm]["area"] > 0 for r in chosen])
            better = touched & (now["score"] > base["score"])
            table[band]["arms"][arm] = {
                "area": round(float(np.mean([r["arms"][arm]["area"] for r in chosen])), 3),
                "accepted": mean_and_error(better),
                **{f"{key} change": mean_and_error(now[key] - base[key]) for key in base},
                **{
                    f"{key} change, verifier keeps the better": mean_and_error(
                        np.where(better, now[key] - base[key], 0)
                    )
                    for key in base
                },
            }
    return table


def mean_and_error(values: np.ndarray) -> list[float]:
    """Mean and standard error."""
    return [round(float(np.mean(values)), 4), round(float(np.std(values) / max(1, len(values)) ** 0.5), 4)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.refinement", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--model", choices=list(EMBEDDED), default="shapes-sd")
    parser.add_argument("--pictures", type=Path, default=Path("runs/refinement"), help="a file a prompt; resumed")
    parser.add_argument("--out", type=Path, help="default: bench/results/refinement.json, _sdxl.json or _flux.json")
    parser.add_argument("--processes", type=int)
    args = parser.parse_args()
    args.pictures.mkdir(parents=True, exist_ok=True)
    scenes = held_out_scenes(args.prompts, args.seed)
    # The name tells the weights: other weights draw other pictures.
    weights = versions_of(args.model, "shapes")["model"]
    jobs = [
        (args.pictures / f"{weights}-{args.seed}-{i:04}.npz", text, args.seed * 20_011 + i)
        for i, (_, text) in enumerate(scenes)
    ]
    work = functools.partial(_work, model=args.model)
    rows = list(on_all_cores(work, jobs, chunk=4, processes=args.processes))
    report = {
        "model": args.model,
        "prompts": len(rows),
        "steps": STEPS,
        "guidance_scale": GUIDANCE[args.model],
        "mask_ratio": RATIO,
        "by_objects": summarise(rows),
    }
    write_json(args.out or result_file("refinement", args.model), report)
    for arm, figures in report["by_objects"]["all"]["arms"].items():
        print(f"{arm:20s} " + "  ".join(f"{k}: {v}" for k, v in figures.items() if k != "area"))


if __name__ == "__main__":
    main()
