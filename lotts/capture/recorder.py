"""Record cross-attention maps and propagated self-attention maps while a diffusers model runs."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lotts.capture.grids import resize_maps, token_grids
from lotts.capture.joint import IMAGE_TEXT, TEXT_IMAGE, JointStream, joint_stream
from lotts.capture.joint_layers import JointAttentionLayer
from lotts.capture.layers import CrossAttentionLayer, LayerRecorder, SelfAttentionLayer
from lotts.capture.patch import attention_modules, compiled_blocks, patched_attention, uncompiled
from lotts.capture.selection import LayerFilter, check_layers, layer_filter

Probe = tuple[torch.Tensor, torch.Tensor]
Rows = slice | Callable[[int], slice] | None


@dataclass(frozen=True)
class CaptureReport:
    """Which attention layers a capture covers, by module name, and why the others run native."""

    cross_layers: tuple[str, ...] = ()
    self_layers: tuple[str, ...] = ()
    native_layers: dict[str, str] = field(default_factory=dict)
    joint_layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.cross_layers)} cross-attention and {len(self.self_layers)} self-attention layers captured"]
        if self.joint_layers:
            lines = [f"{len(self.joint_layers)} joint attention layers captured"]
        lines += [f"native: {name} ({reason})" for name, reason in self.native_layers.items()]
        return "\n".join(lines)


class AttentionRecorder:
    """Patches a model's attention within a `with` block and averages the maps it asks for.

    Args:
        model: a diffusers model such as `pipe.unet`, compiled or not.
        weight: fp32 [B, L, C], 0/1 weights on the prompt's L tokens; each column gives one map, the attention mass in
            [0, 1] on its tokens. B may be 1, or the number of prompts when each prompt makes several images.
        positive: (embeds [B|1, Lp, E], weight fp32 [B|1, Lp]) of the positive quality prompt, or None.
        negative: likewise for the negative quality prompt.
        latent_size: (height, width) of the latents the model runs on.
        layers: which layers to record: None for all, a sequence of substrings of module names, or a predicate on them.
        order: of a transformer's joint sequence, "text, image" or "image, text"; None for a U-Net. In a joint sequence the
            quality prompts' tokens of weight 1 ride along as probe tokens (`lotts.capture.joint`).

    The caller switches between forwards; a layer whose switch is off costs its plain attention and nothing more:
        record_cross: record cross-attention maps, with the columns [weight..., positive, negative].
        record_self: record self-attention maps, when `columns` is set too.
        columns: fp32 [B, C', h, w] at latent_size, the maps that self-attention propagates, or None.
        rows: batch rows to record, the conditional ones under classifier-free guidance: a slice, a function from the
            batch size to a slice, or None for all. The other rows run through plain attention.

    The model's output is bit-identical to the unpatched model's wherever the ops run their portable implementation.
    Under `torch.compile` the first recorded forward makes the buffers and the second compiles once more; repeated blocks that
    were compiled one by one run eagerly, where there are too many for a graph each.

    Raises:
        ValueError: shapes that do not fit, or a name in `layers` that matches no layer; on entering, when none of the
            model's attention layers is supported.
        RuntimeError: on entering, when the model is already patched.
    """

    def __init__(
        self,
        model: nn.Module,
        weight: torch.Tensor | None = None,
        positive: Probe | None = None,
        negative: Probe | None = None,
        *,
        latent_size: tuple[int, int],
        layers: LayerFilter = None,
        order: str | None = None,
    ):
        if order not in (None, TEXT_IMAGE, IMAGE_TEXT):
            raise ValueError(f"expected order None, {TEXT_IMAGE!r} or {IMAGE_TEXT!r}, got {order!r}")
        if weight is not None and weight.ndim != 3:
            raise ValueError(f"expected weight [B, L, C], got shape {tuple(weight.shape)}")
        self.model = model
        self.weight = None if weight is None else weight.float()
        self.order = order or ""
        self.stream: JointStream | None = None
        probes = {"positive": positive, "negative": negative}
        self.positive, self.negative = (
            _checked_probe(name, probe) if order is None else _probe_tokens(name, _checked_probe(name, probe))
            for name, probe in probes.items()
        )
        self.latent_size = (int(latent_size[0]), int(latent_size[1]))
        self.grids = token_grids(self.latent_size)
        self.record_cross = False
        self.record_self = False
        self.rows: Rows = None
        self._columns: torch.Tensor | None = None
        self.columns_by_length: dict[int, torch.Tensor] = {}
        self._selected = layer_filter(layers, list(attention_modules(model)))
        self._layers: dict[str, LayerRecorder] = {}
        self._native: dict[str, str] = {}
        self._patch = ExitStack()

    @property
    def cross_columns(self) -> int:
        """How many cross-attention maps a layer makes: the columns of ``weight`` and one a quality prompt."""
        columns = 0 if self.weight is None else self.weight.shape[2]
        return columns + (self.positive is not None) + (self.negative is not None)

    @property
    def columns(self) -> torch.Tensor | None:
        return self._columns

    @columns.setter
    def columns(self, columns: torch.Tensor | None) -> None:
        if columns is not None and (columns.ndim != 4 or tuple(columns.shape[-2:]) != self.latent_size):
            raise ValueError(f"expected columns [B, C, {self.latent_size}], got shape {tuple(columns.shape)}")
        self._columns = columns
        # Resized here, once for each level of the model, and not in each of its layers.
        self.columns_by_length = (
            {}
            if columns is None
            else {
                tokens: resize_maps(columns.float(), grid).flatten(2).transpose(1, 2).contiguous()
                for tokens, grid in self.grids.items()
            }
        )

    def __enter__(self) -> "AttentionRecorder":
        previous, self._layers, self._native = self._layers, {}, {}
        modules = attention_modules(self.model)
        probes = self.positive is not None or self.negative is not None
        self._native = check_layers(modules, self._selected, self.order, probes=probes)
        for name, attn in modules.items():
            if name in self._native or not (self.order or self._selected(name)):
                continue
            layer = previous.get(name) or self._layer(name, attn)
            if isinstance(layer, CrossAttentionLayer):
                layer.forget_keys()
            self._layers[name] = layer
        with ExitStack() as stack:
            stack.enter_context(uncompiled(compiled_blocks(self.model)))
            stack.enter_context(patched_attention(modules, self._layers))
            if self.order:
                stack.enter_context(joint_stream(self.model, self))
            self._patch = stack.pop_all()
        return self

    def _layer(self, name: str, attn: Any) -> LayerRecorder:
        if self.order:
            return JointAttentionLayer(name, attn, self, self._selected(name))
        return (CrossAttentionLayer if attn.is_cross_attention else SelfAttentionLayer)(name, attn, self)

    def __exit__(self, *exc_info) -> None:
        self._patch.close()

    def row_range(self, rows: int) -> tuple[int, int]:
        """First and one-past-last of the recorded rows in a batch of `rows`."""
        chosen = self.rows(rows) if callable(self.rows) else self.rows
        if chosen is None:
            return 0, rows
        start, stop, step = chosen.indices(rows)
        if step != 1 or start >= stop:
            raise ValueError(f"rows {chosen} leaves nothing contiguous to record in a batch of {rows}")
        return start, stop

    def cross_maps(self, layers: LayerFilter = None) -> torch.Tensor:
        """Cross-attention maps fp32 [B, C, h, w] in [0, 1], columns [weight..., positive, negative].

        The mean over heads, forwards and the recorded layers, each resized to latent_size; `layers` narrows them.
        Raises RuntimeError when nothing was recorded.
        """
        return self._mean_maps("cross", layers)

    def self_maps(self, layers: LayerFilter = None) -> torch.Tensor:
        """Propagated maps fp32 [B, C', h, w], averaged as `cross_maps`; RuntimeError when nothing was recorded."""
        return self._mean_maps("self", layers)

    def layer_maps(self, kind: str) -> dict[str, torch.Tensor]:
        """Layer name -> fp32 [B, H, C, h_layer, w_layer], the mean over forwards with heads kept.

        `kind` is "cross" or "self"; layers that recorded nothing are left out.
        """
        if kind not in ("cross", "self"):
            raise ValueError(f'expected kind "cross" or "self", got {kind!r}')
        means = {name: layer.mean(kind) for name, layer in self._layers.items()}
        return {name: mean for name, mean in means.items() if mean is not None}

    def reset(self) -> None:
        """Forget everything recorded so far."""
        for layer in self._layers.values():
            layer.reset()

    def check_patched(self) -> None:
        """RuntimeError where a layer's processor is no longer the capture's: probe tokens would ride in the picture's own attention."""
        for name, layer in self._layers.items():
            processor = type(layer.attn.processor)
            if not hasattr(processor, "_lotts_hook"):
                raise RuntimeError(
                    f"expected {name} to keep its processor while it is captured, got {processor.__name__} since (perturbed-attention "
                    "pipelines set theirs at each call): no quality prompt can ride along. Use quality=False"
                )

    @property
    def report(self) -> CaptureReport:
        """What is captured; layers that met a mask while running are listed as native from then on."""
        masked = {name: layer.native_reason for name, layer in self._layers.items() if layer.native_reason is not None}
        active = {name: layer for name, layer in self._layers.items() if name not in masked}
        return CaptureReport(
            tuple(name for name, layer in active.items() if isinstance(layer, CrossAttentionLayer)),
            tuple(name for name, layer in active.items() if isinstance(layer, SelfAttentionLayer)),
            {**self._native, **masked},
            tuple(n for n, layer in active.items() if isinstance(layer, JointAttentionLayer) and layer.selected),
        )

    def _mean_maps(self, kind: str, layers: LayerFilter) -> torch.Tensor:
        recorded = self.layer_maps(kind)
        if not recorded:
            raise RuntimeError(f"no {kind}-attention maps were recorded: {self.report}")
        selected = layer_filter(layers, list(recorded))
        chosen = [resize_maps(maps.mean(1), self.latent_size) for name, maps in recorded.items() if selected(name)]
        return torch.stack(chosen).mean(0)


def _checked_probe(name: str, probe: Probe | None) -> Probe | None:
    if probe is None:
        return None
    embeds, weight = probe
    if embeds.ndim != 3 or weight.ndim != 2 or embeds.shape[1] != weight.shape[1]:
        raise ValueError(
            f"expected {name} as (embeds [B, L, E], weight [B, L]), got shapes {tuple(embeds.shape)} and "
            f"{tuple(weight.shape)}"
        )
    return embeds, weight.float()


def _probe_tokens(name: str, probe: Probe | None) -> Probe | None:
    """The tokens of weight 1 alone, [P, n, E] and ones [P, n]: those that ride in a joint sequence."""
    if probe is None:
        return None
    embeds, weight = probe
    weight = weight.expand(embeds.shape[0], -1) > 0
    counts = {int(row.sum()) for row in weight}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(
            f"expected prompts with the same number of content tokens in {name}, got {sorted(counts)}: their tokens ride side "
            "by side in one batch. Give prompts one at a time, or leave the quality prompts out (quality=False)"
        )
    return embeds[weight].unflatten(0, (embeds.shape[0], -1)), torch.ones(
        embeds.shape[0], *counts, device=embeds.device
    )
