"""Where defect maps come from, behind one interface: attention (the paper's) or the model's predictions.

A source opens a watch on a batch of candidates. While they are denoised, ``watch.step(i)`` is entered around the model's
prediction of step i; afterwards ``watch.maps(latents_at)`` gives the heatmaps, the defect map under the name "P".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Protocol

import torch

from lotts.backbones import Conditioning, StableDiffusion
from lotts.capture.tokens import QUALITY_NEGATIVE, QUALITY_POSITIVE, content_weights
from lotts.localize import LocalizeConfig, contrast, reweight

Heatmaps = dict[str, torch.Tensor]
LatentsAt = Callable[[int], torch.Tensor]


class Watch(Protocol):
    """One batch of B candidates under observation. ``rows`` counts network rows spent beyond the candidates' own."""

    rows: int

    def __enter__(self) -> Watch: ...
    def __exit__(self, *error: object) -> None: ...
    def step(self, index: int) -> AbstractContextManager[None]: ...
    def steps(self) -> list[int]: ...
    def maps(self, latents_at: LatentsAt) -> Heatmaps: ...


class MapSource(Protocol):
    """Anything that finds defects: ``watch`` starts to observe B candidates of one prompt on latents of ``size``."""

    name: str

    def watch(
        self, backbone: StableDiffusion, prompt: str, batch: int, size: tuple[int, int], steps: int, guided: bool
    ) -> Watch: ...


class AttentionSource:
    """The paper's source: cross-attention under the quality prompts, propagated by self-attention, at no extra network row."""

    name = "attention"

    def __init__(self, config: LocalizeConfig | None = None) -> None:
        self.config = config or LocalizeConfig()

    def watch(self, backbone, prompt, batch, size, steps, guided) -> AttentionWatch:
        return AttentionWatch(self.config, backbone, prompt, batch, size, steps, guided)


class AttentionWatch:
    rows = 0

    def __init__(
        self, config: LocalizeConfig, backbone: StableDiffusion, prompt: str, batch: int, size, steps: int, guided: bool
    ) -> None:
        from lotts.capture import AttentionRecorder

        tokenizer, device = backbone.pipe.tokenizer, backbone.device
        self.config = config
        self.cross, self.self_ = (config.step_range(name, steps) for name in ("cross_steps", "self_steps"))
        weight = content_weights(tokenizer, [prompt])[1].to(device)
        self.recorder = AttentionRecorder(
            backbone.unet,
            weight=weight[..., None].expand(batch, -1, 1),
            positive=_probe(backbone, prompt, QUALITY_POSITIVE),
            negative=_probe(backbone, prompt, QUALITY_NEGATIVE),
            latent_size=size,
            layers=config.layers,
        )
        self.recorder.rows = slice(batch, 2 * batch) if guided else None

    def __enter__(self) -> AttentionWatch:
        self.recorder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.recorder.__exit__(kind, error, trace)

    def steps(self) -> list[int]:
        """The steps worth showing to this watch where no run does: the ends and the middle of both windows."""
        return sorted({r[k] for r in (self.cross, self.self_) for k in (0, len(r) // 2, -1)})

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        recorder = self.recorder
        recorder.record_cross = index in self.cross
        recorder.record_self = index in self.self_
        if recorder.record_self and recorder.columns is None:
            original, diff = self._contrasted()
            recorder.columns = torch.stack([original, diff], dim=1)
        yield
        recorder.record_cross = recorder.record_self = False

    def maps(self, latents_at: LatentsAt) -> Heatmaps:
        original, diff = self._contrasted()
        spread = self.recorder.self_maps()
        propagated_original, propagated_diff = spread[:, 0], spread[:, 1]
        return {
            "CA_orig": original,
            "CA_diff": diff,
            "CA'_orig": propagated_original,
            "CA'_diff": propagated_diff,
            "P": reweight(propagated_diff, propagated_original, self.config),
        }

    def _contrasted(self) -> tuple[torch.Tensor, torch.Tensor]:
        original, positive, negative = self.recorder.cross_maps().unbind(1)
        return original, contrast(positive, negative, self.config)


class PredictionSource:
    """How far the model's predictions under the two quality prompts lie apart: two extra rows a level and candidate.

    Args:
        levels: shares of the sampler's steps, counted from pure noise, at which the candidate is looked at.
    """

    name = "prediction"

    def __init__(self, levels: tuple[float, ...] = (0.2, 0.35)) -> None:
        if not levels or not all(0 <= level < 1 for level in levels):
            raise ValueError(f"expected levels as shares of the steps in [0, 1), got {levels}")
        self.levels = levels

    def watch(self, backbone, prompt, batch, size, steps, guided) -> PredictionWatch:
        return PredictionWatch(backbone, prompt, batch, sorted({int(level * steps) for level in self.levels}))


class PredictionWatch:
    def __init__(self, backbone: StableDiffusion, prompt: str, batch: int, steps: list[int]) -> None:
        self.backbone, self.batch, self._steps, self.rows = backbone, batch, steps, 2 * len(steps) * batch
        positive, negative = (
            backbone.encode_prompt(t.format(p=prompt), guidance=False).positive
            for t in (QUALITY_POSITIVE, QUALITY_NEGATIVE)
        )
        self.text = Conditioning(torch.cat([positive.expand(batch, -1, -1), negative.expand(batch, -1, -1)]), None)

    def __enter__(self) -> PredictionWatch:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def steps(self) -> list[int]:
        return []

    def step(self, index: int) -> AbstractContextManager[None]:
        return nullcontext()

    def maps(self, latents_at: LatentsAt) -> Heatmaps:
        total: torch.Tensor | float = 0.0
        for step in self._steps:
            latents = latents_at(step)
            positive, negative = (
                self.backbone.predict(torch.cat([latents, latents]), step, self.text, 1.0).float().chunk(2)
            )
            total = total + (positive - negative).square().sum(1).sqrt()
        assert isinstance(total, torch.Tensor)
        return {"P": total / len(self._steps)}


SOURCES: dict[str, type] = {"attention": AttentionSource, "prediction": PredictionSource}


def map_source(source: str | MapSource) -> MapSource:
    """A source by name, or the given one."""
    if isinstance(source, str):
        if source not in SOURCES:
            raise ValueError(
                f"expected a map source out of {', '.join(SOURCES)} or an object with watch(), got {source!r}"
            )
        return SOURCES[source]()
    if not hasattr(source, "watch"):
        raise TypeError(f"expected a map source with a watch() method, got {type(source).__name__}")
    return source


def _probe(backbone: StableDiffusion, prompt: str, template: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [1, L, E] of the filled template and weights [1, L] on the prompt's own content tokens."""
    weights = content_weights(backbone.pipe.tokenizer, [prompt], template=template)[1]
    return backbone.encode_prompt(template.format(p=prompt), guidance=False).positive, weights.to(backbone.device)
