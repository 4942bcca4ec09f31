"""The shapes: attention layers and latents of Stable Diffusion 2.1, SDXL and FLUX at 512, 1024 and 2048 pixels."""

import torch

from bench.cases import AttentionCase, Case, RegionCase, RopeCase
from bench.latent_cases import LatentCase, NoiseCase

PIXELS = (512, 1024, 2048)
#: model -> (heads, pixels a token spans) of each level with attention; head dim 64 throughout.
UNETS = {
    "SD2.1": ((5, 8), (10, 16), (20, 32)),
    "SDXL": ((10, 16), (20, 32)),
}
UNET_DIM, PROMPT = 64, 77
FLUX_HEADS, FLUX_DIM, FLUX_TEXT, FLUX_PATCH = 24, 128, 512, 16
#: Content tokens of a positive and a negative quality prompt.
FLUX_PROBES = (12, 12)
#: Rows recorded of one picture, and of eight candidates drawn at once.
ONE, MANY = 1, 8


def cases() -> list[Case]:
    """Every case, op by op."""
    return [*_cross(), *_self(), *_joint(), *_regions(), *_turns(), *_latents(), *_noise()]


def _cross() -> list[Case]:
    return [
        _unet_case("contrast_attention", model, pixels, batch, heads, span)
        for model, levels in UNETS.items()
        for pixels in PIXELS
        for heads, span in levels
        for batch in ((ONE, MANY) if model == "SDXL" and pixels == 1024 else (ONE,))
    ]


def _self() -> list[Case]:
    return [
        _unet_case("propagate_attention", model, pixels, batch, heads, span)
        for model, levels in UNETS.items()
        for pixels in PIXELS
        for heads, span in levels
        for batch in ((ONE, MANY) if model == "SDXL" and (pixels, span) == (1024, 16) else (ONE,))
    ]


def _unet_case(op: str, model: str, pixels: int, batch: int, heads: int, span: int) -> Case:
    columns = 1 if op == "contrast_attention" else 2
    rows = (pixels // span) ** 2
    core = model == "SDXL" and pixels == 1024
    return AttentionCase(op, model, pixels, batch, torch.float16, core, heads, rows, UNET_DIM, PROMPT, columns)


def _joint() -> list[Case]:
    return [
        AttentionCase(
            "propagate_attention",
            "FLUX",
            pixels,
            ONE,
            torch.bfloat16,
            core=pixels == 1024,
            heads=FLUX_HEADS,
            rows=(pixels // FLUX_PATCH) ** 2,
            dim=FLUX_DIM,
            text=FLUX_TEXT,
            columns=2,
            probes=FLUX_PROBES,
        )
        for pixels in PIXELS
    ]


def _regions() -> list[Case]:
    """FLUX and SDXL at 1024 pixels with a half and a fifth of the image's tokens, as a sparse step has them."""
    flux, sdxl = (1024 // FLUX_PATCH) ** 2, (1024 // 16) ** 2
    cases: list[Case] = []
    for masked in (2048, 896):
        fresh = FLUX_TEXT + masked
        cases.append(
            RegionCase(
                "region_attention", "FLUX", 1024, ONE, torch.bfloat16, True, FLUX_HEADS, fresh, flux - masked, FLUX_DIM
            )
        )
        cases.append(
            RegionCase("region_attention", "SDXL", 1024, 2, torch.float16, True, 10, masked, sdxl - masked, UNET_DIM)
        )
    return cases


def _turns() -> list[Case]:
    """Queries or keys of FLUX at 1024 pixels, all of them, and with a fifth of the image's tokens."""
    tokens = (1024 // FLUX_PATCH) ** 2
    return [
        RopeCase("norm_rope", "FLUX", 1024, ONE, torch.bfloat16, True, FLUX_HEADS, FLUX_TEXT, rows, tokens, FLUX_DIM)
        for rows in (tokens, 896)
    ]


def _latents() -> list[Case]:
    """One picture, and batches whose latents alone are 64 MiB, where only bandwidth counts."""
    models = (("SDXL", 4, torch.float16, True), ("FLUX", 16, torch.bfloat16, False))
    return [
        LatentCase(op, model, 1024, batch, dtype, True, channels, 128, 2 if op == "inject_noise" else 1, guided)
        for op in ("inject_noise", "blend_step")
        for model, channels, dtype, guided in models
        for batch in (1, (64 << 20) // (channels * 128 * 128 * dtype.itemsize))
    ]


def _noise() -> list[Case]:
    """One picture of SDXL, and a batch of 64 MiB."""
    sizes = (1, (64 << 20) // (4 * 128 * 128 * 4))
    return [NoiseCase("philox_normal", "SDXL", 1024, batch, torch.float32, True, 4, 128) for batch in sizes]
