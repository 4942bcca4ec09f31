"""The parts of the embedded pipeline ``shapes-flux``: a true ``FluxPipeline``, small.

T5 and a pooled CLIP embedding, two double and four single blocks with rotary positions, flow matching, and a 4x
autoencoder of four channels, which the pipeline packs 2 x 2: 16x16 tokens of 16 channels, as fine a mask as
``shapes-sd`` has.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lotts.shapes import build
from lotts.shapes.build import TEXT_WIDTH
from lotts.shapes.draw import SIDE
from lotts.shapes.scenes import QUALITY_PREFIX, caption, sample_scene

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5EncoderModel, T5Tokenizer

LATENT_CHANNELS, T5_TOKENS = 4, 72
HEADS, HEAD_DIM, ROPE_DIMS = 6, 32, (8, 12, 12)
TOKENS = SIDE // 8  # a side of the picture


def autoencoder() -> AutoencoderKL:
    """4x down: pictures [B, 3, 128, 128] in [-1, 1] to latents [B, 4, 32, 32]."""
    return build.autoencoder((16, 32, 64), LATENT_CHANNELS, shift_factor=0.0)


def grow_autoencoder(old: Any, new: Any) -> None:
    """Carry over what the autoencoder of ``shapes-sd`` does at full, half and quarter resolution, in place."""
    renamed = {"decoder.up_blocks.2.": "decoder.up_blocks.1.", "decoder.up_blocks.3.": "decoder.up_blocks.2."}
    own = new.state_dict()
    for name, tensor in old.state_dict().items():
        if name.startswith(("decoder.up_blocks.0.", "decoder.up_blocks.1.")):
            continue
        for before, after in renamed.items():
            name = name.replace(before, after) if name.startswith(before) else name
        if name in own and own[name].shape == tensor.shape:
            own[name] = tensor
    new.load_state_dict(own)


def t5_encoder(vocab_size: int) -> T5EncoderModel:
    """Three layers. It is taught by the CLIP of ``shapes-sd`` first, then trained together with the transformer."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocab_size,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=2 * TEXT_WIDTH,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def transformer() -> FluxTransformer2DModel:
    """Two double and four single blocks of width 192; 5 M parameters.

    Every block begins as the identity and the output at zero, as in DiT (Peebles and Xie, 2023).
    """
    from diffusers import FluxTransformer2DModel

    model: Any = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=ROPE_DIMS,
    )
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and ("norm" in name or name == "proj_out"):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return model


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler along straight paths, shifted towards noise by the number of tokens, as FLUX.1 dev is."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def write_t5_tokenizer(folder: Path, captions: int = 20_000) -> None:
    """Every word of the grammar as one piece, and letters for what is none."""
    from transformers import T5Tokenizer

    rng = np.random.default_rng(0)
    templates = ["{}", *QUALITY_PREFIX.values()]
    texts = [templates[i % 3].format(caption(sample_scene(rng), rng)) for i in range(captions)]
    words = sorted({word.strip(".,;:") for text in texts for word in text.split()})
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
    letters = [(chr(i), -8.0) for i in range(33, 127)]
    pieces = [(f"▁{word}", -2.0) for word in words if word]
    T5Tokenizer(special + letters + pieces, extra_ids=0, model_max_length=T5_TOKENS).save_pretrained(folder)


def load_t5_tokenizer(folder: Path) -> T5Tokenizer:
    from transformers import T5Tokenizer

    return T5Tokenizer.from_pretrained(folder)


def pipeline(vae, text_encoder, tokenizer, t5, t5_tokenizer, model) -> FluxPipeline:
    from diffusers import FluxPipeline

    return FluxPipeline(
        scheduler=scheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=model,
    )


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, C, h, w] as the transformer's tokens [B, h * w / 4, 4 C], as the pipeline packs them."""
    batch, channels, height, width = latents.shape
    cells = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch, height * width // 4, 4 * channels)


def places(side: int, device: torch.device) -> torch.Tensor:
    """Positions [side * side, 3] of the tokens of a square picture, in the frame of one that has ``TOKENS`` a side."""
    line = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) * TOKENS / side - 0.5
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)


def waves() -> torch.Tensor:
    """Radians that one token's width turns a query or key, fastest first, of those that turn visibly across the picture."""
    turns = 10_000.0 ** -(torch.arange(0, ROPE_DIMS[1], 2) / ROPE_DIMS[1])
    return turns[turns * TOKENS > 0.5]


def flow_path(latents: torch.Tensor, noise: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Noisy latents, their times in (0, 1) and the velocity to predict, from uniform ``shares`` [B] in (0, 1).

    Times are logit-normal, which spends most on the middle of the path, then shifted as the sampler shifts its own.
    """
    t = torch.sigmoid(torch.special.ndtri(shares.clamp(1e-4, 1 - 1e-4)))
    shift = float(np.exp(scheduler().config["base_shift"]))
    t = shift * t / (1 + (shift - 1) * t)
    s = t.view(-1, 1, 1, 1)
    return (1 - s) * latents + s * noise, t, noise - latents
