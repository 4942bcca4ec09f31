"""Sparse steps of a tiny network: what goes in, and the plan of them."""

import torch

from lotts.cost import Cost
from lotts.sparse import plan

STEPS = 6
FAMILIES = ["sd", "sdxl", "sd3", "sd3.5", "flux-dev"]


def size_of(backbone):
    return backbone.latent_size(*backbone.default_size)


def guided(backbone):
    if backbone.pipeline_class == "FluxPipeline":
        return backbone.encode_prompt("a red cat", "a dog", 3.5, 2.0)
    return backbone.encode_prompt("a red cat", "", 3.0)


def corner(size, top=2, left=2, height=6, width=6):
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, top : top + height, left : left + width] = True
    return mask


def start(backbone, seeds=(3,), size=None):
    size = size or size_of(backbone)
    return torch.cat([backbone.initial_latents(seed, size) for seed in seeds])


def planned(backbone, text, masks, cost=None, mode="stale", traces=None, steps=range(2, 5), offload=False):
    backbone.restart(STEPS, 0, tuple(masks.shape[1:]))
    return plan(
        backbone, masks, text, steps, mode=mode, refresh_every=None, offload=offload,
        traces=traces or [None] * len(masks), cost=cost or Cost(),
    )  # fmt: skip


def close(actual, expected, bound=1e-5):
    return float((actual - expected).abs().max() / expected.abs().max()) <= bound


def agrees_inside(backbone, text, mask, sparse):
    """Whether a sparse step, after a dense one of the same latents, predicts inside the mask what the network does."""
    latents = start(backbone)
    backbone.restart(STEPS, 0, size_of(backbone))
    for step in (2, 3):
        with sparse.step(step):
            actual = backbone.predict_rows(latents, 2, text)
    return close(actual[..., mask[0]], backbone.predict_rows(latents, 2, text)[..., mask[0]])
