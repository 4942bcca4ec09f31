"""What is recorded at one attention layer: the maps of each forward, added up and never the attention matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lotts.capture.grids import match_rows
from lotts.kernels import contrast_attention, propagate_attention

if TYPE_CHECKING:
    from lotts.capture.recorder import AttentionRecorder


class MapSum:
    """The maps of one kind that a layer made, added up.

    `total` is the fp32 sum [B, H, N, C] over `forwards` forwards, both None before the first. The count is a tensor because
    torch.compile would specialise on a Python number and compile again at each forward.
    """

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.forwards: torch.Tensor | None = None

    def begin_forward(self, name: str, like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The sum so far, to which this forward is about to add."""
        if self.total is None or self.forwards is None:
            # A tensor made in inference mode could not be added to outside of it.
            with torch.inference_mode(False):
                dtype = torch.promote_types(like.dtype, torch.float32)
                self.total = torch.zeros(shape, dtype=dtype, device=like.device)
                self.forwards = torch.zeros((), dtype=torch.float32, device=like.device)
        if self.total.shape != shape:
            raise RuntimeError(
                f"{name} recorded maps of shape {tuple(self.total.shape)} [B, H, N, C] and now gets {tuple(shape)}: call "
                "reset() between runs that differ in batch or map columns"
            )
        self.forwards.add_(1.0)
        return self.total


class LayerRecorder(ABC):
    """The attention handler of one layer, and the sums of the maps it makes, by kind: "cross", "self"."""

    kinds: tuple[str, ...]

    def __init__(self, name: str, attn: nn.Module, recorder: AttentionRecorder):
        self.name = name
        self.attn = attn
        self.recorder = recorder
        self.sums: dict[str, MapSum] = {}
        self.reset()
        self.native_reason: str | None = None

    @abstractmethod
    def attend(self, native: Any, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **kwargs):
        """See ``lotts.capture.patch.AttentionHandler``."""

    def reset(self) -> None:
        self.sums = {kind: MapSum() for kind in self.kinds}

    def mean(self, kind: str) -> torch.Tensor | None:
        """Mean over forwards, [B, H, C, h, w] on the layer's own grid; None when nothing of the kind was recorded."""
        found = self.sums.get(kind)
        if found is None or found.total is None or found.forwards is None:
            return None
        height, width = self.recorder.grids[found.total.shape[2]]
        return (found.total / found.forwards).transpose(2, 3).unflatten(-1, (height, width))

    def _check_length(self, tokens: int) -> None:
        if tokens not in self.recorder.grids:
            raise ValueError(
                f"{self.name} has {tokens} query tokens, but latent_size {self.recorder.latent_size} halves to "
                f"{sorted(self.recorder.grids, reverse=True)} tokens: give the size of the latents the model runs on"
            )


class PlainLayerRecorder(LayerRecorder):
    """A layer of image queries: it records rows of its batch in one op, and runs the others through plain attention."""

    @abstractmethod
    def wanted(self) -> bool:
        """Whether the recorder's switches ask for this layer at this forward."""

    @abstractmethod
    def map_columns(self) -> int:
        """C, the number of maps this layer makes."""

    @abstractmethod
    def attend_and_map(self, query, key, value, scale, rows: tuple[int, int], total: torch.Tensor) -> torch.Tensor:
        """The attention output [B, H, N, D]; maps of ``rows`` of the batch are added to ``total`` [R, H, N, C] in place."""

    def attend(
        self,
        native: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **kwargs,
    ) -> torch.Tensor:
        recording = self.wanted()
        if recording and (attn_mask is not None or dropout_p or is_causal or kwargs):
            self.native_reason = "it attends under a mask, dropout or grouped queries"
            recording = False
        if not recording:
            return native(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)

        start, stop = self.recorder.row_range(query.shape[0])
        self._check_length(query.shape[2])
        (kind,) = self.kinds
        shape = (stop - start, *query.shape[1:3], self.map_columns())
        total = self.sums[kind].begin_forward(self.name, query, shape)
        return self.attend_and_map(query, key, value, scale, (start, stop), total)


