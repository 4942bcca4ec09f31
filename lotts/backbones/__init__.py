"""What differs by model family: conditioning, sigma algebra, latents, decoding. One file a family."""

from __future__ import annotations

import difflib
from typing import Any

from lotts.backbones.base import Backbone, is_diffusers
from lotts.backbones.conditioning import Conditioning, Embedding
from lotts.backbones.flux import Flux
from lotts.backbones.schedulers import LinearUpdate
from lotts.backbones.stable_diffusion import StableDiffusion
from lotts.backbones.stable_diffusion_3 import StableDiffusion3
from lotts.backbones.stable_diffusion_xl import StableDiffusionXL

__all__ = [
    "FAMILIES",
    "Backbone",
    "Conditioning",
    "Embedding",
    "LinearUpdate",
    "backbone_for",
    "capturable",
    "family_of",
]

#: Every family, by the diffusers class that it drives.
FAMILIES: dict[str, type[Backbone]] = {
    family.pipeline_class: family for family in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)
}


def family_of(pipe: Any) -> type[Backbone]:
    """The family that drives ``pipe``; TypeError where there is none, with the closest supported class."""
    for family in FAMILIES.values():
        if family.drives(pipe):
            return family
    name = type(pipe).__name__
    message = f"expected a pipeline out of {', '.join(FAMILIES)}, got {name}"
    if is_diffusers(pipe, "DiffusionPipeline"):
        network = _denoiser(pipe)
        alike = [pipeline for pipeline, family in FAMILIES.items() if family.denoiser == network]
        (closest,) = difflib.get_close_matches(name, alike or FAMILIES, n=1, cutoff=0.0)
        message += f": the closest is {closest}"
        if alike and FAMILIES[closest](pipe).denoises_latents():
            message += f"; {closest}.from_pipe(pipe) makes one of the components that the two share"
    raise TypeError(f"{message} (lotts.supported() lists what works)")


def _denoiser(pipe: Any) -> str:
    """The class of the network that ``pipe`` denoises with, compiled or not."""
    network = getattr(pipe, "transformer", None)
    network = getattr(pipe, "unet", None) if network is None else network
    return type(getattr(network, "_orig_mod", network)).__name__


def capturable(pipe: Any) -> Backbone:
    """The backbone of whatever family ``pipe`` has its network from, also of pipelines that cannot be driven.

    Attention is captured in image-to-image or inpainting pipelines, and under any scheduler.
    """
    for family in (Flux, StableDiffusion3):
        if _denoiser(pipe) == family.denoiser:
            return family(pipe)
    if hasattr(pipe, "unet") and hasattr(pipe, "encode_prompt"):
        if not hasattr(type(pipe), "guidance_scale"):
            raise TypeError(
                f"expected a pipeline that tells its guidance_scale while it runs, got {type(pipe).__name__}: which rows of its "
                "batch are the prompt's cannot be told"
            )
        return (StableDiffusionXL if hasattr(pipe, "text_encoder_2") else StableDiffusion)(pipe)
    return family_of(pipe)(pipe)


def backbone_for(pipe: Any) -> Backbone:
    """The backbone that drives ``pipe``; TypeError or ValueError if it cannot be driven, with what to do."""
    backbone = family_of(pipe)(pipe)
    backbone.check_scheduler()
    backbone.check_network()
    return backbone
