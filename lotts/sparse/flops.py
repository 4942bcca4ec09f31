"""Multiplications and additions of one row of a network, from its modules' sizes: dense, or with stretches on part of their tokens.

Counted are linear layers, convolutions and the two products of attention; norms and activations are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lotts.capture.grids import token_grids
from lotts.sparse.sites import Site, unet_level

#: Parts of names of linear layers that see the text alone: of a joint block, and of a U-Net.
JOINT_TEXT_LAYERS = ("_context.", "add_q_proj", "add_k_proj", "add_v_proj", "to_add")
UNET_TEXT_LAYERS = ("attn2.to_k", "attn2.to_v")
#: Of linear layers that see one vector a row: time, pooled text and what is modulated by them.
ROW_LAYERS = ("norm", "time_emb", "time_text_embed", "add_embedding", "time_embedding")


def row_flops(
    network: nn.Module,
    sites: Sequence[Site],
    latent_size: tuple[int, int],
    text: int,
    computed: Mapping[str, int] | None = None,
) -> int:
    """Twice the multiply-adds of one batch row.

    Args:
        sites: all stretches of the network (``find_sites``).
        text: tokens of the prompt.
        computed: site name -> image tokens that its blocks work on, where these are not all.
    """
    network = getattr(network, "_orig_mod", network)
    computed = computed or {}
    counts = {site.name: computed.get(site.name, site.tokens) for site in sites}
    total = 0
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            total += 2 * module.weight.numel() * _places(name, module, network, sites, counts, latent_size, text)
    for site in sites:
        total += sum(_attention(site, attn, counts[site.name], text) for attn in site.layers.values())
        if site.order is None:  # keys of the text are apart
            crossed: list[Any] = [block.attn2 for block in site.blocks if block.attn2 is not None]
            total += sum(4 * counts[site.name] * text * attn.inner_dim for attn in crossed)
    return total


def _attention(site: Site, attn: Any, tokens: int, text: int) -> int:
    beside = text if site.order is not None and _joint(attn) else 0
    return 4 * (tokens + beside) * (site.tokens + beside) * attn.inner_dim


def _joint(attn: Any) -> bool:
    """Whether the text takes part: in a layer with projections of its own for it, or in one that is given both together."""
    return attn.added_kv_proj_dim is not None or getattr(attn, "pre_only", False)


def _places(
    name: str,
    module: Any,
    network: Any,
    sites: Sequence[Site],
    counts: Mapping[str, int],
    latent_size: tuple[int, int],
    text: int,
) -> int:
    """At how many places of a row the layer of that name is applied."""
    if isinstance(module, nn.Conv2d):
        return _cells(name, network, latent_size)
    if any(part in name for part in ROW_LAYERS):
        return 1
    site = next((s for s in sites if name.startswith(f"{s.name}." if s.name else "")), None)
    if site is None:
        return 1
    if "transformer_blocks." not in name:  # into and out of the blocks
        return text if name.startswith("context_embedder") else site.tokens
    if any(part in f"{name}." for part in (UNET_TEXT_LAYERS if site.order is None else JOINT_TEXT_LAYERS)):
        return text
    return counts[site.name] + (text if "single_transformer_blocks" in name else 0)


def _cells(name: str, network: Any, latent_size: tuple[int, int]) -> int:
    """Outputs of a convolution, by its place in the network."""
    if not hasattr(network, "down_blocks"):  # a transformer's patch embedding
        patch = network.config.patch_size
        return latent_size[0] * latent_size[1] // patch**2
    grids, level = list(token_grids(latent_size).values()), unet_level(name, len(network.down_blocks)) or 0
    level += ("downsamplers" in name) - ("upsamplers" in name)
    height, width = grids[min(level, len(grids) - 1)]
    return height * width
