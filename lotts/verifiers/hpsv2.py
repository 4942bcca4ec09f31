"""Human Preference Score v2 (Wu et al. 2023, arXiv 2306.09341): open_clip's ViT-H/14 trained on human choices."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lotts.verifiers.checkpoints import Checkpoint, describe, fill, read_state
from lotts.verifiers.clip import NAMES, ClipTower, ClipVerifier, clip_tokenizer, from_open_clip
from lotts.verifiers.pickscore import TOKENIZER
from lotts.verifiers.pixels import Pixels

CHECKPOINTS = {
    release: Checkpoint("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a", file, "visual.class_embedding")
    for release, file in (("2.0", "HPS_v2_compressed.pt"), ("2.1", "HPS_v2.1_compressed.pt"))
}


def _parts(code: int) -> str:
    """The characters that Unicode says a ligature or a letter of full width stands for."""
    return "".join(chr(int(part, 16)) for part in unicodedata.decomposition(chr(code)).split()[1:])


#: What ftfy, which open_clip's tokenizer cleans text with, makes plain: curly quotes, ligatures, letters of full width.
PLAIN = {
    **dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
    **{code: _parts(code) for code in (*range(0xFB00, 0xFB07), *range(0xFF01, 0xFF5F))},
    0x3000: " ",
}


def clean(prompt: str) -> str:
    """A prompt as open_clip's tokenizer reads it, but for text in a wrong encoding, which ftfy would repair."""
    return html.unescape(html.unescape(prompt.translate(PLAIN))).strip()


def vit_h_14() -> Any:
    """``CLIPConfig`` of open_clip's ViT-H-14, whose activation is the exact GELU."""
    from transformers import CLIPConfig

    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    for tower in (text, vision):
        tower.update(hidden_act="gelu", projection_dim=1024)  # type: ignore[call-overload]
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=1024)


class Hpsv2Verifier(ClipVerifier):
    """Which picture people prefer for a prompt. The whole picture is seen, on black bars, where others crop the middle.

    Args:
        location: the checkpoint's file, the folder it lies in, or another hub id; default: xswu/HPSv2. The tokenizer of
            laion/CLIP-ViT-H-14-laion2B-s32B-b79K is used unless the folder has one.
        release: "2.1" or "2.0"; their scores do not compare.
        revision: commit, branch or tag on the hub; default: a pinned commit.
        dtype: of the towers. The published code runs them in half precision, so its scores differ in the fourth digit.
        config: a ``CLIPConfig`` of other sizes than ViT-H/14.

    Raises:
        FileNotFoundError: the weights or the tokenizer cannot be had; the message says how to get them.
        ValueError: the file is no checkpoint of open_clip's ViT-H/14, or there is no such release.
    """

    name = "hpsv2"
    scale = "cosine of picture and prompt: -1 to 1, mostly within 0.2 to 0.35"

    def __init__(
        self,
        location: str | Path | None = None,
        *,
        release: str = "2.1",
        revision: str | None = None,
        dtype: str | torch.dtype = torch.float32,
        config: Any = None,
    ) -> None:
        from transformers import CLIPModel
        from transformers.initialization import no_init_weights

        super().__init__(dtype)
        if release not in CHECKPOINTS:
            raise ValueError(f"expected release to be one of {', '.join(CHECKPOINTS)}, got {release!r}")
        if release != "2.1":
            self.name = f"hpsv{release}"
        checkpoint = CHECKPOINTS[release]
        path = checkpoint.path(location, revision)
        self.version = f"{describe(checkpoint, location, revision)} ({release})"
        config = config or vit_h_14()
        tokenizer = clip_tokenizer(TOKENIZER, path, config.text_config.vocab_size)
        with no_init_weights():
            model = CLIPModel(config)
        fill(model, from_open_clip(read_state(path, checkpoint)), path, checkpoint, NAMES)
        self.tower = ClipTower(model.to(self.dtype), tokenizer)
        self.pixels = Pixels(self.tower.side, fit="pad")

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The feature float32 [D] of each prompt, cleaned as open_clip's tokenizer does."""
        texts = [clean(prompt) for prompt in prompts]
        features = super().encode_prompts(list(dict.fromkeys(texts)))
        return {prompt: features[text] for prompt, text in zip(prompts, texts, strict=True)}

    def scaled(self, cosine: torch.Tensor) -> torch.Tensor:
        return cosine


def release_2_0(location: str | Path | None = None) -> Hpsv2Verifier:
    """HPS v2.0, for comparison with results from before the second release."""
    return Hpsv2Verifier(location, release="2.0")
