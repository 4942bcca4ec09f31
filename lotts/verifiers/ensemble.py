"""Several verifiers as one: their ranks or standard scores within the pictures of a prompt, averaged with weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lotts.verifiers.base import Judge, check_finite, placed


@dataclass(frozen=True)
class Member:
    """A verifier of an ensemble and how much it counts."""

    name: str
    judge: Judge
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight) or self.weight <= 0:
            raise ValueError(f"expected a weight above 0 for {self.name}, got {self.weight}")


class Ensemble:
    """The weighted mean of how several verifiers place a picture among those of its prompt.

    A score says where a picture stands in the set that it was scored with, and nothing about another set: the same
    picture scores otherwise in other company, and alone it scores as an average one. ``LoTTS`` and ``repair`` score their
    whole pool in one call, which is one set, so the best sample and ``improvement`` mean what they say within a run;
    neither compares between two runs, two calls or two prompts. A pool of two is a vote. Pictures with different prompts
    in one call are sets of their own.

    Pictures that tie have the same score to the bit, so that a choice of the first of the highest takes the lowest index.

    Args:
        members: at least two.
        method: "rank": the share of the other pictures that it beats, half for a tie, in [0, 1]; how far apart scores are
            plays no part. "zscore": distance from the set's mean in standard deviations; 0 where a member scores all alike.

    Raises:
        ValueError: fewer members, two of the same name, one that has a score for pictures it could not judge, or no such method.
    """

    higher_is_better = True
    follows = True
    #: Scores compare within one call alone.
    relative = True
    device = torch.device("cpu")  # its members say where they are; they move one at a time

    def __init__(self, members: Sequence[Member], method: str = "rank") -> None:
        if len(members) < 2:
            raise ValueError(f"expected at least 2 verifiers in an ensemble, got {len(members)}")
        if method not in METHODS:
            raise ValueError(f"expected method to be one of {', '.join(METHODS)}, got {method!r}")
        names = [member.name for member in members]
        if len(set(names)) < len(names):
            raise ValueError(f"expected different verifiers in an ensemble, got {', '.join(names)}: use a weight")
        for member in members:
            if getattr(member.judge, "on_failure", "raise") != "raise":
                raise ValueError(
                    f"expected {member.name} with on_failure='raise' in an ensemble, got {member.judge.on_failure!r}: "  # type: ignore[attr-defined]
                    "the others would lift a picture that it could not judge"
                )
        self.members, self.method = list(members), method
        told = ",".join(f"{member.name}:{member.weight:g}" for member in members)
        self.name = f"{method}({told})"
        versions = (getattr(member.judge, "version", member.name) for member in members)
        self.version = ", ".join(versions)
        unit = "share of the other pictures beaten, 0 to 1" if method == "rank" else "standard deviations from the mean"
        self.scale = f"weighted mean over {told} of the {unit}, within the pictures of one prompt and call"
        self._target: str | torch.device | None = None

    def check_prompt(self, prompt: str) -> None:
        """Raises ValueError for a prompt that a member cannot judge."""
        for member in self.members:
            if hasattr(member.judge, "check_prompt"):
                member.judge.check_prompt(prompt)

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The members' caches by their names."""
        return {
            member.name: member.judge.encode_prompts(prompts)
            for member in self.members
            if hasattr(member.judge, "encode_prompts")
        }

    def score(
        self,
        images: Sequence[Any],
        prompts: Sequence[str],
        cache: dict[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> torch.Tensor:
        """Scores float32 [N], each relative to the pictures that have the same prompt in this call.

        Raises:
            ValueError: as the members do, or a member's scores are too few or not finite.
        """
        if isinstance(prompts, str) or len(images) != len(prompts):
            raise ValueError(f"expected one prompt for each of {len(images)} images, got {len(prompts)}")
        by_member = self.score_each(images, prompts, cache, batch_size)
        return combine(by_member, [member.weight for member in self.members], prompts, self.method)

    def score_each(
        self,
        images: Sequence[Any],
        prompts: Sequence[str],
        cache: dict[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> torch.Tensor:
        """The members' own scores float64 [members, N], higher is better."""
        rows = []
        for member in self.members:
            judge: Any = member.judge
            with placed(judge, self._target):
                if hasattr(judge, "score"):
                    known = None if cache is None else cache.setdefault(member.name, {})
                    scores = judge.score(images, prompts, known, batch_size)
                    scores = scores if judge.higher_is_better else -scores
                else:
                    scores = judge(images, prompts)
            row = torch.as_tensor(scores, dtype=torch.float64).flatten()
            if len(row) != len(images):
                raise ValueError(
                    f"expected one score for each of {len(images)} pictures, got {len(row)} of {member.name}"
                )
            check_finite(member.name, row, prompts)
            rows.append(row)
        return torch.stack(rows)

    def __call__(self, images: Sequence[Any], prompts: Sequence[str]) -> list[float]:
        """``score`` as numbers."""
        return self.score(images, prompts).tolist()

    def to(self, device: str | torch.device) -> Ensemble:
        """Move the members that can move, all at once; returns the ensemble."""
        for member in self.members:
            if hasattr(member.judge, "to"):
                member.judge.to(device)
        return self

    def offload(self) -> Ensemble:
        """Move the members to the CPU; returns the ensemble."""
        for member in self.members:
            if hasattr(member.judge, "offload"):
                member.judge.offload()
        return self

    @contextmanager
    def on(self, device: str | torch.device) -> Iterator[Ensemble]:
        """While it lasts, each member that rests on the CPU moves in to score and out again, one at a time."""
        before, self._target = self._target, device
        try:
            yield self
        finally:
            self._target = before


def combine(
    scores: torch.Tensor, weights: Sequence[float], prompts: Sequence[str], method: str = "rank"
) -> torch.Tensor:
    """Scores float32 [N] of members' scores [members, N], relative to the columns that have the same prompt.

    They do not depend on the order of the members or the pictures, nor, with "rank", on any rising function of a member's
    scores; with "zscore", on its scale and offset.
    """
    total = torch.zeros(scores.shape[1], dtype=torch.float64)
    for prompt in dict.fromkeys(prompts):
        columns = torch.tensor([index for index, other in enumerate(prompts) if other == prompt])
        placed_at = METHODS[method](scores[:, columns].double())
        weighted = (placed_at * torch.tensor(weights, dtype=torch.float64)[:, None]).T.tolist()
        total[columns] = torch.tensor([math.fsum(row) / math.fsum(weights) for row in weighted], dtype=torch.float64)
    # Ten digits: what ties on paper must tie in bits, or the last bit of a sum would pick.
    return total.round(decimals=10).float()


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Of [members, N], the share of a row's others that each beats, a tie as half, in [0, 1]; 0.5 for N = 1."""
    count = scores.shape[1]
    if count == 1:
        return torch.full_like(scores, 0.5)
    beaten = (scores[:, :, None] > scores[:, None, :]).sum(-1)
    tied = (scores[:, :, None] == scores[:, None, :]).sum(-1) - 1
    return (beaten + 0.5 * tied) / (count - 1)


def zscores(scores: torch.Tensor) -> torch.Tensor:
    """Of [members, N], distance from a row's mean in its standard deviations (over N, not N - 1); 0 in a row of equals."""
    spread = scores.amax(1, keepdim=True) - scores.amin(1, keepdim=True)
    # From the least and by the spread first: large offsets and tiny or huge scales then lose no digits.
    unit = (scores - scores.amin(1, keepdim=True)) / torch.where(spread > 0, spread, 1.0)
    deviation = unit.std(1, correction=0, keepdim=True)
    return torch.where(spread > 0, (unit - unit.mean(1, keepdim=True)) / torch.where(spread > 0, deviation, 1.0), 0.0)


METHODS = {"rank": ranks, "zscore": zscores}
