"""What goes into a tiny U-Net, a recorder of it, and the attention probabilities that it should find."""

import torch

from lotts.capture import AttentionRecorder

TOKENS, WIDTH = 7, 32


def noise(*shape, seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens_of(*shape, seed=4):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).float()


def arguments(rows=2, size=(16, 16)):
    return noise(rows, 4, *size), 5, noise(rows, TOKENS, WIDTH, seed=3)


def quality_prompts(rows=1):
    return (noise(rows, 9, WIDTH, seed=5), tokens_of(rows, 9, seed=6)), (
        noise(rows, 11, WIDTH, seed=7),
        tokens_of(rows, 11, seed=8),
    )


def recorder_of(unet, rows=2, size=(16, 16), **kwargs):
    positive, negative = quality_prompts()
    recorder = AttentionRecorder(unet, tokens_of(rows, TOKENS, 2), positive, negative, latent_size=size, **kwargs)
    recorder.record_cross = True
    return recorder


def split_heads(attn, tensor):
    return tensor.double().unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def probabilities(attn, hidden_states, text):
    """softmax(Q K^T / sqrt(D)) in fp64 from the inputs of an attention module, [B, H, N, L]."""
    query, key = (split_heads(attn, tensor) for tensor in (attn.to_q(hidden_states), attn.to_k(text)))
    return torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)


def inputs_of(attn):
    """The list into which each call of the module puts its hidden states and text."""
    seen = []

    def keep(module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"], kwargs.get("encoder_hidden_states")))

    attn.register_forward_pre_hook(keep, with_kwargs=True)
    return seen
