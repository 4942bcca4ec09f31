"""The parts of the embedded pipeline ``shapes-sdxl``, and how they grow out of those of ``shapes-sd``.

A true ``StableDiffusionXLPipeline``: two text encoders read before their last layer, a pooled embedding, the picture's
size as a condition, and two transformer layers where the U-Net is coarse. ``grow`` carries the weights of ``shapes-sd``
over so that the larger network computes the same at first; what is new starts as an identity or at zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lotts.shapes import build
from lotts.shapes.build import TEXT_WIDTH, text_config

if TYPE_CHECKING:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

#: Width of the embedding of one of the six numbers that give the picture's size and crop.
SIZE_WIDTH = 16
#: By how much the first text encoder's residual stream is scaled down, see ``grow``.
STREAM = 1000.0


def text_encoder(vocab_size: int) -> CLIPTextModel:
    """That of ``shapes-sd``, a layer that normalises what it gives, and the last one, which the U-Net does not read."""
    from transformers import CLIPTextModel

    return CLIPTextModel(text_config(vocab_size, 5, layer_norm_eps=1e-5 / STREAM**2))


def text_encoder_2(vocab_size: int) -> CLIPTextModelWithProjection:
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(text_config(vocab_size, 4))


def unet() -> UNet2DConditionModel:
    """One transformer layer at 16x16, two at 8x8; 6.0 M parameters."""
    return build.unet(
        2 * TEXT_WIDTH,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * SIZE_WIDTH,
    )


def scheduler() -> EulerDiscreteScheduler:
    """Euler on the noise schedule of ``shapes-sd``."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler.from_config(build.scheduler().config)


def pipeline(vae, first, second, tokenizer, model) -> StableDiffusionXLPipeline:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=model,
        scheduler=scheduler(),
        force_zeros_for_empty_prompt=False,  # trained on the empty caption itself
        add_watermarker=False,
    )


@torch.no_grad()
def grow(old_text: Any, old_unet: Any, text: Any, unet: Any) -> None:
    """Fill the first text encoder and the U-Net from those of ``shapes-sd``, in place; the second encoder is new.

    ``shapes-sd`` conditions on its text encoder's normalised output, this pipeline on what enters the last layer. So a layer
    more does the normalisation: its MLP is the identity (gelu(x) - gelu(-x) = x) of its own normalised input. What
    that is added to would remain, were it not small: the layers before normalise whatever they read, so their residual
    stream is scaled down by ``STREAM`` without changing what they compute. The normalisation's gain moves into keys and values,
    its bias behind the attention. Keys and values of the second encoder weigh nothing at first.
    """
    state = {name.removeprefix("text_model."): tensor for name, tensor in old_text.state_dict().items()}
    body = getattr(text, "text_model", text)
    left = body.load_state_dict(state, strict=False)
    _expect(left.missing_keys, ("layers.3.", "layers.4.", "position_ids"), left.unexpected_keys)
    for table in (body.embeddings.token_embedding, body.embeddings.position_embedding):
        table.weight /= STREAM
    for layer in body.encoder.layers[:3]:
        for last in (layer.self_attn.out_proj, layer.mlp.fc2):
            last.weight /= STREAM
            last.bias /= STREAM
    _normalise(body.encoder.layers[3])

    norm = getattr(old_text, "text_model", old_text).final_layer_norm
    width = norm.weight.numel()
    gain = torch.diag(norm.weight) @ (torch.eye(width) - torch.full((width, width), 1 / width))
    state = old_unet.state_dict()
    left = unet.load_state_dict({n: t for n, t in state.items() if not n.endswith(_CROSS)}, strict=False)
    missing = [name for name in left.missing_keys if not name.endswith(_CROSS)]
    _expect(missing, ("transformer_blocks.1.", "add_"), left.unexpected_keys)
    for name in state:
        if name.endswith(_CROSS):
            new = unet.get_parameter(name)
            new.zero_()
            new[:, :width] = state[name] @ gain
            if name.endswith("to_v.weight"):
                # The bias reaches every value alike; what it adds to every key, the softmax does not see.
                out = unet.get_submodule(name.removesuffix("to_v.weight") + "to_out.0")
                out.bias += out.weight @ (state[name] @ norm.bias)
    for name, module in unet.named_modules():
        if name.endswith("transformer_blocks.1"):
            for last in (module.attn1.to_out[0], module.attn2.to_out[0], module.ff.net[2]):
                _zero(last)
    _zero(unet.add_embedding.linear_2)


_CROSS = ("attn2.to_k.weight", "attn2.to_v.weight")


def _normalise(layer: Any) -> None:
    """Make a text layer add its normalised input to its input."""
    _zero(layer.self_attn.out_proj)
    _zero(layer.mlp.fc1)
    _zero(layer.mlp.fc2)
    layer.layer_norm2.weight.fill_(1)
    layer.layer_norm2.bias.zero_()
    width = layer.layer_norm2.weight.numel()
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    layer.mlp.fc1.weight[: 2 * width] = both
    layer.mlp.fc2.weight[:, : 2 * width] = both.T


def _expect(missing: list[str], new: tuple[str, ...], unexpected: list[str]) -> None:
    strange = [name for name in missing if not any(part in name for part in new)]
    if strange or unexpected:
        raise ValueError(f"the weights of shapes-sd do not fit: missing {strange}, unexpected {unexpected}")


def _zero(linear: Any) -> None:
    linear.weight.zero_()
    linear.bias.zero_()
