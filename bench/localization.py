"""Which attention tells where a picture is wrong: AUC of every ingredient against true defects.

``python -m bench.localization --prompts 256`` draws one sample a held-out prompt, asks the exact checker where it is wrong,
and ranks the 16x16 latent cells of each picture by every map: layers, steps, contrasts and combinations, beside the
prediction source, the verifier's own map and the trivial foreground and random maps. Beside them: how well the two ways
to contrast, probes and rows of their own, agree, as rank correlations. ``--drawings`` does the same for damaged drawings, noised
as ``lotts.repair`` does. Writes a JSON of mean AUCs: over all cells, and over object cells only.
"""

from __future__ import annotations

import argparse
import functools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bench import embedded
from bench.localization_taps import Tap, tapped
from bench.record import result_file, write_json
from lotts.localize import LocalizeConfig, contrast, unit_range
from lotts.models import GUIDANCE
from lotts.resample import denoise, derive_seed, renoise
from lotts.shapes.checker import check
from lotts.shapes.draw import draw
from lotts.shapes.sampling import held_out_scenes, on_all_cores
from lotts.shapes.scenes import parse
from lotts.shapes.train_reward import auc, spearman
from lotts.sources import AttentionSource, PredictionSource

STEPS, SIDE = 20, 16
#: What the plot shows of all that is measured: the defaults' ingredients, the prediction source, and two controls.
SHOWN = {
    "CA_orig": "CA_orig | cross 30-80% | all",
    "CA_diff (neg - pos)": "CA_diff difference content | cross 30-80% | all",
    "CA'_orig": "CA'_orig | cross 30-80% | all | self 80-100%",
    "CA'_diff": "CA'_diff difference content | cross 30-80% | all | self 80-100%",
    "P, neg - pos (default)": "P product difference content | cross 30-80% | all | self 80-100%",
    "P, pos - neg": "P product of -diff difference content | cross 30-80% | all | self 80-100%",
    "CA_diff of outputs": "CA_diff difference outputs | cross 30-80% | all",
    "P of outputs": "P product difference outputs | cross 30-80% | all | self 80-100%",
    "P, quality prompts as rows": "P | batch",
    "prediction (levels 0.2)": "prediction (0.2,)",
    "prediction (levels 0.35)": "prediction (0.35,)",
    "prediction (levels 0.8)": "prediction (0.8,)",
    "verifier": "verifier",
    "foreground": "foreground",
    "random": "random",
}
AGREEMENT = "agreement of "  # rank correlations, not AUCs
CELL_SHARE = 0.15  # a cell is defective, or belongs to an object, when this share of its pixels does
WINDOWS = {
    "0-30%": (0, 6),
    "30-60%": (6, 12),
    "60-80%": (12, 16),
    "80-100%": (16, 20),
    "30-80%": (6, 16),
    "all": (0, 20),
}


def cells(pixels: np.ndarray) -> np.ndarray:
    """bool [128, 128] pixels to bool [16, 16] latent cells."""
    return pixels.reshape(SIDE, 8, SIDE, 8).mean((1, 3)) > CELL_SHARE


def to_grid(columns: torch.Tensor) -> torch.Tensor:
    """Columns [S, N, K] of a layer to [K, 16, 16], averaged over steps."""
    side = int(columns.shape[1] ** 0.5)
    grid = columns.mean(0).T.reshape(1, -1, side, side)
    return F.interpolate(grid, (SIDE, SIDE), mode="bilinear", align_corners=False)[0]


