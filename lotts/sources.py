"""Where defect maps come from, behind one interface: attention (the paper's) or the model's predictions.

A source opens a watch on a batch of candidates. While they are denoised, ``watch.step(i)`` is entered around the model's
prediction of step i; afterwards ``watch.maps(latents_at)`` gives the heatmaps, the defect map under the name "P".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch

from lotts.backbones import Backbone, Conditioning, Embedding
from lotts.capture.tokens import QUALITY_NEGATIVE, QUALITY_POSITIVE
from lotts.localize import LocalizeConfig, contrast, reweight

if TYPE_CHECKING:
    from lotts.verifiers import Judge

Heatmaps = dict[str, torch.Tensor]
LatentsAt = Callable[[int], torch.Tensor]


class NothingSeen(RuntimeError):
    """A watch was not shown the steps in which there was something to see."""


class Watch(Protocol):
    """One batch of B candidates under observation.

    ``rows`` counts network rows spent beyond the candidates' own, ``captured`` those of the candidates' own in which attention
    was read as well, ``judgements`` pictures decoded and shown to the verifier. ``maps`` raises ``NothingSeen`` where it was
    shown too little.
    """

    rows: int
    captured: int
    judgements: int

    def __enter__(self) -> Watch: ...
    def __exit__(self, *error: object) -> None: ...
    def step(self, index: int, latents: torch.Tensor) -> AbstractContextManager[None]: ...
    def steps(self) -> list[int]: ...
    def maps(self, latents_at: LatentsAt) -> Heatmaps: ...


class MapSource(Protocol):
    """Anything that finds defects: ``watch`` starts to observe B samples of one prompt on latents of ``size``.

    ``seeds`` tells them apart, one each, whatever batch they are in. ``text`` is what one of them is conditioned on, its
    guidance included. ``rows`` tells the network rows that it will spend on one sample of ``backbone`` beyond the sample's own,
    ``text_encodes`` the texts that a watch encodes. A source may have ``check(backbone, prompt, steps)``, which raises
    ValueError, before any compute, where it could find nothing.
    """

    name: str
    text_encodes: int

    def rows(self, backbone: Backbone, steps: int) -> int: ...

    def watch(
        self,
        backbone: Backbone,
        prompt: str,
        seeds: Sequence[int],
        size: tuple[int, int],
        steps: int,
        text: Conditioning,
    ) -> Watch: ...


class AttentionSource:
    """The paper's source: cross-attention under the quality prompts, propagated by self-attention.

    Args:
        config: which steps and layers, and how maps become one; None: what the model's family takes.
        contrast: how the quality prompts get their maps. "probes": beside the prompt in the same forward, at no extra
            network row; as keys of their own in a U-Net, as tokens that ride along in a transformer. "batch": each as a
            row of its own, two more for every candidate and step in which cross-attention is read; the quality
            prompt then steers what the network computes, from its first layer to the last.
    """

    name, text_encodes = "attention", 2

    def __init__(self, config: LocalizeConfig | None = None, *, contrast: str = "probes") -> None:
        if contrast not in ("probes", "batch"):
            raise ValueError(f"expected contrast 'probes' or 'batch', got {contrast!r}")
        self.config, self.contrast = config, contrast

    def rows(self, backbone: Backbone, steps: int) -> int:
        config = self.config or backbone.localize
        return 2 * len(config.step_range("cross_steps", steps)) if self.contrast == "batch" else 0

    def check(self, backbone: Backbone, prompt: str, steps: int) -> None:
        """ValueError for a prompt without words, or a network whose attention layers cannot be captured."""
        from lotts.capture.recorder import check_layers

        config = self.config or backbone.localize
        backbone.content_weights([prompt])
        kinds = ("cross", "self") if config.spreads(steps) else ("cross",)
        check_layers(backbone.network, config.layers, backbone.order, kinds=kinds, probes=self.contrast == "probes")

    def watch(self, backbone, prompt, seeds, size, steps, text) -> AttentionWatch:
        self.check(backbone, prompt, steps)
        kind = AttentionWatch if self.contrast == "probes" else BatchAttentionWatch
        return kind(self.config or backbone.localize, backbone, prompt, len(seeds), size, steps, text)


class AttentionWatch:
    rows = captured = judgements = 0

    def __init__(
        self, config: LocalizeConfig, backbone: Backbone, prompt: str, batch: int, size, steps: int, text: Conditioning
    ) -> None:
        from lotts.capture import AttentionRecorder

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
        """Embeddings [1, L, E] of the quality prompts and weights [1, L] on the prompt's own content tokens."""
        return {
            name: (
                self.backbone.embed([template.format(p=prompt)]).tokens,
                self.backbone.content_weights([prompt], template=template).to(self.backbone.device),
            )
            for name, template in (("positive", self.config.positive), ("negative", self.config.negative))
        }

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
        from lotts.capture import AttentionRecorder

        super().__init__(config, backbone, prompt, batch, size, steps, text)
        templates = (config.positive, config.negative)
        weight = torch.cat([backbone.content_weights([prompt], template=t).expand(batch, -1) for t in templates])
        prompts = [backbone.embed([t.format(p=prompt)]).repeat(batch) for t in templates]
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


