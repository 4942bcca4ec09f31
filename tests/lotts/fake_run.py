"""A run that no model made: small random pictures with the shape of the real thing."""

import numpy as np
import torch

from lotts.cost import Cost
from lotts.output import LoTTSOutput, Sample, best_index


def fake_output(candidates=2, refinements=2, *, size=(24, 16), seed=0, gain=0.1, repaired=False, prompt="a red cat"):
    """The last candidate's first refinement gains `gain` over it; all others lose. Pictures are `size` (height, width)."""
    rng = np.random.default_rng(seed)
    grid = size[0] // 2, size[1] // 2
    samples = []
    for i in range(candidates):
        maps = {
            name: torch.rand(grid, generator=torch.Generator().manual_seed(i)) for name in ("CA_orig", "CA'_diff", "P")
        }
        kind = "original" if repaired else "candidate"
        mask = torch.zeros(grid, dtype=torch.bool)
        mask[: grid[0] // 2] = True
        samples.append(
            Sample(_picture(rng, size), 0.4 + i / 10, kind, 7 + i, mask=mask, heatmaps={} if repaired else maps)
        )
    for parent in range(candidates):
        for k in range(refinements):
            better = parent == candidates - 1 and k == 0
            score = samples[parent].score + (gain if better else -0.05)
            mask = samples[parent].mask
            samples.append(Sample(_picture(rng, size), score, "refinement", 7 + parent, parent, k, mask))
    settings = {
        "num_candidates": candidates,
        "num_refinements": refinements,
        "mask_ratio": 0.5,
        "noise_step": 2,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "seeds": [7 + i for i in range(candidates)],
        "source": "attention",
    }
    cost = Cost(network_rows=48, verifier_calls=len(samples), seconds=1.25)
    return LoTTSOutput(prompt, samples, best_index(samples), cost, settings)


def _picture(rng, size):
    return rng.random((*size, 3), dtype=np.float32)
