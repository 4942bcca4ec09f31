"""ImageReward (Xu et al. 2023, arXiv 2304.05977): a reward trained on human rankings, read from its own checkpoint.

The package ``image-reward`` cannot be imported beside today's transformers, so its checkpoint goes into transformers' BLIP
classes and the small head on top. ``bench/imagereward_parity.py`` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lotts.verifiers.checkpoints import Checkpoint, State, check_vocabulary, describe, fill, read_state, renamed
from lotts.verifiers.heads import RewardHead
from lotts.verifiers.pixels import Pixels, PixelVerifier

CHECKPOINT = Checkpoint(
    "THUDM/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72", "ImageReward.pt", "blip.visual_encoder.cls_token"
)
TOKENIZER = Checkpoint("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")
#: Tokens of a prompt, padded or cut to it.
LENGTH = 35
#: Of the rewards over the authors' training data; a score is the reward standardised by them.
MEAN, STD = 0.16717362830052426, 1.0333394966054072


@dataclass(frozen=True)
class ImageRewardConfig:
    """Sizes of the two BLIP towers; the defaults are the published model's (ViT-L/16 and BERT base)."""

    side: int = 224
    patch: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    vocabulary: int = 30524


class ImageRewardModel(nn.Module):
    """Text that attends to the picture, and a head on its first token."""

    def __init__(self, config: ImageRewardConfig) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=config.vision_width,
                intermediate_size=4 * config.vision_width,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=config.vision_heads,
                image_size=config.side,
                patch_size=config.patch,
                layer_norm_eps=1e-6,
            )
        )
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.text_width,
                encoder_hidden_size=config.vision_width,
                intermediate_size=4 * config.text_width,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.text_heads,
                layer_norm_eps=1e-12,
                is_decoder=True,  # builds the cross-attention; forward then asks for no causal mask
            ),
            add_pooling_layer=False,
        )
        self.head = RewardHead(config.text_width)

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Rewards float32 [B] of pixels [B, 3, side, side] and tokens int64 [B, LENGTH] with their mask."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False)
        return self.head(read.last_hidden_state[:, 0].float())


#: Names in the checkpoint (BLIP's own ViT and med.py) and in ``ImageRewardModel``; {} is a layer's number.
NAMES = (
    ("blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "vision.embeddings.patch_embedding."),
    ("blip.visual_encoder.norm.", "vision.post_layernorm."),
    ("blip.visual_encoder.blocks.{}.norm1.", "vision.encoder.layers.{}.layer_norm1."),
    ("blip.visual_encoder.blocks.{}.norm2.", "vision.encoder.layers.{}.layer_norm2."),
    ("blip.visual_encoder.blocks.{}.attn.qkv.", "vision.encoder.layers.{}.self_attn.qkv."),
    ("blip.visual_encoder.blocks.{}.attn.proj.", "vision.encoder.layers.{}.self_attn.projection."),
    ("blip.visual_encoder.blocks.{}.mlp.", "vision.encoder.layers.{}.mlp."),
    ("blip.text_encoder.", "text."),
    ("mlp.", "head."),
)
#: In the published checkpoint but no part of the reward: BLIP's contrastive projections, and a range of integers.
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


def convert(state: State) -> State:
    """An ImageReward state dict under the names of ``ImageRewardModel``; what the reward does not need is left out."""
    return {renamed(key, NAMES): value for key, value in state.items() if not key.startswith(UNUSED)}


class ImageRewardVerifier(PixelVerifier):
    """How well people would like the picture for its prompt.

    Args:
        location: ImageReward.pt, the folder it lies in, or another hub id; default: THUDM/ImageReward. A tokenizer that
            lies in the same folder is used, otherwise the one of bert-base-uncased.
        revision: commit, branch or tag on the hub; default: a pinned commit.
        dtype: of the two towers; the head is float32 always, as published.
        config: sizes other than the published model's.

    Raises:
        FileNotFoundError: the weights or the tokenizer cannot be had; the message says how to get them.
        ValueError: the file is no checkpoint of ImageReward.
    """

    name = "imagereward"
    scale = "standardised reward: 0 is the mean over the authors' data, 1 its standard deviation; unbounded"

    def __init__(
        self,
        location: str | Path | None = None,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = torch.float32,
        config: ImageRewardConfig | None = None,
    ) -> None:
        from transformers.initialization import no_init_weights

        super().__init__(dtype)
        config = config or ImageRewardConfig()
        path = CHECKPOINT.path(location, revision)
        self.version = describe(CHECKPOINT, location, revision)
        self.pixels = Pixels(config.side)
        self.tokenizer = _tokenizer(path.parent, config.vocabulary)
        with no_init_weights():
            self.model = ImageRewardModel(config).eval()
        fill(self.model, convert(read_state(path, CHECKPOINT)), path, CHECKPOINT, NAMES)
        self.model.vision.to(self.dtype)
        self.model.text.to(self.dtype)

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Tokens and their mask, int64 [2, LENGTH], of each prompt; a longer prompt is cut, as published."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        pairs = torch.stack([tokens.input_ids, tokens.attention_mask], 1)
        return dict(zip(prompts, pairs, strict=True))

    def forward(self, tensors: torch.Tensor, cache: list[Any]) -> torch.Tensor:
        """Rewards [B] of pixels [B, 3, side, side] and the cached tokens of their prompts."""
        ids, mask = torch.stack(cache).to(tensors.device).unbind(1)
        return (self.model(tensors.to(self.dtype), ids, mask) - MEAN) / STD


def _tokenizer(folder: Path, words: int) -> Any:
    from transformers import BertTokenizer

    local = any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
    tokenizer = TOKENIZER.pretrained(BertTokenizer.from_pretrained, folder if local else None, None)
    # BLIP gives its own start tokens the two last rows of the embedding; a prompt may spell them out.
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return check_vocabulary(tokenizer, words, TOKENIZER)
