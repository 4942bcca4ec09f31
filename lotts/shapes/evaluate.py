"""Measure the embedded models: ``python -m lotts.shapes.evaluate {sd,sdxl,flux,checker,verifier}``.

``sd``, ``sdxl``, ``flux``: single samples on held-out prompts, judged by the exact checker. ``checker``: the checker's own errors on
clean and damaged drawings, before and after the autoencoders. ``verifier``: how the verifier's scores rank generated samples.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections import defaultdict
from typing import Any

import numpy as np
import torch

from lotts.models import EMBEDDED, GUIDANCE, load_pipeline
from lotts.shapes.checker import check
from lotts.shapes.sampling import held_out_scenes, on_all_cores, sample_images
from lotts.shapes.scenes import MAX_OBJECTS, MIN_OBJECTS, Scene, parse

MODELS = [training for _, training in EMBEDDED.values()]


@functools.cache
def _pipe(name: str, device: str | None) -> Any:
    return load_pipeline(name, device=device)


def _judge(
    jobs: list[tuple[str, int]], model: str, steps: int, guidance_scale: float, device: str | None
) -> list[tuple[float, bool, int, np.ndarray]]:
    captions, seeds = [text for text, _ in jobs], [seed for _, seed in jobs]
    out = []
    images = sample_images(_pipe(model, device), captions, seeds, steps=steps, guidance_scale=guidance_scale)
    for text, image in zip(captions, images, strict=True):
        verdict = check(image, parse(text))
        out.append((verdict.objects_right, verdict.scene_right, len(verdict.objects), image))
    return out


def _judged(
    jobs: list[tuple[str, int]], model: str, steps: int, guidance_scale: float, device: str | None
) -> list[tuple[float, bool, int, np.ndarray]]:
    """A sample of each (caption, seed): the share of objects right, whether all are, how many there are, and the picture."""
    work = functools.partial(_judge, model=model, steps=steps, guidance_scale=guidance_scale, device=device)
    return on_all_cores(work, jobs, device=device)


def single_samples(
    prompts: int,
    seed: int,
    steps: int = 20,
    guidance_scale: float | None = None,
    model: str = "shapes-sd",
    device: str | None = None,
) -> dict[str, Any]:
    """``objects_right`` and ``scenes_right`` of one sample a held-out prompt, also by number of objects.

    ``guidance_scale`` is the model's own default where it is None.
    """
    guidance_scale = GUIDANCE[model] if guidance_scale is None else guidance_scale
    scenes = held_out_scenes(prompts, seed)
    jobs = [(text, seed * 100_003 + index) for index, (_, text) in enumerate(scenes)]
    results = _judged(jobs, model, steps, guidance_scale, device)
    return {
        "model": model,
        "prompts": prompts,
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance_scale,
        **summarise([(objects, scene, n) for objects, scene, n, _ in results]),
    }


def summarise(results: list[tuple[float, bool, int]]) -> dict[str, Any]:
    """Shares over all objects and scenes, and by number of objects, from (share right, scene right, objects)."""
    by_number: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for objects, scene, n in results:
        by_number[n].append((objects, scene))
    total = sum(n for _, _, n in results)
    return {
        "objects_right": round(sum(objects * n for objects, _, n in results) / total, 4),
        "scenes_right": round(float(np.mean([scene for _, scene, _ in results])), 4),
        "scenes_right_standard_error": round(
            float(np.std([scene for _, scene, _ in results]) / len(results) ** 0.5), 4
        ),
        "by_objects": {
            n: {
                "prompts": len(rows),
                "objects_right": round(float(np.mean([o for o, _ in rows])), 4),
                "scenes_right": round(float(np.mean([s for _, s in rows])), 4),
            }
            for n, rows in sorted(by_number.items())
        },
    }


def round_trip(images: np.ndarray, model: str, device: str | None = None) -> np.ndarray:
    """uint8 [B, H, W, 3] through the autoencoder of an embedded pipeline and back."""
    vae = _pipe(model, device).vae
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
        y = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in x.split(16)])
    return ((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def checker_errors(drawings: int, seed: int, device: str | None = None) -> dict[str, Any]:
    """The checker on its own ground truth, before and after the autoencoders (``shapes-sdxl`` has that of ``shapes-sd``)."""
    from lotts.shapes.errors import error_report

    decoded = {"decoded": "shapes-sd", "decoded_flux": "shapes-flux"}
    return {
        "drawn": error_report(drawings, seed),
        **{
            name: error_report(drawings, seed, transform=functools.partial(round_trip, model=model, device=device))
            for name, model in decoded.items()
        },
    }


def verifier_ranking(
    prompts: int,
    seeds: int,
    seed: int,
    steps: int = 20,
    guidance_scale: float | None = None,
    model: str = "shapes-sd",
    device: str | None = None,
) -> dict[str, Any]:
    """How well the verifier ranks samples of ``model``: Spearman correlation of its score with the share of right objects.

    ``across`` all samples, and the mean ``within`` a prompt (what choosing among candidates rests on); the share of
    prompts whose best-by-verifier sample is right, beside a single sample and the best that the checker could pick.
    A correlation is None where nothing differs.
    """
    from lotts.shapes.train_reward import spearman
    from lotts.verifiers import load

    guidance_scale = GUIDANCE[model] if guidance_scale is None else guidance_scale
    scenes: list[tuple[Scene, str]] = held_out_scenes(prompts, seed)
    jobs = [(text, seed * 100_003 + i * seeds + k) for i, (_, text) in enumerate(scenes) for k in range(seeds)]
    results = _judged(jobs, model, steps, guidance_scale, device)
    verifier = load("shapes")
    scores = np.array(
        [verifier([image / np.float32(255)], [text])[0] for (text, _), (*_, image) in zip(jobs, results, strict=True)]
    )
    right = np.array([objects for objects, *_ in results])
    whole: np.ndarray = np.array([scene for _, scene, *_ in results]).reshape(prompts, seeds)
    by_prompt = scores.reshape(prompts, seeds)
    truth = right.reshape(prompts, seeds)
    ranked = [spearman(s, r) for s, r in zip(by_prompt, truth, strict=True) if np.ptp(r) > 0 and np.ptp(s) > 0]
    chosen = by_prompt.argmax(1)
    numbers = np.array([len(scene.items) for scene, _ in scenes])
    return {
        "model": model,
        "prompts": prompts,
        "samples_each": seeds,
        "guidance_scale": guidance_scale,
        "across": round(float(spearman(scores, right)), 4) if np.ptp(scores) > 0 and np.ptp(right) > 0 else None,
        "within": round(float(np.mean(ranked)), 4) if ranked else None,
        "scenes_right": _by_size(
            numbers,
            {
                "single": whole[:, 0],
                "best_by_verifier": whole[np.arange(prompts), chosen],
                "best_possible": whole.max(1),
            },
        ),
        "objects_right": _by_size(
            numbers,
            {
                "single": truth[:, 0],
                "best_by_verifier": truth[np.arange(prompts), chosen],
                "best_possible": truth.max(1),
            },
        ),
    }


def _by_size(numbers: np.ndarray, columns: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    out = {}
    for low, high in ((MIN_OBJECTS, MAX_OBJECTS), (2, 4), (5, 8), (9, 12), (13, 16)):
        chosen = (numbers >= low) & (numbers <= high)
        if chosen.any():
            out[f"{low}-{high}"] = {name: round(float(values[chosen].mean()), 4) for name, values in columns.items()}
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lotts.shapes.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=[*MODELS, "checker", "verifier"])
    parser.add_argument("--prompts", type=int, default=512, help="held-out prompts (a model or the verifier)")
    parser.add_argument("--drawings", type=int, default=1000, help="clean and as many damaged drawings (checker)")
    parser.add_argument("--samples", type=int, default=9, help="samples a prompt (verifier)")
    parser.add_argument("--model", choices=MODELS, default="sd", help="whose samples the verifier ranks (default: sd)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON on one line instead of an indented report")
    args = parser.parse_args(argv)
    for name in ("prompts", "drawings", "samples", "steps"):
        if getattr(args, name) < 1:
            parser.error(f"expected --{name} from 1 up, got {getattr(args, name)}")
    how = (args.seed, args.steps, args.guidance_scale)
    if args.what in MODELS:
        report = single_samples(args.prompts, *how, f"shapes-{args.what}", args.device)
    elif args.what == "checker":
        report = checker_errors(args.drawings, args.seed, args.device)
    else:
        report = verifier_ranking(args.prompts, args.samples, *how, f"shapes-{args.model}", args.device)
    print(json.dumps(report, indent=None if args.json else 2))


if __name__ == "__main__":
    main()
