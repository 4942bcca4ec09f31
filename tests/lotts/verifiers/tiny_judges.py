"""Checkpoints in their original layouts, tiny and random, and float64 forward passes that read those layouts directly."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from lotts.verifiers.imagereward import ImageRewardConfig

SIDE, PATCH = 32, 8
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "blue", "dog", "on", "sofa", "##s", "."]
REWARD_SIZES = ImageRewardConfig(
    side=SIDE,
    patch=PATCH,
    vision_width=32,
    vision_layers=2,
    vision_heads=2,
    text_width=24,
    text_layers=2,
    text_heads=3,
    vocabulary=len(PIECES) + 2,
)


def pictures(count=4, seed=0):
    """RGB pictures of odd sizes with structure at every scale."""
    rng = np.random.default_rng(seed)
    out = []
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        size = (41 + 7 * index, 57 - 6 * index)
        out.append(coarse.resize(size, Image.Resampling.BICUBIC))
    return out


def bert_files(folder):
    """vocab.txt and what BertTokenizer reads beside it."""
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return folder


def _random(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=generator) * (0.4 if len(shape) > 1 else 0.2)
        norm = any(part in key for part in ("norm", "LayerNorm", "ln_")) and key.endswith("weight")
        state[key] = 1 + 0.1 * value if norm else value
    return state


def imagereward_state(seed=0, c=REWARD_SIZES):
    """A state dict under the names of ImageReward.pt: BLIP's ViT, med.py's BERT, the unused projections, the head."""
    tokens = (c.side // c.patch) ** 2 + 1
    v, t = c.vision_width, c.text_width
    shapes = {"blip.visual_encoder.cls_token": (1, 1, v), "blip.visual_encoder.pos_embed": (1, tokens, v)}

    def linear(key, rows, columns):
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (rows, columns), (rows,)

    def norm(key, width):
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (width,), (width,)

    shapes["blip.visual_encoder.patch_embed.proj.weight"] = (v, 3, c.patch, c.patch)
    shapes["blip.visual_encoder.patch_embed.proj.bias"] = (v,)
    for i in range(c.vision_layers):
        block = f"blip.visual_encoder.blocks.{i}"
        norm(f"{block}.norm1", v)
        linear(f"{block}.attn.qkv", 3 * v, v)
        linear(f"{block}.attn.proj", v, v)
        norm(f"{block}.norm2", v)
        linear(f"{block}.mlp.fc1", 4 * v, v)
        linear(f"{block}.mlp.fc2", v, 4 * v)
    norm("blip.visual_encoder.norm", v)
    shapes["blip.text_encoder.embeddings.word_embeddings.weight"] = (c.vocabulary, t)
    shapes["blip.text_encoder.embeddings.position_embeddings.weight"] = (512, t)
    norm("blip.text_encoder.embeddings.LayerNorm", t)
    for i in range(c.text_layers):
        layer = f"blip.text_encoder.encoder.layer.{i}"
        for attention, width in (("attention", t), ("crossattention", v)):
            linear(f"{layer}.{attention}.self.query", t, t)
            linear(f"{layer}.{attention}.self.key", t, width)
            linear(f"{layer}.{attention}.self.value", t, width)
            linear(f"{layer}.{attention}.output.dense", t, t)
            norm(f"{layer}.{attention}.output.LayerNorm", t)
        linear(f"{layer}.intermediate.dense", 4 * t, t)
        linear(f"{layer}.output.dense", t, 4 * t)
        norm(f"{layer}.output.LayerNorm", t)
    linear("blip.vision_proj", 256, v)
    linear("blip.text_proj", 256, t)
    for index, (rows, columns) in {0: (1024, t), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}.items():
        linear(f"mlp.layers.{index}", rows, columns)
    state = _random(shapes, seed)
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    return state


def _attend(q, k, v, heads, mask=None):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def reward(state, pixels, ids, mask, c=REWARD_SIZES):
    """The reward [B] in float64, read off the checkpoint's own names."""
    state = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}

    def linear(key, x):
        return F.linear(x, state[f"{key}.weight"], state[f"{key}.bias"])

    def norm(key, x, eps):
        return F.layer_norm(x, x.shape[-1:], state[f"{key}.weight"], state[f"{key}.bias"], eps)

    vit = "blip.visual_encoder"
    patches = F.conv2d(
        pixels.double(), state[f"{vit}.patch_embed.proj.weight"], state[f"{vit}.patch_embed.proj.bias"], stride=c.patch
    )
    x = torch.cat([state[f"{vit}.cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = x + state[f"{vit}.pos_embed"]
    for i in range(c.vision_layers):
        block = f"{vit}.blocks.{i}"
        q, k, v = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(f"{block}.attn.proj", _attend(q, k, v, c.vision_heads))
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6))))
    seen = norm(f"{vit}.norm", x, 1e-6)

    words = state["blip.text_encoder.embeddings.word_embeddings.weight"][ids]
    y = words + state["blip.text_encoder.embeddings.position_embeddings.weight"][: ids.shape[1]]
    y = norm("blip.text_encoder.embeddings.LayerNorm", y, 1e-12)
    for i in range(c.text_layers):
        layer = f"blip.text_encoder.encoder.layer.{i}"
        for attention, source, hidden in (
            ("attention", None, mask[:, None, None].bool()),
            ("crossattention", seen, None),
        ):
            source = y if source is None else source
            q, k, v = (
                linear(f"{layer}.{attention}.self.{part}", z)
                for part, z in (("query", y), ("key", source), ("value", source))
            )
            out = linear(f"{layer}.{attention}.output.dense", _attend(q, k, v, c.text_heads, hidden))
            y = norm(f"{layer}.{attention}.output.LayerNorm", out + y, 1e-12)
        out = linear(f"{layer}.output.dense", F.gelu(linear(f"{layer}.intermediate.dense", y)))
        y = norm(f"{layer}.output.LayerNorm", out + y, 1e-12)
    z = y[:, 0]
    for index in (0, 2, 4, 6, 7):
        z = linear(f"mlp.layers.{index}", z)
    return (z[:, 0] - 0.16717362830052426) / 1.0333394966054072


