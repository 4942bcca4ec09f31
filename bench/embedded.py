"""The embedded pipelines and their verifier, loaded once a process, for the studies."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def backbone(model: str) -> Any:
    from lotts.backbones import backbone_for
    from lotts.models import load_pipeline

    return backbone_for(load_pipeline(model))


@functools.cache
def verifier() -> Any:
    from lotts.verifiers import load

    return load("shapes")


def encode(model: str, prompt: str) -> Any:
    """The conditioning of a prompt under the guidance that suits the model."""
    from lotts.models import default_settings

    settings = default_settings(model)
    return backbone(model).encode_prompt(prompt, "", settings["guidance_scale"] or 1.0, settings["true_cfg_scale"])
