"""Defect maps from attention, as in the paper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lotts.backbones import Backbone, Conditioning, Embedding
from lotts.capture import AttentionRecorder
from lotts.capture.selection import check_layers
from lotts.localize import LocalizeConfig, contrast, reweight
from lotts.sources.base import Heatmaps, LatentsAt, NothingSeen


class AttentionSource:
    """The paper's source: cross-attention under the quality prompts, propagated by self-attention.

    Args:
        config: which steps and layers, and how maps become one; None: what the model's family takes.
        contrast: how the quality prompts get their maps. "probes": beside the prompt in the same forward, at no extra
            network row; as keys of their own in a U-Net, as tokens that ride along in a transformer. "batch": each as a
            row of its own, two more for every candidate and step in which cross-attention is read; the quality
            prompt then steers what the network computes, from its first layer to the last.
    """

    name, text_encodes, reads_steps = "attention", 2, True

    def __init__(self, config: LocalizeConfig | None = None, *, contrast: str = "probes") -> None:
        if contrast not in ("probes", "batch"):
            raise ValueError(f"expected contrast 'probes' or 'batch', got {contrast!r}")
        self.config, self.contrast = config, contrast

    def rows(self, backbone: Backbone, steps: int, first: int = 0) -> int:
        read = (self.config or backbone.localize).step_range("cross_steps", steps)
        return 2 * sum(step >= first for step in read) if self.contrast == "batch" else 0

    def check(self, backbone: Backbone, prompt: str, steps: int) -> None:
        """ValueError for a prompt without words, or a network whose attention layers cannot be captured."""
        config = self.config or backbone.localize
        backbone.content_weights([prompt])
        kinds = ("cross", "self") if config.spreads(steps) else ("cross",)
        if config.words is not None and backbone.order is not None and self.contrast == "probes":
            raise ValueError(
                f"expected words=None for {type(backbone.pipe).__name__}, where the prompt's own words ride beside it, got {config.words}; "
                "AttentionSource(contrast='batch') can read them"
            )
        check_layers(backbone.network, config.layers, backbone.order, kinds=kinds, probes=self.contrast == "probes")

    def watch(self, backbone, prompt, seeds, size, steps, text) -> AttentionWatch:
        self.check(backbone, prompt, steps)
        kind = AttentionWatch if self.contrast == "probes" else BatchAttentionWatch
        return kind(self.config or backbone.localize, backbone, prompt, len(seeds), size, steps, text)


class AttentionWatch:
    rows = captured = decodes = judgements = 0

    def __init__(
        self, config: LocalizeConfig, backbone: Backbone, prompt: str, batch: int, size, steps: int, text: Conditioning
    ) -> None:
        self.config, self.backbone, self.propagate = config, backbone, config.spreads(steps)
        self.cross, self.self_ = (config.step_range(name, steps) for name in ("cross_steps", "self_steps"))
        self.recorder = AttentionRecorder(
            backbone.network,
            weight=backbone.content_weights([prompt]).to(backbone.device)[..., None].expand(batch, -1, 1),
            latent_size=size,
            layers=config.layers,
            order=backbone.order,
            **self._probes(prompt),
        )
        doubled = text.guided and backbone.doubles_rows
        self.recorder.rows = slice(batch, 2 * batch) if doubled else None

    def _probes(self, prompt: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Embeddings [1, L, E] of the quality prompts and weights [1, L] on those of their tokens that are read."""
        return {
            name: (
                self.backbone.embed_once(template.replace("{p}", prompt)).tokens,
                self._read(prompt, template).to(self.backbone.device),
            )
            for name, template in (("positive", self.config.positive), ("negative", self.config.negative))
        }

    def _read(self, prompt: str, template: str) -> torch.Tensor:
        """Weights [1, L] on the prompt's own content tokens in a quality prompt, or on the words that are asked for."""
        if self.config.words is None:
            return self.backbone.content_weights([prompt], template=template)
        return self.backbone.template_word_weights(prompt, template, self.config.words)

    def __enter__(self) -> AttentionWatch:
        self.recorder.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.recorder.__exit__(*error)

    def steps(self) -> list[int]:
        """The steps worth showing to this watch where no run does: the ends and the middle of both windows."""
        return sorted({r[k] for r in (self.cross, self.self_) for k in (0, len(r) // 2, -1)})

    @contextmanager
    def step(self, index: int, latents: torch.Tensor) -> Iterator[None]:
        recorder = self.recorder
        recorder.record_cross = index in self.cross
        # A refinement may begin after the steps in which there was something to read.
        recorder.record_self = self.propagate and index in self.self_ and self._seen
        if recorder.record_self and recorder.columns is None:
            original, diff = self._contrasted()
            recorder.columns = torch.stack([original, diff], dim=1)
        self.captured += len(latents) * (recorder.record_cross or recorder.record_self)
        yield
        recorder.record_cross = recorder.record_self = False

    @property
    def _seen(self) -> bool:
        return bool(self.recorder.layer_maps("cross"))

    def maps(self, latents_at: LatentsAt) -> Heatmaps:
        if not self._seen or (self.propagate and not self.recorder.layer_maps("self")):
            raise NothingSeen(
                f"attention is read in steps {self.cross} and {self.self_} of the run; none of some was shown"
            )
        original, diff = self._contrasted()
        found = {"CA_orig": original, "CA_diff": diff}
        if self.propagate:
            original, diff = self.recorder.self_maps().unbind(1)
            found |= {"CA'_orig": original, "CA'_diff": diff}
        return {**found, "P": reweight(diff, original, self.config)}

    def _contrasted(self) -> tuple[torch.Tensor, torch.Tensor]:
        original, positive, negative = self._masses()
        return original, contrast(positive, negative, self.config)

    def _masses(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mass [B, h, w] on the content of the prompt, of the positive and of the negative quality prompt."""
        original, positive, negative = self.recorder.cross_maps().unbind(1)
        return original, positive, negative


class BatchAttentionWatch(AttentionWatch):
    """The quality prompts as rows of their own, run after the candidates' own prediction of the step."""

    def __init__(self, config, backbone, prompt, batch, size, steps, text) -> None:
        super().__init__(config, backbone, prompt, batch, size, steps, text)
        templates = (config.positive, config.negative)
        weight = torch.cat([self._read(prompt, template).expand(batch, -1) for template in templates])
        prompts = [backbone.embed_once(t.replace("{p}", prompt)).repeat(batch) for t in templates]
        self.quality = AttentionRecorder(
            backbone.network,
            weight=weight.to(backbone.device)[..., None],
            latent_size=size,
            layers=config.layers,
            order=backbone.order,
        )
        self.quality.record_cross = True
        self.text = Conditioning(Embedding.cat(prompts), embedded_guidance=text.embedded_guidance)

    def _probes(self, prompt: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {}

    def __enter__(self) -> BatchAttentionWatch:
        return self  # each recorder enters for its own forwards alone

    def __exit__(self, *error: object) -> None:
        return None

    @contextmanager
    def step(self, index: int, latents: torch.Tensor) -> Iterator[None]:
        with self.recorder, super().step(index, latents):
            yield
        if index in self.cross:
            with self.quality:
                self.backbone.predict(torch.cat([latents, latents]), index, self.text)
            self.rows += 2 * len(latents)

    def _masses(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        positive, negative = self.quality.cross_maps()[:, 0].chunk(2)
        return self.recorder.cross_maps()[:, 0], positive, negative
