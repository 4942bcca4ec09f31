"""Rewards of the package ``image-reward`` with random weights, in the environment of that package.

``python -m bench imagereward_parity`` starts this in a folder with pictures.json and bert-base-uncased/vocab.txt. It writes the
package's own state dict, filled at random, to ImageReward.pt, and prints the rewards as a line of JSON.
"""

import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

MED_CONFIG = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "pad_token_id": 0,
    "type_vocab_size": 2,
}


def reward_class() -> Any:
    """The package's ``ImageReward`` class, without its __init__ modules: they import its training code and ``clip``."""
    spec = importlib.util.find_spec("ImageReward")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "expected the package image-reward in this environment: pip install --no-deps image-reward==1.5"
        )
    (root,) = spec.submodule_search_locations
    for name, path in (("ImageReward", root), ("ImageReward.models", f"{root}/models")):
        if name not in sys.modules:
            bare = ModuleType(name)
            bare.__path__ = [path]
            sys.modules[name] = bare
    return importlib.import_module("ImageReward.ImageReward").ImageReward


def fill_at_random(model: torch.nn.Module) -> None:
    """Weights of the size that training leaves: the package's own start gives every picture nearly the same reward."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        norm = "norm" in name.lower() and name.endswith("weight")
        scale = 1.5 * parameter.shape[-1] ** -0.5 if name.startswith("mlp") and parameter.ndim > 1 else 0.05
        parameter.data.copy_(1 + 0.1 * values if norm else scale * values)


@torch.no_grad()
def original_rewards(folder: Path) -> list[float]:
    """Write ImageReward.pt into the folder and reward its pictures; the current folder must be this one."""
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG), encoding="utf-8")
    model = reward_class()(med_config=str(folder / "med_config.json")).eval()
    fill_at_random(model)
    torch.save(model.state_dict(), folder / "ImageReward.pt")
    pairs = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
    return [model.score(prompt, str(folder / file)) for file, prompt in pairs]


if __name__ == "__main__":
    here = Path.cwd()
    answers, sys.stdout = sys.stdout, sys.stderr  # the package prints
    rewards = original_rewards(here)
    packages = ("image-reward", "torch", "torchvision", "transformers", "timm", "fairscale")
    print(json.dumps({"rewards": rewards, "versions": {name: version(name) for name in packages}}), file=answers)
