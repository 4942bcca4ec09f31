"""One search on a tiny pipeline, judged by brightness."""

import numpy as np
import torch

from lotts.search import run

STEPS = 6


def brightness(images, prompts):
    return [float(np.asarray(image).mean()) for image in images]


def found(pipe, method, budget="samples=6", seed=3, **options):
    return run(
        pipe,
        "a red cat",
        method,
        budget=budget,
        verifier=brightness,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def scores(output):
    return [sample.score for sample in output.samples]
