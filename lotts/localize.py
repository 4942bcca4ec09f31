"""From attention maps to a defect map P and a mask (paper, "Defect localisation"): tensors only, no model.

Maps are fp32 [B, h, w] on the latent grid, one a candidate.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lotts.capture.tokens import QUALITY_NEGATIVE, QUALITY_POSITIVE, find_word

CONTRASTS = ("difference", "log_ratio")
REWEIGHTINGS = ("product", "sum", "diff", "orig")


@dataclass(frozen=True)
class LocalizeConfig:
    """How a defect map is made from attention; the defaults are measured (docs/localization.md).

    Args:
        contrast: CA_diff as ``difference`` CA_neg - CA_pos or as ``log_ratio`` log CA_neg - log CA_pos.
        sign: +1 where defects attend more under the low-quality prompt, -1 where they attend less.
        reweighting: P from CA'_diff and CA'_orig, each scaled to [0, 1]: their ``product`` (the paper's picture),
            their ``sum``, or one of them alone (``diff``, ``orig``; for ablation).
        cross_steps, self_steps: shares [from, to) of the sampler's steps, counted from pure noise, in which
            cross-attention is read and in which self-attention propagates what was read.
        layers: substrings of attention module names to read, or None for all.
        propagate: whether self-attention spreads the maps before they are combined (off only for ablation). A schedule so short
            that no step of ``self_steps`` comes after one of ``cross_steps`` (one step by default) has nothing to spread.
        positive, negative: the quality prompts, in which ``{p}`` stands for the prompt.
        words: words of the quality prompts whose attention is contrasted, such as ``("high", "low", "quality")``, each where it stands in
            a quality prompt outside of ``{p}``; None for the words of the prompt, as in the paper. Not beside the prompt of a
            transformer (``contrast="probes"`` of ``AttentionSource``), where the prompt's words are all that ride along.
    """

    contrast: str = "difference"
    sign: int = 1
    reweighting: str = "product"
    cross_steps: tuple[float, float] = (0.3, 0.8)
    self_steps: tuple[float, float] = (0.8, 1.0)
    layers: tuple[str, ...] | None = None
    propagate: bool = True
    positive: str = QUALITY_POSITIVE
    negative: str = QUALITY_NEGATIVE
    words: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("contrast", CONTRASTS), ("reweighting", REWEIGHTINGS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.sign not in (-1, 1):
            raise ValueError(f"expected sign to be 1 or -1, got {self.sign!r}")
        for name in ("positive", "negative"):
            if getattr(self, name).replace("{p}", "", 1).count("{") or "{p}" not in getattr(self, name):
                raise ValueError(f"expected {name} with {{p}} once, where the prompt goes, got {getattr(self, name)!r}")
        if self.words is not None:
            if isinstance(self.words, str):
                raise TypeError(f"expected words as a tuple of strings, got one string; write ({self.words!r},)")
            for name in ("positive", "negative"):
                if not any(find_word(getattr(self, name).replace("{p}", "\n"), word) for word in self.words):
                    raise ValueError(f"expected one of words {self.words} in {name}, got {getattr(self, name)!r}")
        for name in ("cross_steps", "self_steps"):
            low, high = getattr(self, name)
            if not 0 <= low < high <= 1:
                raise ValueError(f"expected {name} to be shares 0 <= from < to <= 1, got {(low, high)}")
        if self.self_steps[0] < self.cross_steps[0]:
            raise ValueError(
                "expected self_steps to begin no earlier than cross_steps: there is nothing to propagate before"
            )

    def step_range(self, name: str, num_inference_steps: int) -> range:
        """The steps of ``cross_steps`` or ``self_steps``; at least one."""
        low, high = getattr(self, name)
        first = min(int(low * num_inference_steps), num_inference_steps - 1)
        return range(first, max(first + 1, round(high * num_inference_steps)))

    def spreads(self, num_inference_steps: int) -> bool:
        """Whether a run of so many steps propagates: after its first map, a step must be left to carry it."""
        cross, spread = (self.step_range(name, num_inference_steps) for name in ("cross_steps", "self_steps"))
        return self.propagate and spread[-1] > cross[0]


def contrast(positive: torch.Tensor, negative: torch.Tensor, config: LocalizeConfig) -> torch.Tensor:
    """Prompt-driven discrimination: CA_diff from CA_pos and CA_neg."""
    if config.contrast == "log_ratio":
        floor = torch.finfo(torch.float32).tiny ** 0.5
        return config.sign * (negative.clamp_min(floor).log() - positive.clamp_min(floor).log())
    return config.sign * (negative - positive)


def unit_range(maps: torch.Tensor) -> torch.Tensor:
    """Each map [..., h, w] scaled linearly to [0, 1]; a constant map becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    spread = high - low
    return torch.where(
        spread > 0, (maps - low) / spread.clamp_min(torch.finfo(maps.dtype).tiny), torch.zeros_like(maps)
    )


def reweight(diff: torch.Tensor, original: torch.Tensor, config: LocalizeConfig) -> torch.Tensor:
    """Semantic-guided reweighting: the defect map P in [0, 1] from CA'_diff and CA'_orig."""
    diff, original = unit_range(diff), unit_range(original)
    return {
        "product": diff * original,
        "sum": (diff + original) / 2,
        "diff": diff,
        "orig": original,
    }[config.reweighting]


def smooth(maps: torch.Tensor) -> torch.Tensor:
    """Mean over 5 x 5 cells of [B, h, w]."""
    return F.avg_pool2d(maps[:, None], 5, 1, 2, count_include_pad=False)[:, 0]


def quality_mask(defect: torch.Tensor, ratio: float, threshold: float | None = None) -> torch.Tensor:
    """Quality-aware mask generation: the top ``ratio`` of each defect map [B, h, w], as bool.

    Every mask has the same area, round(ratio * h * w) cells and at least one; ties go to the earlier cell. A ``threshold``
    leaves out what is not above it: masks are then as large as what is wrong, ``ratio`` at most, and empty where nothing is.

    Raises:
        ValueError: ``ratio`` is outside (0, 1], or ``threshold`` is no number from 0 up.
    """
    check_ratio(ratio)
    check_threshold(threshold)
    flat = defect.flatten(1)
    count = max(1, round(ratio * flat.shape[1]))
    order = flat.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask = mask.scatter(1, order[:, :count], True)
    return (mask if threshold is None else mask & (flat > threshold)).view(defect.shape)


def check_ratio(ratio: float) -> None:
    if not isinstance(ratio, numbers.Real) or not 0 < ratio <= 1:
        raise ValueError(f"expected mask_ratio in (0, 1], the share of the picture to resample, got {ratio!r}")


def check_threshold(threshold: float | None) -> None:
    if threshold is not None and (not isinstance(threshold, numbers.Real) or not threshold >= 0):
        raise ValueError(
            f"expected mask_threshold None or a number from 0 up, what a defect map has to exceed, got {threshold!r}"
        )
