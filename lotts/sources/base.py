"""What a map source is: who watches candidates while they are denoised, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from lotts.backbones import Backbone, Conditioning

Heatmaps = dict[str, torch.Tensor]
LatentsAt = Callable[[int], torch.Tensor]


class NothingSeen(RuntimeError):
    """A watch was not shown the steps in which there was something to see."""


class Watch(Protocol):
    """One batch of B candidates under observation.

    ``rows`` counts network rows spent beyond the candidates' own, ``captured`` those of the candidates' own in which attention
    was read as well, ``decodes`` pictures decoded, ``judgements`` those shown to the verifier. ``maps`` raises ``NothingSeen``
    where it was shown too little.
    """

    rows: int
    captured: int
    decodes: int
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
    where the sample begins at step ``first`` of ``steps``; ``text_encodes`` the texts that the first watch of a run encodes;
    ``reads_steps`` whether its watch looks on while a sample is denoised, for which all of the network has to be computed, or
    only at what came of it.
    A source whose map has a scale may have ``sure``, the level above which it holds something for wrong.
    A source may have ``check(backbone, prompt, steps)``, which raises ValueError, before any compute, where it could find nothing.
    """

    name: str
    text_encodes: int
    reads_steps: bool

    def rows(self, backbone: Backbone, steps: int, first: int = 0) -> int: ...

    def watch(
        self,
        backbone: Backbone,
        prompt: str,
        seeds: Sequence[int],
        size: tuple[int, int],
        steps: int,
        text: Conditioning,
    ) -> Watch: ...


class LateWatch:
    """A watch that looks at nothing while samples are denoised, only at what came of them."""

    rows = captured = decodes = judgements = 0

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
