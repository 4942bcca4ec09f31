"""The UNet step under attention-map-diffusers, in the environment of that package. ``python -m bench cpu --peer`` starts this.

It first writes a line of JSON, its kinds of step and its versions. Then it reads the name of a kind a line from standard
input, runs it, and answers with a line of JSON, so that its steps take turns with those of the process that asks.

A script, whose imports are its own folder's: with the repository's root on the path, transformers would take the folder
``kernels/`` there for Hugging Face's package of that name.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from unet_step import sampled, unet_and_inputs

#: Kinds of step: what is captured, and how. "fast", the package's default, keeps queries and keys and makes the maps after
#: the step; making them counts here, since a step without maps is no capture.
KINDS = {
    "peer stock": None,
    "peer cross": ("image->text", "fast"),
    "peer cross exact": ("image->text", "exact"),
    "peer self": ("image->image", "fast"),
}


def steps(small: bool, latent: int) -> dict[str, Callable[[], Any]]:
    """A call for each kind, which returns the model's output."""
    from attention_map_diffusers import AttentionCapture

    unet, latents, text = unet_and_inputs(small, latent)

    def step(how: tuple[str, str] | None) -> Any:
        if how is None:
            return unet(latents, timestep=500, encoder_hidden_states=text).sample
        relation, mode = how
        with AttentionCapture(SimpleNamespace(unet=unet), relations=relation, timesteps="all", mode=mode) as capture:
            output = unet(latents, timestep=500, encoder_hidden_states=text).sample
        if not capture.compute().records:
            raise RuntimeError(f"expected maps of {relation}, got none")
        return output

    return {kind: partial(step, how) for kind, how in KINDS.items()}


@torch.no_grad()
def main() -> None:
    small, latent = bool(int(sys.argv[1])), int(sys.argv[2])
    calls = steps(small, latent)
    outputs: dict[str, torch.Tensor] = {}
    # Other prints must not reach the pipe that carries the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    packages = ("attention-map-diffusers", "torch", "diffusers", "transformers")
    hello = {"kinds": list(KINDS), "versions": {name: version(name) for name in packages}}
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        kind = line.rstrip("\n")
        outputs[kind], sample = sampled(calls[kind])
        difference = (outputs[kind] - outputs["peer stock"]).abs().max().item() if "peer stock" in outputs else None
        print(json.dumps({**asdict(sample), "output_difference": difference}), file=answers, flush=True)


if __name__ == "__main__":
    main()
