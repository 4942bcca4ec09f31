"""Attention, layer by layer and step by step, as the localisation study reads it.

A reading is what one layer says of each token in one step, columns [N, 3]: of the prompt, of the positive and of the
negative quality prompt. ``content``: attention mass on their content tokens. ``quality words`` (U-Nets): mass on "high", "low"
and "quality" instead. ``outputs`` (transformers): how well an image token's attention output agrees with those of their
content tokens, as ConceptAttention (Helbling et al., 2025) reads concepts. ``spread`` [N, N] is what an image token attends to
among the image's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lotts.capture.joint import JointStream
from lotts.capture.joint_layers import JointAttentionLayer
from lotts.capture.patch import attention_modules, patched_attention
from lotts.capture.recorder import AttentionRecorder
from lotts.capture.tokens import QUALITY_NEGATIVE, QUALITY_POSITIVE, content_weights

TEMPLATES = {"original": None, "positive": QUALITY_POSITIVE, "negative": QUALITY_NEGATIVE}


class Tap:
    """What a layer of the conditional row has said so far."""

    def __init__(self) -> None:
        self.readings: dict[str, list[torch.Tensor]] = {}
        self.spread: list[torch.Tensor] = []

    def keep(self, reading: str, columns: list[torch.Tensor]) -> None:
        self.readings.setdefault(reading, []).append(torch.stack(columns, -1))

    def keep_spread(self, matrix: torch.Tensor) -> None:
        self.spread.append(matrix.half())


class SelfTap(Tap):
    def attend(self, native, query, key, value, **kwargs):
        self.keep_spread(_mean_attention(query[-1:], key[-1:]))
        return native(query, key, value, **kwargs)


class CrossTap(Tap):
    """``probes``: keys [1, H, L, D] (None: the layer's own) and weights [2, L] on content and quality words, a template each."""

    def __init__(self, probes: list[tuple[torch.Tensor | None, torch.Tensor]]) -> None:
        super().__init__()
        self.probes = probes

    def attend(self, native, query, key, value, **kwargs):
        found = [
            _mean_attention(query[-1:], key[-1:] if keys is None else keys) @ weights.T for keys, weights in self.probes
        ]
        (original, _), *quality = [columns.unbind(-1) for columns in found]
        self.keep("content", [original, *(content for content, _ in quality)])
        self.keep("quality words", [original, *(words for _, words in quality)])
        return native(query, key, value, **kwargs)


class JointTap(JointAttentionLayer):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.tap = Tap()

    def attend(self, native, query, key, value, *args, **kwargs):
        out = super().attend(native, query, key, value, *args, **kwargs)
        stream = self.recorder.stream
        if stream is not None and query.shape[2] == stream.tokens:
            self._keep(stream, query[-1:], key[-1:], out[-1].transpose(0, 1).flatten(1).float())
        return out

    def _keep(self, stream: JointStream, query: torch.Tensor, key: torch.Tensor, out: torch.Tensor) -> None:
        text, image = slice(*stream.text_span), slice(*stream.image_span)
        assert self.recorder.weight is not None
        words = self.recorder.weight[-1, : stream.text, 0]
        seen = _mean_attention(query[:, :, image], torch.cat([key[:, :, text], key[:, :, image]], 2))
        to_text, to_image = seen.split((stream.text, stream.image), -1)
        self.tap.keep_spread(to_image / to_image.sum(-1, keepdim=True))
        content, outputs = [to_text @ words], [out[image] @ (out[text].T @ words / words.sum())]
        start = stream.probe_start
        for size in stream.probes:
            group, start = slice(start, start + size), start + size
            beside = _mean_attention(query[:, :, image], torch.cat([key[:, :, group], key[:, :, image]], 2))
            content.append(beside[:, :size].sum(-1))
            outputs.append(out[image] @ out[group].mean(0))
        self.tap.keep("content", content)
        self.tap.keep("outputs", outputs)


class _JointTaps(AttentionRecorder):
    """Taps in place of the layers that record."""

    def _layer(self, name: str, attn: Any) -> JointTap:
        return JointTap(name, attn, self, self._selected(name))


@contextmanager
def tapped(backbone: Any, prompt: str) -> Iterator[Mapping[str, Tap]]:
    """Taps on every attention layer of the network, by name."""
    with (_tapped_transformer if backbone.order else _tapped_unet)(backbone, prompt) as taps:
        yield taps


@contextmanager
def _tapped_transformer(backbone: Any, prompt: str) -> Iterator[Mapping[str, Tap]]:
    weights = {name: backbone.content_weights([prompt], template=template) for name, template in TEMPLATES.items()}
    probes = {
        name: (backbone.embed([template.format(p=prompt)]).tokens, weights[name])
        for name, template in TEMPLATES.items()
        if template is not None
    }
    size = backbone.latent_size(*backbone.default_size)
    weight = weights["original"][..., None]
    recorder = _JointTaps(backbone.network, weight, latent_size=size, order=backbone.order, **probes)
    recorder.record_cross = True
    with recorder:
        yield {name: layer.tap for name, layer in recorder._layers.items() if isinstance(layer, JointTap)}


@contextmanager
def _tapped_unet(backbone: Any, prompt: str) -> Iterator[Mapping[str, Tap]]:
    tokenizer = backbone.pipe.tokenizer
    taps: dict[str, SelfTap | CrossTap] = {}
    modules: dict[str, Any] = {**attention_modules(backbone.network)}
    for name, module in modules.items():
        if not name.endswith("attn2"):
            taps[name] = SelfTap()
            continue
        probes = []
        for template in TEMPLATES.values():
            ids, weights = content_weights(tokenizer, [prompt], template=template)
            quality = torch.zeros_like(weights)
            if template is not None:
                words = tokenizer.convert_ids_to_tokens(ids[0].tolist())
                quality[0] = torch.tensor([float(w in ("high</w>", "low</w>", "quality</w>")) for w in words])
            keys = module.to_k(backbone.embed([prompt if template is None else template.format(p=prompt)]).tokens)
            heads = keys.unflatten(-1, (module.heads, -1)).transpose(1, 2)
            probes.append((None if template is None else heads, torch.cat([weights, quality])))
        taps[name] = CrossTap(probes)
    with patched_attention(backbone.network, taps):
        yield taps


def _mean_attention(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[N, M], the mean over the heads of one row's attention."""
    scores = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(-1).mean(1)[0]
