"""Networks of published size with random weights: how to build them, what a step of theirs takes in, and whether they fit."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lotts.capture.joint import IMAGE_TEXT, TEXT_IMAGE
from lotts.sparse import store


@dataclass(frozen=True)
class Model:
    """A network of published size.

    ``build`` makes it; ``inputs(rows, side)`` the keyword arguments of a forward on pictures of ``side`` pixels. ``text`` and
    ``width``: tokens and channels of its prompt. ``cell``: pixels of a latent cell on the grid of the maps.
    """

    build: Callable[[], torch.nn.Module]
    inputs: Callable[..., dict[str, torch.Tensor]]
    text: int
    width: int
    rows: int
    side: int
    cell: int
    dtype: torch.dtype
    order: str | None = None


def _unet(**config: Any) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(use_linear_projection=True, **config)


def _sd3(**config: Any) -> torch.nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(**config)


def _flux(**config: Any) -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(**config)


def _unet_inputs(rows: int, side: int, width: int, pooled: int = 0) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "sample": torch.randn(rows, 4, side // 8, side // 8),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(rows, 77, width),
    }
    if pooled:
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(rows, pooled), "time_ids": torch.ones(rows, 6)}
    return inputs


def _sd3_inputs(rows: int, side: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(rows, 16, side // 8, side // 8),
        "timestep": torch.full((rows,), 500.0),
        "encoder_hidden_states": torch.randn(rows, 77 + 256, 4096),
        "pooled_projections": torch.randn(rows, 2048),
    }


def _flux_inputs(rows: int, side: int) -> dict[str, Any]:
    cells = side // 16
    ids = torch.zeros(cells, cells, 3)
    ids[..., 1], ids[..., 2] = torch.arange(cells)[:, None], torch.arange(cells)
    return {
        "hidden_states": torch.randn(rows, cells * cells, 64),
        "timestep": torch.full((rows,), 0.5),
        "guidance": torch.full((rows,), 3.5),
        "encoder_hidden_states": torch.randn(rows, 512, 4096),
        "pooled_projections": torch.randn(rows, 768),
        "txt_ids": torch.zeros(512, 3),
        "img_ids": ids.flatten(0, 1),
    }


MODELS = {
    "sd2.1": Model(
        functools.partial(
            _unet,
            sample_size=96,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
        ),
        functools.partial(_unet_inputs, width=1024), text=77, width=1024, rows=2, side=512, cell=8, dtype=torch.float16,
    ),
    "sdxl": Model(
        functools.partial(
            _unet,
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        functools.partial(_unet_inputs, width=2048, pooled=1280),
        text=77, width=2048, rows=2, side=1024, cell=8, dtype=torch.float16,
    ),
    "sd3.5-medium": Model(
        functools.partial(
            _sd3,
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        ),
        _sd3_inputs, text=77 + 256, width=4096, rows=2, side=1024, cell=8, dtype=torch.bfloat16, order=IMAGE_TEXT,
    ),
    "flux": Model(
        functools.partial(_flux, guidance_embeds=True),
        _flux_inputs, text=512, width=4096, rows=1, side=1024, cell=16, dtype=torch.bfloat16, order=TEXT_IMAGE,
    ),
}  # fmt: skip


def randomised(build: Callable[[], torch.nn.Module], dtype: torch.dtype, device: str) -> torch.nn.Module:
    """The model on ``device``, made without the memory or time of an initialisation elsewhere."""
    with torch.device("meta"):
        network = build()
    network = network.to(dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_(0, 0.02, generator=generator)
    return network


def moved(value: Any, dtype: torch.dtype, device: str) -> Any:
    if isinstance(value, dict):
        return {name: moved(item, dtype, device) for name, item in value.items()}
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def needed_bytes(model: Model, device: str) -> int:
    """Weights, with a fifth for what a step holds beside them."""
    with torch.device("meta"):
        count = sum(p.numel() for p in model.build().parameters())
    return int(1.2 * count * (4 if device == "cpu" else model.dtype.itemsize))


def free_bytes(device: str) -> int:
    found = store.free_bytes(torch.device(device))
    if found is None:
        raise RuntimeError("expected MemAvailable in /proc/meminfo")
    return found


def release(device: str) -> None:
    """Give back what a model that is gone took."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
