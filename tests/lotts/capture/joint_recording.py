"""Calls of tiny pipelines whose text and image tokens attend to one another, and recorders of them."""

import torch

from lotts.backbones import capturable
from lotts.capture import AttentionRecorder

NAMES = ["sd3", "sd3.5", "flux-dev"]


def latents_of(pipe, prompt="a red cat", **options):
    arguments = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    return pipe(prompt, **{**arguments, **options}).images


def layer_inputs(pipe):
    """Arguments of one forward of the transformer, as its pipeline gives them, for two rows."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    config = pipe.transformer.config
    text = normal(2, 7, config.joint_attention_dim)
    common = {"encoder_hidden_states": text, "pooled_projections": normal(2, config.pooled_projection_dim)}
    if "Flux" in type(pipe).__name__:
        ids = pipe._prepare_latent_image_ids(2, 4, 6, torch.device("cpu"), torch.float32)
        hidden = normal(2, 24, config.in_channels)
        extra = {"img_ids": ids, "txt_ids": torch.zeros(7, 3), "guidance": torch.full((2,), 3.5)}
        return {"hidden_states": hidden, "timestep": torch.full((2,), 0.5), **extra, **common}, (4, 6)
    return {"hidden_states": normal(2, 4, 8, 12), "timestep": torch.full((2,), 500.0), **common}, (8, 12)


def recorder_of(pipe, size, layers=None, probes=(3, 4)):
    generator = torch.Generator().manual_seed(1)
    width = pipe.transformer.config.joint_attention_dim
    groups = [(torch.randn(1, 9, width, generator=generator), (torch.arange(9) < n)[None].float()) for n in probes]
    recorder = AttentionRecorder(
        pipe.transformer,
        torch.eye(7)[None, :, 2:4],
        *groups,
        latent_size=size,
        layers=layers,
        order=capturable(pipe).order,
    )
    recorder.record_cross = True
    return recorder
