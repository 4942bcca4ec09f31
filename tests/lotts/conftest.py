"""A complete Stable Diffusion pipeline small enough to run in tests, with random weights and the true classes."""

import json

import pytest
import tiny
import torch


def write_clip_vocabulary(folder, words):
    """Vocabulary and merges of a CLIP tokenizer to which each of `words` is one token; other text falls to bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    letters = [chr(byte) for byte in kept] + [chr(256 + i) for i in range(len(others))]
    tokens = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
            pieces[:2] = ["".join(pair)]
            if pieces[0] not in tokens:
                tokens.append(pieces[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab, merge_file = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    merge_file.write_text("\n".join(lines), encoding="utf-8")
    return str(vocab), str(merge_file), len(tokens)


@pytest.fixture(scope="session")
def clip_tokenizer(tmp_path_factory):
    """A CLIP tokenizer of 40 tokens' length."""
    from transformers import CLIPTokenizer

    vocab, merges, _ = write_clip_vocabulary(tmp_path_factory.mktemp("tokenizer"), tiny.WORDS)
    return CLIPTokenizer(vocab, merges, model_max_length=40)


def make_unet(widths, heads):
    """UNet2DConditionModel with attention at every level, the structure of Stable Diffusion's; random weights."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        cross_attention_dim=32,
        attention_head_dim=heads,
        norm_num_groups=8,
        use_linear_projection=True,
    ).eval()


@pytest.fixture
def tiny_unet():
    """A U-Net with attention at 16x16 and 8x8."""
    return make_unet((32, 64), (2, 4))


@pytest.fixture
def shallow_unet():
    """A U-Net with attention at 16x16 only: half to compile."""
    return make_unet((32,), (2,))


@pytest.fixture
def tiny_pipe(tiny_unet, clip_tokenizer):
    """StableDiffusionPipeline of 16x16 latents and 32x32 images with DDIM; random weights, fresh for each test."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(1)
    pipe = StableDiffusionPipeline(
        vae=tiny.autoencoder(),
        text_encoder=tiny.clip_text_model(clip_tokenizer),
        tokenizer=clip_tokenizer,
        unet=tiny_unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe_of(tiny_pipe, clip_tokenizer):
    """A function from a name to a tiny pipeline: "sd", and those of ``tiny.py``."""
    variants = {
        "sd": lambda: tiny_pipe,
        "sdxl": lambda: tiny.sdxl(clip_tokenizer),
        "sd3": lambda: tiny.sd3(clip_tokenizer, dual_attention_layers=(), qk_norm=None, t5=False),
        "sd3.5": lambda: tiny.sd3(clip_tokenizer),
        "flux-dev": lambda: tiny.flux(clip_tokenizer),
        "flux-schnell": lambda: tiny.flux(clip_tokenizer, guidance_embeds=False),
    }
    return lambda name: variants[name]()
