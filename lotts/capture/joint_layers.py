"""What is recorded at one attention layer over text and image tokens at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lotts.capture.layers import LayerRecorder, beside, beside_other_rows
from lotts.kernels import propagate_attention

if TYPE_CHECKING:
    from lotts.capture.joint import JointStream
    from lotts.capture.recorder import AttentionRecorder


class JointAttentionLayer(LayerRecorder):
    """Attention over text and image tokens at once; makes maps of both kinds in one op.

    Of an image query: the mass on weighted tokens of the prompt, within the whole sequence; the mass on each quality
    prompt's probe tokens, beside the image alone; and maps carried through its attention to the image.

    Args:
        selected: whether the layer's maps are wanted; where probe tokens ride, it has to carry them all the same.
    """

    kinds = ("cross", "self")

    def __init__(self, name: str, attn: nn.Module, recorder: AttentionRecorder, selected: bool):
        super().__init__(name, attn, recorder)
        self.selected = selected

    def attend(
        self, native, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **kwargs
    ) -> torch.Tensor:
        stream = self.recorder.stream
        special = attn_mask is not None or dropout_p or is_causal or kwargs
        if stream is None or (stream.columns is None and not stream.probes):
            return native(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)
        tokens = query.shape[2]
        alone = tokens == stream.image  # a layer beside the joint one, for the image only
        if tokens != stream.tokens and not alone:
            raise RuntimeError(
                f"{self.name} has {tokens} tokens, expected {stream.text} of the text, {stream.probes} probes and "
                f"{stream.image} of the image"
            )
        if special and stream.probes and not alone:
            raise RuntimeError(
                f"{self.name} attends under a mask, dropout or grouped queries, which probe tokens cannot ride with: use "
                "AttentionSource(contrast='batch')"
            )
        if special:
            self.native_reason = "it attends under a mask, dropout or grouped queries"
        if special or not self.selected or (alone and not stream.maps):
            if alone or not stream.probes:
                return native(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)
            return _carried(stream, query, key, value, lambda *qkv: native(*qkv, scale=scale))
        self._check_length(stream.image)
        start, stop = self.recorder.row_range(query.shape[0])
        recorded = [tensor[start:stop] for tensor in (query, key, value)]
        out = self._record_alone(stream, recorded, scale) if alone else self._record(stream, recorded, scale)

        def rest(q, k, v):
            if alone or not stream.probes:
                return native(q, k, v, scale=scale)
            return _carried(stream, q, k, v, lambda *qkv: native(*qkv, scale=scale), idle=True)

        return beside_other_rows(out, start, stop, query, key, value, rest)

    def _record(self, stream: JointStream, recorded: list[torch.Tensor], scale: float | None) -> torch.Tensor:
        query, columns = recorded[0], stream.columns
        assert columns is not None
        probes: dict[str, Any] = {}
        if stream.probes:
            probes = {
                "probe_sizes": stream.probes, "probe_start": stream.probe_start, "context": stream.image_span
            }  # fmt: skip
        out, maps = propagate_attention(*recorded, beside(query, columns), scale=scale, **probes)
        low, high = stream.image_span
        seen = maps[:, :, low:high]
        words, carried, rest = seen.tensor_split((stream.words, stream.words + stream.maps), dim=-1)
        image, masses = rest.tensor_split((columns.shape[-1] - stream.words - stream.maps,), dim=-1)
        cross = torch.cat([words, masses], dim=-1)
        if cross.shape[-1]:
            self._add("cross", query, cross)
        if stream.maps:
            # Among the image's tokens alone: what goes to the text carries no map.
            self._add("self", query, carried / image)
        return out

    def _record_alone(self, stream: JointStream, recorded: list[torch.Tensor], scale: float | None) -> torch.Tensor:
        assert stream.columns is not None
        columns = stream.columns[:, slice(*stream.image_span), stream.words : stream.words + stream.maps]
        out, maps = propagate_attention(*recorded, beside(recorded[0], columns), scale=scale)
        self._add("self", recorded[0], maps)
        return out

    def _add(self, kind: str, query: torch.Tensor, maps: torch.Tensor) -> None:
        self.sums[kind].begin_forward(self.name, query, tuple(maps.shape)).add_(maps)


def _carried(stream: JointStream, query, key, value, attention: Any, idle: bool = False) -> torch.Tensor:
    """Joint attention in which probe groups see themselves and the image, and nothing sees them; no maps.

    ``idle``: nothing reads the probes of these rows, so that they need not attend.
    """
    start, stop = stream.probe_start, stream.probe_start + sum(stream.probes)
    low, high = stream.image_span

    def main(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[:, :, :start], tensor[:, :, stop:]], dim=2)

    rest = attention(main(query), main(key), main(value))
    groups, end = [], start
    for size in stream.probes:
        group, end = slice(end, end + size), end + size
        beside = [torch.cat([tensor[:, :, group], tensor[:, :, low:high]], dim=2) for tensor in (key, value)]
        groups.append(torch.zeros_like(query[:, :, group]) if idle else attention(query[:, :, group], *beside))
    return torch.cat([rest[:, :, :start], *groups, rest[:, :, start:]], dim=2)
