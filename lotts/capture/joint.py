"""Capture in transformers whose text and image tokens attend to one another (MMDiT: FLUX, Stable Diffusion 3).

Text is not a fixed set of keys there: it evolves with the image. So the quality prompts' content words ride along as probe
tokens behind the prompt's own: the stock blocks carry them, they attend to their own prompt and to the image, and nothing
attends to them. What the network predicts is what it predicts without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lotts.capture.grids import match_rows
from lotts.capture.patch import replaced

if TYPE_CHECKING:
    from lotts.capture.recorder import AttentionRecorder

#: Orders of the joint sequence.
TEXT_IMAGE, IMAGE_TEXT = "text, image", "image, text"


@dataclass(frozen=True)
class JointStream:
    """The tokens of one forward. ``probes``: tokens of each probe group, which follow the prompt's text.

    ``columns`` fp32 [B, text + probes + image, C], on recorded rows: weights on the prompt's tokens (``words`` of them), maps on the
    image's tokens (``maps``), and, after maps, the image itself.
    """

    order: str
    text: int
    image: int
    probes: tuple[int, ...] = ()
    columns: torch.Tensor | None = None
    words: int = 0
    maps: int = 0

    @property
    def tokens(self) -> int:
        return self.text + sum(self.probes) + self.image

    @property
    def probe_start(self) -> int:
        return self.text + (self.image if self.order == IMAGE_TEXT else 0)

    @property
    def text_span(self) -> tuple[int, int]:
        start = self.image if self.order == IMAGE_TEXT else 0
        return start, start + self.text

    @property
    def image_span(self) -> tuple[int, int]:
        start = 0 if self.order == IMAGE_TEXT else self.text + sum(self.probes)
        return start, start + self.image


@contextmanager
def joint_stream(model: nn.Module, recorder: AttentionRecorder) -> Iterator[None]:
    """Within the context every forward of ``model`` tells ``recorder`` its stream, with probes where the recorder wants them.

    A pass that is not the prompt's own (``_Passes``) has no stream and is not recorded.
    """
    model = getattr(model, "_orig_mod", model)
    names = list(signature(type(model).forward).parameters)[1:]
    passes = _Passes(model)
    # Below accelerate's hook where there is one: a pipeline's call ends by taking hooks off, and what they replaced `forward` with.
    place = "_old_forward" if hasattr(model, "_hf_hook") and hasattr(model, "_old_forward") else "forward"
    original: Any = getattr(model, place)

    def forward(*args: Any, **kwargs: Any) -> Any:
        kwargs.update(zip(names, args, strict=False))
        recorder.stream = None
        if passes.conditional(kwargs):
            recorder.stream = _stream(model, recorder, kwargs)
            if recorder.stream.probes:
                recorder.check_patched()
                _append_probes(recorder, kwargs)
        return original(**kwargs)

    try:
        with replaced(model, **{place: forward}, cache_context=passes.cache_context):
            yield
    finally:
        recorder.stream = None


class _Passes:
    """Whose pass of a step is running: the prompt's, the negative prompt's, or one without some layers (Stable Diffusion 3).

    A pipeline may name its passes for its caches ("cond", "uncond"). One that does not runs the negative prompt, where that has
    a pass of its own, as the second on the very same latents.
    """

    def __init__(self, model: Any) -> None:
        self.original = getattr(model, "cache_context", None)
        self.name: str | None = None
        self.latents: torch.Tensor | None = None

    def conditional(self, kwargs: dict[str, Any]) -> bool:
        """Whether the forward with these arguments, which is about to run, is the prompt's own."""
        if kwargs.get("skip_layers") is not None:
            return False
        if self.name is not None:
            return self.name != "uncond"
        latents = kwargs["hidden_states"]
        second = latents is self.latents
        self.latents = None if second else latents
        return not second

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        before, self.name = self.name, name
        try:
            if self.original is None:
                yield
            else:
                with self.original(name):
                    yield
        finally:
            self.name = before


def _stream(model: Any, recorder: AttentionRecorder, kwargs: dict[str, Any]) -> JointStream:
    hidden, text = kwargs["hidden_states"], kwargs["encoder_hidden_states"]
    height, width = recorder.latent_size
    packed = hidden.ndim == 3
    if hidden.shape[1] != height * width if packed else tuple(hidden.shape[-2:]) != (height, width):
        raise ValueError(
            f"expected latents of {height} x {width}, got {'tokens' if packed else 'latents'} of shape {tuple(hidden.shape)}: "
            "give the size of the latents the model runs on (height=, width= of the picture)"
        )
    image = height * width if packed else height * width // model.config.patch_size**2
    cross = recorder.record_cross and recorder.cross_columns > 0
    probes = [probe[0].shape[1] for probe in (recorder.positive, recorder.negative) if cross and probe is not None]
    stream = JointStream(recorder.order, text.shape[1], image, tuple(probes))
    start, stop = recorder.row_range(hidden.shape[0])
    weight = recorder.weight if cross else None
    maps = recorder.columns_by_length.get(image) if recorder.record_self else None
    if weight is None and maps is None and not probes:
        return stream
    device = hidden.device
    parts = []
    if weight is not None:
        # A shorter text is one that the pipeline was told to cut; what is cut off has no token.
        parts.append(_placed(match_rows(weight[:, : stream.text], stop - start), stream.text_span, stream, device))
    if maps is not None:
        parts.append(_placed(match_rows(maps, stop - start), stream.image_span, stream, device))
    if maps is not None or weight is None:
        parts.append(_placed(torch.ones(stop - start, image, 1, device=device), stream.image_span, stream, device))
    return JointStream(
        recorder.order,
        stream.text,
        image,
        stream.probes,
        torch.cat(parts, dim=-1),
        0 if weight is None else weight.shape[2],
        0 if maps is None else maps.shape[2],
    )


def _placed(columns: torch.Tensor, span: tuple[int, int], stream: JointStream, device: torch.device) -> torch.Tensor:
    """Columns [B, span, C] within zeros [B, tokens, C]."""
    whole = torch.zeros((columns.shape[0], stream.tokens, columns.shape[2]), device=device)
    whole[:, span[0] : span[0] + columns.shape[1]] = columns.to(device, torch.float32)
    return whole


def _append_probes(recorder: AttentionRecorder, kwargs: dict[str, Any]) -> None:
    """The probe tokens behind the text, in every row: in rows that are not recorded nothing reads them."""
    text = kwargs["encoder_hidden_states"]
    start, stop = recorder.row_range(text.shape[0])
    found = [probe[0] for probe in (recorder.positive, recorder.negative) if probe is not None]
    tokens = match_rows(torch.cat([part.to(text) for part in found], dim=1), stop - start)
    probes = tokens.new_zeros((text.shape[0], *tokens.shape[1:]))
    probes[start:stop] = tokens
    kwargs["encoder_hidden_states"] = torch.cat([text, probes], dim=1)
    if kwargs.get("txt_ids") is not None:  # FLUX gives all text the position 0
        ids = kwargs["txt_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        kwargs["txt_ids"] = torch.cat([ids, ids.new_zeros((probes.shape[1], ids.shape[1]))])
