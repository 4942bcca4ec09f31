"""What differs by model family: conditioning, sigma algebra, latents, decoding. One file a family."""

from __future__ import annotations

from typing import Any

from lotts.backbones.schedulers import LinearUpdate
from lotts.backbones.stable_diffusion import Conditioning, StableDiffusion, guide

__all__ = ["Conditioning", "LinearUpdate", "StableDiffusion", "backbone_for", "guide"]


def backbone_for(pipe: Any) -> StableDiffusion:
    """The backbone that drives ``pipe``; TypeError or ValueError if it cannot be driven, with what to do."""
    return StableDiffusion(pipe)