class LateWatch:
    """A watch that looks at nothing while samples are denoised, only at what came of them."""

    rows = captured = judgements = 0

    def __enter__(self) -> LateWatch:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def steps(self) -> list[int]:
        return []

    def step(self, index: int, latents: torch.Tensor) -> AbstractContextManager[None]:
        return nullcontext()

    def maps(self, latents_at: LatentsAt) -> Heatmaps:
        raise NotImplementedError


class PredictionSource:
    """How far the model's predictions under the two quality prompts lie apart: two extra rows a level and candidate.

    Args:
        levels: shares of the steps, from pure noise, at which the candidate is looked at; None: what the model's family takes.
    """

    name, text_encodes = "prediction", 2

    def __init__(self, levels: tuple[float, ...] | None = None) -> None:
        if levels is not None and not (levels and all(0 <= level < 1 for level in levels)):
            raise ValueError(f"expected levels as shares of the steps in [0, 1), got {levels}")
        self.levels = levels

    def rows(self, backbone: Backbone, steps: int) -> int:
        return 2 * len(self._steps(backbone, steps))

    def watch(self, backbone, prompt, seeds, size, steps, text) -> PredictionWatch:
        return PredictionWatch(backbone, prompt, len(seeds), self._steps(backbone, steps), text)

    def _steps(self, backbone: Backbone, steps: int) -> list[int]:
        return sorted({int(level * steps) for level in self.levels or backbone.prediction_levels})


class PredictionWatch(LateWatch):
    def __init__(self, backbone: Backbone, prompt: str, batch: int, steps: list[int], text: Conditioning) -> None:
        self.backbone, self._steps = backbone, steps
        templates = (QUALITY_POSITIVE, QUALITY_NEGATIVE)
        prompts = [backbone.embed([t.format(p=prompt)]).repeat(batch) for t in templates]
        self.text = Conditioning(Embedding.cat(prompts), embedded_guidance=text.embedded_guidance)

    def maps(self, latents_at: LatentsAt) -> Heatmaps:
        total: torch.Tensor | float = 0.0
        for step in self._steps:
            latents = latents_at(step)
            positive, negative = self.backbone.predict(torch.cat([latents, latents]), step, self.text).float().chunk(2)
            self.rows += 2 * len(latents)
            total = total + (positive - negative).square().sum(1).sqrt()
        assert isinstance(total, torch.Tensor)
        return {"P": total / len(self._steps)}


#: A name and what makes the source: a class, or "module:attribute" of one that is only needed when it is asked for.
SOURCES: dict[str, type | str] = {
    "attention": AttentionSource,
    "prediction": PredictionSource,
    "verifier": "lotts.verifier_source:VerifierSource",
    "random": "lotts.controls:RandomSource",
    "defects": "lotts.controls:DefectsSource",
    "foreground": "lotts.controls:ForegroundSource",
}


def map_source(source: str | MapSource, verifier: Judge) -> MapSource:
    """A source by name, or the given one. ``verifier`` is the run's, which may be a source itself."""
    if isinstance(source, str):
        if source not in SOURCES:
            raise ValueError(
                f"expected a map source out of {', '.join(SOURCES)} or an object with watch(), got {source!r}"
            )
        found = SOURCES[source]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = getattr(importlib.import_module(module), attribute)
        return found(verifier) if source == "verifier" else found()
    if not hasattr(source, "watch"):
        raise TypeError(f"expected a map source with a watch() method, got {type(source).__name__}")
    return source


def recorded_name(source: MapSource, verifier: Judge) -> str | None:
    """The name by which ``map_source`` makes this very source again; None where it has arguments, or is none of ours."""
    name = getattr(source, "name", None)
    if name not in SOURCES or (name == "verifier" and not hasattr(verifier, "defect_maps")):
        return None
    again = map_source(name, verifier)
    return name if type(again) is type(source) and vars(again) == vars(source) else None
