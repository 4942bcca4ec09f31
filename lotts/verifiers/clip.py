"""CLIP's two towers for the verifiers that compare a picture with its prompt, and open_clip's weights under their names."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import nn

from lotts.verifiers.checkpoints import Checkpoint, State, check_vocabulary, describe, renamed
from lotts.verifiers.pixels import Pixels, PixelVerifier

#: Pictures whose feature a tower remembers: more than a run makes, 768 to 1024 numbers each.
REMEMBERED = 512

#: Names in an open_clip state dict and in transformers' ``CLIPModel``; {} is a layer's number. What is fused or transposed
#: is handled in ``from_open_clip``.
NAMES = (
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("text_projection", "text_projection.weight"),
    *(
        (f"{theirs}.resblocks.{{}}.{part}", f"{ours}.encoder.layers.{{}}.{name}")
        for theirs, ours in (("visual.transformer", "vision_model"), ("transformer", "text_model"))
        for part, name in (
            ("ln_1.", "layer_norm1."),
            ("ln_2.", "layer_norm2."),
            ("attn.out_proj.", "self_attn.out_proj."),
            ("attn.in_proj_", "self_attn.in_proj_"),
            ("mlp.c_fc.", "mlp.fc1."),
            ("mlp.c_proj.", "mlp.fc2."),
        )
    ),
)


def from_open_clip(state: State) -> State:
    """An open_clip CLIP state dict under the names of ``CLIPModel``.

    Queries, keys and values come apart out of the fused ``in_proj``; the two projections are matrices to multiply from
    the left there and ``Linear`` weights here, so they are transposed. The causal mask that old versions saved is left out.
    """
    converted: State = {}
    for key, value in state.items():
        name = renamed(key, NAMES)
        if key == "attn_mask":
            continue
        if key in ("visual.proj", "text_projection"):
            converted[name] = value.T.contiguous()
        elif ".in_proj_" in name:
            layer, _, kind = name.rpartition(".in_proj_")
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                converted[f"{layer}.{letter}_proj.{kind}"] = part
        else:
            converted[name] = value
    return converted


class ClipTower(nn.Module):
    """A CLIP model with its tokenizer; the features of pictures seen lately are remembered.

    Features come out float32 and of length 1. Several verifiers may share a tower: the picture is then encoded once.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model.eval(), tokenizer
        self.length = model.config.text_config.max_position_embeddings
        self.seen: OrderedDict[tuple, torch.Tensor] = OrderedDict()

    @property
    def side(self) -> int:
        """Pixels of an edge of the pictures that it takes."""
        return self.model.config.vision_config.image_size

    def text(self, prompts: Sequence[str]) -> torch.Tensor:
        """Features [N, D], on the CPU, of prompts; what is longer than the model reads is cut."""
        device = self.model.logit_scale.device
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        # No mask: attention is causal and the feature is read off the first end token, so what pads never counts.
        features = self.model.get_text_features(input_ids=tokens.input_ids.to(device)).pooler_output
        return F.normalize(features.float(), dim=-1).cpu()

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features [B, D] of normalised pixels [B, 3, side, side]."""
        parameter = self.model.logit_scale
        keys = [(parameter.device, parameter.dtype, _digest(picture)) for picture in pixels]
        new = [index for index, key in enumerate(keys) if key not in self.seen]
        if new:
            inputs = pixels[new].to(parameter.device, parameter.dtype)
            features = self.model.get_image_features(pixel_values=inputs).pooler_output
            for index, feature in zip(new, F.normalize(features.float(), dim=-1), strict=True):
                self.seen[keys[index]] = feature.cpu()
        found = torch.stack([self.seen[key] for key in keys]).to(pixels.device)
        for key in keys:
            self.seen.move_to_end(key)
        while len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)
        return found


def _digest(picture: torch.Tensor) -> bytes:
    return hashlib.blake2b(picture.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()


_shared: WeakValueDictionary[tuple, ClipTower] = WeakValueDictionary()


def shared_tower(
    model: Checkpoint,
    tokenizer: Checkpoint,
    location: str | Path | None,
    revision: str | None,
    dtype: torch.dtype,
) -> ClipTower:
    """The tower of a ``save_pretrained`` folder or repository: one for all verifiers that ask for the same weights.

    The tokenizer comes from the location too where that is a folder that has one.
    """
    from transformers import CLIPModel

    place = model.at(location, revision)
    key = (str(place.resolve() if isinstance(place, Path) else place), dtype)
    if (tower := _shared.get(key)) is None:
        loaded = model.model(CLIPModel, location, revision, dtype=dtype)
        words = clip_tokenizer(tokenizer, place, loaded.config.text_config.vocab_size)
        tower = _shared[key] = ClipTower(loaded, words)
    return tower


def clip_tokenizer(checkpoint: Checkpoint, place: Path | Checkpoint | None, words: int) -> Any:
    """The tokenizer of so many entries in a local folder if it has one, otherwise the checkpoint's."""
    from transformers import CLIPTokenizer

    folder = place.parent if isinstance(place, Path) and place.is_file() else place
    local = isinstance(folder, Path) and any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json"))
    tokenizer = checkpoint.pretrained(CLIPTokenizer.from_pretrained, str(folder) if local else None, None)
    return check_vocabulary(tokenizer, words, checkpoint)


class ClipVerifier(PixelVerifier):
    """Scores by the cosine of the picture's and the prompt's feature; a subclass says how it is scaled."""

    tower: ClipTower

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The feature float32 [D] of each prompt."""
        features: list[torch.Tensor] = []
        for start in range(0, len(prompts), self.batch_size):
            features += self.tower.text(prompts[start : start + self.batch_size])
        return dict(zip(prompts, features, strict=True))

    def forward(self, tensors: torch.Tensor, cache: list[Any]) -> torch.Tensor:
        """Scores [B] of pixels [B, 3, side, side] and the features of their prompts."""
        text = torch.stack(cache).to(tensors.device)
        return self.scaled((self.tower.image(tensors) * text).sum(-1))

    def scaled(self, cosine: torch.Tensor) -> torch.Tensor:
        """The score [B] of a cosine [B] in [-1, 1]."""
        raise NotImplementedError


class PretrainedClipVerifier(ClipVerifier):
    """One whose towers are a checkpoint in the layout of ``save_pretrained``.

    Args:
        location: a folder in that layout or another hub id; default: the class's own ``checkpoint``.
        revision: commit, branch or tag on the hub; default: a pinned commit.
        dtype: of the towers.

    Raises:
        FileNotFoundError: the weights or the tokenizer cannot be had; the message says how to get them.
        ValueError: the weights are not those of such a CLIP.
    """

    checkpoint: Checkpoint
    #: Where the tokenizer is, unless the folder has one.
    tokenizer: Checkpoint

    def __init__(
        self,
        location: str | Path | None = None,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype)
        self.tower = shared_tower(self.checkpoint, self.tokenizer, location, revision, self.dtype)
        self.version = describe(self.checkpoint, location, revision)
        self.pixels = Pixels(self.tower.side, style="transformers")
