"""Where a network can run on part of its tokens: stretches of transformer blocks, in which only attention mixes tokens.

A stretch is found by what its blocks are, not by the family of the pipeline: in a U-Net each ``Transformer2DModel`` holds one,
FLUX and Stable Diffusion 3 are one from their first block to the last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from lotts.capture.grids import token_grids
from lotts.capture.joint import IMAGE_TEXT, TEXT_IMAGE
from lotts.capture.patch import unsupported_reason

#: Block class -> names of the attention modules in which its image tokens meet.
MIXING = {
    "BasicTransformerBlock": ("attn1",),
    "FluxTransformerBlock": ("attn",),
    "FluxSingleTransformerBlock": ("attn",),
    "JointTransformerBlock": ("attn", "attn2"),
}


@dataclass(frozen=True)
class Site:
    """A stretch of blocks over one grid of image tokens.

    Args:
        name: the module that holds the blocks; "" where that is the network.
        blocks: in the order in which they run. The first takes ``hidden_states`` [R, N, C] of all tokens, the last returns them.
        layers: name in the network -> attention module in which tokens meet.
        grid: (height, width) of the image tokens.
        order: of text and image in the joint sequence; None where keys of the text are apart (a U-Net).
        rotary: the module that makes the tables of rotary embeddings from positions, or None.
    """

    name: str
    blocks: tuple[nn.Module, ...]
    layers: dict[str, Any]
    grid: tuple[int, int]
    order: str | None = None
    rotary: nn.Module | None = None

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def image_start(self, length: int, tokens: int) -> int:
        """Where ``tokens`` of the image begin in a sequence: FLUX has the text before them, Stable Diffusion 3 after."""
        return length - tokens if self.order == TEXT_IMAGE else 0


def find_sites(network: nn.Module, latent_size: tuple[int, int]) -> tuple[list[Site], dict[str, str]]:
    """All stretches of ``network`` on latents of (height, width), and, by name, those that cannot run on part of their tokens
    with the reason.
    """
    network = getattr(network, "_orig_mod", network)
    name = type(network).__name__
    if name == "FluxTransformer2DModel":
        found = [_transformer(network, latent_size, ("transformer_blocks", "single_transformer_blocks"), TEXT_IMAGE)]
    elif name == "SD3Transformer2DModel":
        patch: Any = network.config.patch_size  # type: ignore[union-attr]
        grid = (latent_size[0] // patch, latent_size[1] // patch)
        found = [_transformer(network, grid, ("transformer_blocks",), IMAGE_TEXT)]
    elif name == "UNet2DConditionModel":
        found = _unet(network, latent_size)
    else:
        return [], {"": f"{name} is none of the networks known here"}
    refused = {site.name: reason for site in found if (reason := _obstacle(site)) is not None}
    return [site for site in found if site.name not in refused], refused


def unet_level(name: str, levels: int) -> int | None:
    """How often latents are halved where the U-Net's module of that name works; None outside of its blocks."""
    if name.startswith("mid_block"):
        return levels - 1
    match = re.match(r"(down|up)_blocks\.(\d+)", name)
    if match is None:
        return None
    index = int(match[2])
    return index if match[1] == "down" else levels - 1 - index


def _unet(network: Any, latent_size: tuple[int, int]) -> list[Site]:
    grids, levels = list(token_grids(latent_size).values()), len(network.down_blocks)
    found = []
    for name, module in network.named_modules():
        if type(module).__name__ == "Transformer2DModel":
            level = unet_level(name, levels)
            assert level is not None
            found.append(_site(name, network, [(name, "transformer_blocks")], grids[min(level, len(grids) - 1)]))
    return found


def _transformer(network: Any, grid: tuple[int, int], lists: tuple[str, ...], order: str) -> Site:
    rotary = network.pos_embed if order == TEXT_IMAGE else None
    return _site("", network, [("", blocks) for blocks in lists], grid, order, rotary)


def _site(name: str, network: Any, lists: list[tuple[str, str]], grid, order=None, rotary=None) -> Site:
    blocks, layers = [], {}
    for owner, attribute in lists:
        prefix = ".".join(part for part in (owner, attribute) if part)
        for index, block in enumerate(network.get_submodule(prefix)):
            blocks.append(block)
            for part in MIXING.get(type(block).__name__, ()):
                if getattr(block, part, None) is not None:
                    layers[f"{prefix}.{index}.{part}"] = getattr(block, part)
    return Site(name, tuple(blocks), layers, grid, order, rotary)


def _obstacle(site: Site) -> str | None:
    for block in site.blocks:
        reason = _block_obstacle(block)
        if reason is not None:
            return reason
    for attn in site.layers.values():
        reason = unsupported_reason(attn)
        if reason is not None:
            return reason
    return None


def _block_obstacle(block: Any) -> str | None:
    """Why this block is more than work on single tokens and attention among them, or None."""
    name = type(block).__name__
    if name not in MIXING:
        return f"{name} is none of the blocks known here"
    if getattr(block, "_chunk_size", None) is not None:
        return f"{name} cuts its feed-forward layer into chunks of a fixed size"
    if name == "BasicTransformerBlock":
        if block.norm_type != "layer_norm" or block.pos_embed is not None or hasattr(block, "fuser"):
            return f"{name} of norm_type {block.norm_type!r}, or with positions or a fuser of its own"
        if block.only_cross_attention or block.double_self_attention or block.attn1.group_norm is not None:
            return f"{name} with another attention than of its tokens among themselves and to the text"
    return None