def groups_of(taps: Mapping[str, Tap]) -> dict[str, list[str]]:
    """Layers that are read together, by name: all, those of a kind, and each."""
    names = [name for name, tap in taps.items() if tap.readings]
    tokens = {name: len(taps[name].readings["content"][0]) for name in names}
    groups = {
        "all": names,
        "16x16": [n for n in names if tokens[n] == SIDE**2 and n.endswith("attn2")],
        "8x8": [n for n in names if tokens[n] < SIDE**2],
        "up 16x16": [n for n in names if tokens[n] == SIDE**2 and n.startswith("up")],
        "double": [n for n in names if n.startswith("transformer_blocks")],
        "single": [n for n in names if n.startswith("single")],
    }
    groups |= {name.replace(".transformer_blocks.0.attn2", "").removesuffix(".attn"): [name] for name in names}
    return {group: members for group, members in groups.items() if members}


def maps_of(taps: Mapping[str, Tap]) -> dict[str, torch.Tensor]:
    """Every candidate map, [16, 16] each, by a name that says how it was made."""
    fine = [tap for tap in taps.values() if tap.spread and len(tap.spread[0]) == SIDE**2]
    spread = {
        window: torch.stack([torch.stack(tap.spread[slice(*WINDOWS[window])]).float().mean(0) for tap in fine]).mean(0)
        for window in ("60-80%", "80-100%", "30-80%")
    }
    groups, out = groups_of(taps), {}
    for window, (a, b) in WINDOWS.items():
        for group, names in groups.items():
            if window != "30-80%" and group not in ("all", "16x16", "up 16x16", "double", "single"):
                continue
            key = f"cross {window} | {group}"
            for reading in taps[names[0]].readings:
                grids = [to_grid(torch.stack(taps[name].readings[reading][a:b])) for name in names]
                original, positive, negative = torch.stack(grids).mean(0)
                if reading != "quality words":
                    out[f"CA_orig | {key}" if reading == "content" else f"CA_orig {reading} | {key}"] = original
                for kind in ("difference", "log_ratio") if reading != "outputs" else ("difference",):
                    diff = contrast(positive, negative, LocalizeConfig(contrast=kind))
                    out[f"CA_diff {kind} {reading} | {key}"] = diff
                    for self_window, matrix in spread.items():
                        if self_window != "80-100%" and group != "all":
                            continue
                        d, o = (matrix @ m.flatten() for m in (diff, original))
                        d, o = (unit_range(m.view(SIDE, SIDE)) for m in (d, o))
                        end = f"{key} | self {self_window}"
                        out[f"CA'_diff {kind} {reading} | {end}"] = d
                        out[f"P product {kind} {reading} | {end}"] = d * o
                        out[f"P product of -diff {kind} {reading} | {end}"] = (1 - d) * o
                        out[f"P sum {kind} {reading} | {end}"] = d + o
                        if kind == "difference" and reading == "content":
                            out[f"CA'_orig | {end}"] = o
    return out


