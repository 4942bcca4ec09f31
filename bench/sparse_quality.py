"""What sparse refinements lose to dense ones on an embedded pipeline: ``python -m bench sparse_quality --prompts 256``.

For each held-out prompt one candidate is drawn and refined several times under the method's own mask, at each mask share
densely and in every sparse way, with the same injected noise. Reported against the dense refinement with the same noise: the
difference in the verifier's score and in the exact checker's verdict, with standard errors over prompts; how often the verifier puts two
refinements of a candidate in the same order; PSNR inside the mask, in pixels; and the mean share of a dense step's
multiplications and additions that a masked step took. Results are appended prompt by prompt to a JSON-lines file (an
interrupted run resumes) and summarised into a JSON beside it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import embedded
from bench.record import environment, result_file, whole_lines, write_json
from bench.refinement import SIZE, STEPS, judge, levels, mean_and_error
from lotts.compare.runner import versions_of
from lotts.cost import Cost
from lotts.localize import quality_mask
from lotts.resample import denoise, refine
from lotts.resample_config import ResampleConfig
from lotts.shapes.sampling import held_out_scenes, on_all_cores
from lotts.sources import AttentionSource
from lotts.sparse import Trace

RATIOS = (0.5, 0.2)
NOISE_STEP, REFINEMENTS = 8, 2
AT_ONCE = 48  # prompts between two writes
#: Ways to refine: fields of ``ResampleConfig`` by name. The first is what the others are compared with.
WAYS: dict[str, dict[str, Any]] = {
    "dense": {},
    "stale, one midway": {"sparse": "stale", "refresh_every": 5},
    "stale, never again": {"sparse": "stale", "refresh_every": 1000},
    "stale, every 2": {"sparse": "stale", "refresh_every": 2},
    "trace": {"sparse": "trace"},
}


@torch.no_grad()
def one(job: tuple[int, str, int], model: str, steps: int) -> dict[str, Any]:
    """One prompt's row: ``job`` is its index, the prompt and the candidate's seed."""
    index, text, seed = job
    backbone, conditioning = embedded.backbone(model), embedded.encode(model, text)
    start = NOISE_STEP * steps // STEPS
    config = ResampleConfig(noise_step=start)
    trace = Trace(backbone, SIZE, config.masked_steps(steps), 1, offload=False)
    with AttentionSource().watch(backbone, text, [0], SIZE, steps, conditioning) as watch:
        (candidate,) = denoise(backbone, conditioning, [seed], SIZE, steps, watch=watch.step, trace=trace)
        attention = watch.maps(lambda step: candidate.at(step)[None])["P"]
    row: dict[str, Any] = {"index": index, "arms": {}}
    for ratio in RATIOS:
        mask = quality_mask(attention, ratio)
        pixels = mask[0].repeat_interleave(backbone.cell, 0).repeat_interleave(backbone.cell, 1).cpu().numpy()
        dense: list[np.ndarray] = []
        for way, fields in WAYS.items():
            cost = Cost()
            refined = refine(
                backbone, conditioning, [candidate] * REFINEMENTS, mask.expand(REFINEMENTS, -1, -1),
                list(range(REFINEMENTS)), ResampleConfig(noise_step=start, **fields), steps, cost=cost,
            )  # fmt: skip
            images = list(backbone.decode(torch.stack([r.result for r in refined])))
            dense = dense or images
            rows = REFINEMENTS * len(config.masked_steps(steps)) * (2 if conditioning.guided else 1)
            row["arms"][f"{way} @ {ratio:g}"] = {
                "verdicts": [judge(image, text) for image in levels(images)],
                "psnr": [_psnr(a[pixels], b[pixels]) for a, b in zip(images, dense, strict=True)],
                "share": 1 + cost.tokens / (rows * mask[0].numel()),
            }
    return row


def _psnr(a: np.ndarray, b: np.ndarray) -> float | None:
    """Peak signal-to-noise ratio of values in [0, 1], in dB; None where the two are the same."""
    error = float(np.mean((a - b) ** 2))
    return None if error == 0 else -10 * float(np.log10(error))


def work(jobs: list[tuple[int, str, int]], model: str, steps: int) -> list[dict[str, Any]]:
    return [one(job, model, steps) for job in jobs]


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For every way and ratio: differences to dense with standard errors over prompts, rank agreement, PSNR, share."""
    table: dict[str, Any] = {}
    for arm in rows[0]["arms"]:
        base = f"dense @ {arm.split(' @ ')[1]}"
        differences: dict[str, list[float]] = {key: [] for key in ("score", "objects", "scene")}
        agreement, psnr = [], []
        for row in rows:
            now, then = row["arms"][arm]["verdicts"], row["arms"][base]["verdicts"]
            for key, values in differences.items():
                values.append(float(np.mean([a[key] - b[key] for a, b in zip(now, then, strict=True)])))
            pairs = itertools.combinations(range(len(now)), 2)
            same = [(now[i]["score"] > now[j]["score"]) == (then[i]["score"] > then[j]["score"]) for i, j in pairs]
            agreement.append(float(np.mean(same)))
            psnr += [value for value in row["arms"][arm]["psnr"] if value is not None]
        table[arm] = {
            **{f"{key} difference": mean_and_error(np.array(values)) for key, values in differences.items()},
            "rank agreement": mean_and_error(np.array(agreement)),
            "psnr inside the mask": mean_and_error(np.array(psnr)) if psnr else None,
            "share of a dense step": round(float(np.mean([row["arms"][arm]["share"] for row in rows])), 4),
        }
    return table


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench sparse_quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes-sd", help="an embedded pipeline (default shapes-sd)")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"denoising steps (default {STEPS})")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument(
        "--rows",
        type=Path,
        help="one line a prompt; resumed (default: a file in runs/sparse_quality for each model and setting)",
    )
    parser.add_argument("--out", type=Path, help="default: bench/results/sparse_quality.json, _sdxl.json or _flux.json")
    parser.add_argument("--processes", type=int)
    arguments = parser.parse_args(argv)
    # The name tells the weights: other weights draw other pictures.
    made_by = f"{versions_of(arguments.model, 'shapes')['model']}-{arguments.seed}-{arguments.steps}"
    kept = arguments.rows or Path("runs/sparse_quality") / f"{arguments.model}-{made_by}.jsonl"
    scenes = held_out_scenes(arguments.prompts, arguments.seed)
    rows = [row for row in whole_lines(kept) if row["index"] < arguments.prompts]
    done = {row["index"] for row in rows}
    jobs = [(i, text, arguments.seed * 20_011 + i) for i, (_, text) in enumerate(scenes) if i not in done]
    kept.parent.mkdir(parents=True, exist_ok=True)
    draw = functools.partial(work, model=arguments.model, steps=arguments.steps)
    with kept.open("a", encoding="utf-8") as log:
        for start in range(0, len(jobs), AT_ONCE):
            for row in on_all_cores(draw, jobs[start : start + AT_ONCE], chunk=2, processes=arguments.processes):
                rows.append(row)
                log.write(json.dumps(row) + "\n")
            log.flush()
    if not rows:
        parser.error("--prompts: expected at least one")
    report = {
        "environment": environment(),
        "model": arguments.model,
        "prompts": len(rows),
        "steps": arguments.steps,
        "arms": summarise(rows),
    }
    write_json(arguments.out or result_file("sparse_quality", arguments.model), report)
    for arm, figures in report["arms"].items():
        print(f"{arm:24s} " + "  ".join(f"{name}: {value}" for name, value in figures.items()))
    return 0
