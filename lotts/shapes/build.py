"""The parts of the embedded pipeline ``shapes-sd``: true diffusers and transformers classes, small configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lotts.shapes.scenes import QUALITY_PREFIX, caption, sample_scene

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS, LATENT_SIDE, TEXT_WIDTH, MAX_TOKENS = 8, 16, 128, 77


def autoencoder(
    widths: tuple[int, ...] = (16, 32, 64, 96), channels: int = LATENT_CHANNELS, **options: Any
) -> AutoencoderKL:
    """Pictures [B, 3, 128, 128] in [-1, 1] to latents, by default 8x down: [B, 8, 16, 16]. ``options``: of ``AutoencoderKL``."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=128,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        **options,
    )


def text_config(vocab_size: int, layers: int, **options: Any) -> CLIPTextConfig:
    """Of the text transformers of all embedded pipelines, which read the same tokens."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=TEXT_WIDTH,
        hidden_act="gelu",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **options,
    )


def text_encoder(vocab_size: int) -> CLIPTextModel:
    """A three-layer CLIP text transformer, trained together with the U-Net."""
    from transformers import CLIPTextModel

    return CLIPTextModel(text_config(vocab_size, 3))


def unet(cross_attention_dim: int = TEXT_WIDTH, **options: Any) -> UNet2DConditionModel:
    """Self- and cross-attention at 16x16 and 8x8; by default 4.3 M parameters. ``options``: of ``UNet2DConditionModel``."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=(2, 4),  # the number of heads: diffusers' historical name
        cross_attention_dim=cross_attention_dim,
        norm_num_groups=16,
        use_linear_projection=True,
        **options,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction; Euler reads the same configuration."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def v_path(latents: torch.Tensor, noise: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Noisy latents, their timesteps and the v to predict, from uniform ``shares`` [B] in (0, 1)."""
    t = (shares * 1000).long().clamp(max=999)
    alphas = scheduler().alphas_cumprod.to(latents.device)[t]
    a, s = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    return a * latents + s * noise, t, a * noise - s * latents


def write_tokenizer(folder: Path, captions: int = 20_000) -> None:
    """Train a byte-pair vocabulary on captions until every word of the grammar is one token; write CLIP's files."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    rng = np.random.default_rng(0)
    templates = ["{}", *QUALITY_PREFIX.values()]
    texts = [templates[i % 3].format(caption(sample_scene(rng), rng)) for i in range(captions)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_regex(), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(symbol + "</w>", len(vocab))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    load_tokenizer(folder).save_pretrained(folder)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    if not (folder / "tokenizer.json").exists():
        vocab = json.loads(Path(files["vocab"]).read_text(encoding="utf-8"))
        merges = [tuple(line.split(" ")) for line in Path(files["merges"]).read_text(encoding="utf-8").splitlines()[1:]]
        return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
    return CLIPTokenizer.from_pretrained(folder)


def _regex():
    from tokenizers import Regex

    return Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


def pipeline(vae, text_model, tokenizer, model) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_model,
        tokenizer=tokenizer,
        unet=model,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