@torch.no_grad()
def _one(job: tuple[str, int, bool], model: str) -> dict[str, tuple[float, float]] | None:
    text, seed, drawing = job
    backbone = embedded.backbone(model)
    conditioning = embedded.encode(model, text)
    with tapped(backbone, text) as taps:
        if drawing:
            rng = np.random.default_rng([seed, 11])
            picture = draw(parse(text), rng, damaged=True)
            image, truth = picture.image, picture.damage.any(0)
            foreground = picture.objects.any(0) | truth
            from PIL import Image

            x0 = backbone.encode_image(Image.fromarray(image))
            backbone.restart(STEPS, 0, (SIDE, SIDE))

            def latents_at(step):
                return renoise(backbone, x0, step, [derive_seed(seed, "localise")])

            for step in range(STEPS):
                backbone.predict(latents_at(step), step, conditioning)
        else:
            (run,) = denoise(backbone, conditioning, [seed], (SIDE, SIDE), STEPS)
            image = np.rint(backbone.decode(run.result[None])[0] * 255).astype(np.uint8)
            verdict = check(image, parse(text))
            truth, foreground = verdict.defects, verdict.foreground | verdict.defects

            def latents_at(step):
                return run.at(step)[None]

    maps = maps_of(taps)
    for levels in ((0.2,), (0.35,), (0.5,), (0.65,), (0.8,), (0.9,), (0.5, 0.65, 0.8)):
        with PredictionSource(levels).watch(backbone, text, [0], (SIDE, SIDE), STEPS, conditioning) as watch:
            maps[f"prediction {levels}"] = watch.maps(latents_at)["P"][0]
    for contrast_ in ("probes", "batch"):
        source = AttentionSource(contrast=contrast_)
        with source.watch(backbone, text, [seed], (SIDE, SIDE), STEPS, conditioning) as attention:
            for step in range(STEPS):
                with attention.step(step, latents := latents_at(step)):
                    backbone.predict(latents, step, conditioning)
            maps |= {f"{name} | {contrast_}": m[0] for name, m in attention.maps(latents_at).items()}
    maps["verifier"] = embedded.verifier().defect_maps([image / np.float32(255)], [text])[0]
    truth, foreground = cells(np.asarray(truth)), cells(np.asarray(foreground))
    maps["foreground"] = torch.from_numpy(foreground.astype(np.float32))
    maps["random"] = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    if not truth.any() or truth[foreground].all():
        return None
    agreement = {
        f"{AGREEMENT}{name}": (
            spearman(a.numpy().ravel(), b.numpy().ravel()),
            spearman(a.numpy()[foreground], b.numpy()[foreground]),
        )
        for name in ("CA_orig", "CA_diff", "CA'_orig", "CA'_diff", "P")
        for a, b in [(maps[f"{name} | probes"], maps[f"{name} | batch"])]
    }
    return agreement | {
        name: (auc(m.numpy().ravel(), truth.ravel()), auc(m.numpy()[foreground], truth[foreground]))
        for name, m in maps.items()
    }


def _work(jobs, model):
    return [_one(job, model) for job in jobs]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.localization", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes-sd", help="an embedded pipeline")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--drawings", action="store_true", help="damaged drawings in place of samples")
    parser.add_argument("--out", type=Path, help="default: bench/results/localization.json, _drawings, _sdxl or _flux")
    parser.add_argument("--processes", type=int)
    args = parser.parse_args()
    jobs = [
        (text, args.seed * 10_007 + i, args.drawings)
        for i, (_, text) in enumerate(held_out_scenes(args.prompts, args.seed))
    ]
    collected = defaultdict(list)
    for result in on_all_cores(functools.partial(_work, model=args.model), jobs, chunk=4, processes=args.processes):
        for name, pair in (result or {}).items():
            collected[name].append(pair)
    table = {
        name: {
            "all_cells": round(float(np.mean([a for a, _ in pairs])), 4),
            "object_cells": round(float(np.mean([b for _, b in pairs])), 4),
            "standard_error": round(float(np.std([b for _, b in pairs]) / len(pairs) ** 0.5), 4),
        }
        for name, pairs in collected.items()
    }
    report = {
        "model": args.model,
        "pictures": "damaged drawings" if args.drawings else "samples",
        "prompts": args.prompts,
        "with_defects": len(collected["random"]),
        "steps": STEPS,
        "guidance_scale": GUIDANCE[args.model],
        "shown": {label: name for label, name in SHOWN.items() if name in table},
        "auc": {name: row for name, row in table.items() if not name.startswith(AGREEMENT)},
        "probes_against_batch": {
            name.removeprefix(AGREEMENT): row for name, row in table.items() if name.startswith(AGREEMENT)
        },
    }
    write_json(
        args.out or result_file("localization_drawings" if args.drawings else "localization", args.model), report
    )
    best = sorted(report["auc"].items(), key=lambda item: -item[1]["object_cells"])[:25]
    for name, row in [*best, *((n, table[n]) for n in ("foreground", "random"))]:
        print(f"{row['object_cells']:.3f} +- {row['standard_error']:.3f}  (all cells {row['all_cells']:.3f})  {name}")


if __name__ == "__main__":
    main()