def beside_other_rows(out, start: int, stop: int, query, key, value, attention: Any) -> torch.Tensor:
    """The output of the rows from ``start`` to ``stop`` between those that ``attention`` gives for the rest."""
    rows = query.shape[0]
    if stop - start == rows:
        return out
    parts = [out]
    if start > 0:
        parts.insert(0, attention(query[:start], key[:start], value[:start]))
    if stop < rows:
        parts.append(attention(query[stop:], key[stop:], value[stop:]))
    # Joined as [B, N, H, D], the layout attention returns and the output projection reads without a copy.
    return torch.cat([part.transpose(1, 2) for part in parts]).transpose(1, 2)


class CrossAttentionLayer(PlainLayerRecorder):
    """Attention mass on weighted text tokens: of the prompt itself, and of the two quality prompts."""

    kinds = ("cross",)

    def __init__(self, name: str, attn: nn.Module, recorder: AttentionRecorder):
        super().__init__(name, attn, recorder)
        self.key_pos: torch.Tensor | None = None
        self.key_neg: torch.Tensor | None = None

    def wanted(self) -> bool:
        return self.recorder.record_cross and self.recorder.cross_columns > 0

    def map_columns(self) -> int:
        return self.recorder.cross_columns

    def forget_keys(self) -> None:
        """Drop the quality prompts' keys: the projection that made them may have changed (LoRA loaded, rescaled)."""
        self.key_pos = None
        self.key_neg = None

    def attend_and_map(self, query, key, value, scale, rows, total):
        recorder, count, probes = self.recorder, rows[1] - rows[0], {}
        weight = recorder.weight
        if weight is not None:
            if weight.shape[1] != key.shape[2]:
                raise ValueError(
                    f"{self.name} attends to {key.shape[2]} text tokens, but weight [B, L, C] is given for "
                    f"{weight.shape[1]}"
                )
            weight = match_rows(beside(query, weight), count)
        if recorder.positive is not None:
            if self.key_pos is None:
                self.key_pos = self._project(recorder.positive[0], query)
            probes["key_pos"] = match_rows(self.key_pos, count)
            probes["weight_pos"] = match_rows(beside(query, recorder.positive[1]), count)
        if recorder.negative is not None:
            if self.key_neg is None:
                self.key_neg = self._project(recorder.negative[0], query)
            probes["key_neg"] = match_rows(self.key_neg, count)
            probes["weight_neg"] = match_rows(beside(query, recorder.negative[1]), count)
        return contrast_attention(query, key, value, weight, scale=scale, rows=rows, accumulate=total, **probes)[0]

    def _project(self, embeds: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Keys [B, H, L, D] of a prompt, by the layer's own path: norm, `to_k` as a module (LoRA counts), key norm.

        Done inside the forward, not before: only there are offloaded weights on the device and LoRA scales set.
        """
        attn: Any = self.attn
        with torch.no_grad():
            embeds = embeds.to(device=query.device, dtype=query.dtype)
            if attn.norm_cross:
                embeds = attn.norm_encoder_hidden_states(embeds)
            key = attn.to_k(embeds).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return attn.norm_k(key) if attn.norm_k is not None else key


class SelfAttentionLayer(PlainLayerRecorder):
    """Maps carried through self-attention: softmax(Q K^T) applied to each map as a column (paper: SA @ CA)."""

    kinds = ("self",)

    def wanted(self) -> bool:
        return self.recorder.record_self and self.recorder.columns is not None

    def map_columns(self) -> int:
        columns = self.recorder.columns
        return 0 if columns is None else columns.shape[1]

    def attend_and_map(self, query, key, value, scale, rows, total):
        columns = match_rows(beside(query, self.recorder.columns_by_length[query.shape[2]]), rows[1] - rows[0])
        return propagate_attention(query, key, value, columns, scale=scale, rows=rows, accumulate=total)[0]


def beside(query: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weights on the query's device, fp32 (fp64 for a model in fp64): the dtype of the maps they make."""
    return weights.to(query.device, torch.promote_types(query.dtype, torch.float32))