def clip_config(tokenizer, activation="gelu"):
    """``CLIPConfig`` of two layers a tower; the widths differ between the towers."""
    from transformers import CLIPConfig

    text = {"hidden_size": 24, "intermediate_size": 96, "num_attention_heads": 3, "vocab_size": len(tokenizer)}
    text.update(max_position_embeddings=40, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    for tower in (text, vision):
        tower.update(num_hidden_layers=2, hidden_act=activation, projection_dim=16)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)


def open_clip_state(vocabulary, seed=0):
    """A state dict under open_clip's names, of the sizes of ``clip_config``."""
    shapes = {
        "positional_embedding": (40, 24),
        "text_projection": (24, 16),
        "visual.class_embedding": (32,),
        "visual.positional_embedding": ((SIDE // PATCH) ** 2 + 1, 32),
        "visual.proj": (32, 16),
        "visual.conv1.weight": (32, 3, PATCH, PATCH),
        "token_embedding.weight": (vocabulary, 24),
    }
    for key, width in (("visual.ln_pre", 32), ("visual.ln_post", 32), ("ln_final", 24)):
        shapes[f"{key}.weight"] = shapes[f"{key}.bias"] = (width,)
    for tower, width in (("visual.transformer", 32), ("transformer", 24)):
        for i in range(2):
            block = f"{tower}.resblocks.{i}"
            for key, shape in (
                ("ln_1.weight", (width,)),
                ("ln_1.bias", (width,)),
                ("attn.in_proj_weight", (3 * width, width)),
                ("attn.in_proj_bias", (3 * width,)),
                ("attn.out_proj.weight", (width, width)),
                ("attn.out_proj.bias", (width,)),
                ("ln_2.weight", (width,)),
                ("ln_2.bias", (width,)),
                ("mlp.c_fc.weight", (4 * width, width)),
                ("mlp.c_fc.bias", (4 * width,)),
                ("mlp.c_proj.weight", (width, 4 * width)),
                ("mlp.c_proj.bias", (width,)),
            ):
                shapes[f"{block}.{key}"] = shape
    return _random(shapes, seed) | {"logit_scale": torch.tensor(4.6)}


def _blocks(state, tower, x, heads, mask):
    for i in range(2):
        block = f"{tower}.resblocks.{i}."

        def get(key, block=block):
            return state[block + key]

        width = x.shape[-1]
        h = F.layer_norm(x, (width,), get("ln_1.weight"), get("ln_1.bias"))
        q, k, v = F.linear(h, get("attn.in_proj_weight"), get("attn.in_proj_bias")).chunk(3, -1)
        x = x + F.linear(_attend(q, k, v, heads, mask), get("attn.out_proj.weight"), get("attn.out_proj.bias"))
        h = F.layer_norm(x, (width,), get("ln_2.weight"), get("ln_2.bias"))
        h = F.gelu(F.linear(h, get("mlp.c_fc.weight"), get("mlp.c_fc.bias")))
        x = x + F.linear(h, get("mlp.c_proj.weight"), get("mlp.c_proj.bias"))
    return x


def clip_cosine(state, pixels, ids):
    """Cosine [B] in float64 of pictures and token ids [B, 40], read off open_clip's own names."""
    state = {key: value.double() for key, value in state.items()}
    patches = F.conv2d(pixels.double(), state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(pixels), 1, -1), patches], 1)
    x = x + state["visual.positional_embedding"]
    x = F.layer_norm(x, (32,), state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])
    x = _blocks(state, "visual.transformer", x, 2, None)[:, 0]
    image = F.layer_norm(x, (32,), state["visual.ln_post.weight"], state["visual.ln_post.bias"]) @ state["visual.proj"]
    y = state["token_embedding.weight"][ids] + state["positional_embedding"]
    causal = torch.ones(40, 40, dtype=torch.bool).tril()
    y = _blocks(state, "transformer", y, 3, causal)
    y = F.layer_norm(y, (24,), state["ln_final.weight"], state["ln_final.bias"])
    text = y[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"]
    return F.cosine_similarity(image, text)


def head_state(width=16, seed=5):
    """The aesthetic head's state dict as published."""
    shapes = {}
    for index, (rows, columns) in {0: (1024, width), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}.items():
        shapes[f"layers.{index}.weight"], shapes[f"layers.{index}.bias"] = (rows, columns), (rows,)
    return _random(shapes, seed)
