"""How a masked region is resampled, checked before any compute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lotts.checks import whole
from lotts.sparse.config import check as check_sparse

BACKGROUNDS = ("replay", "fixed", "fresh", "clean")


@dataclass(frozen=True)
class ResampleConfig:
    """How a masked region is resampled.

    Args:
        noise_step: the sampler step t0, counted from pure noise, at which a refinement starts; 0 resamples from scratch.
        global_steps: how many of the last steps denoise the whole picture.
        background: what surrounds the mask while it is refined: the candidate's own latents of that step (``replay``),
            its result re-noised with one noise (``fixed``) or with a new one each step (``fresh``), or its result
            without noise (``clean``).
        dilate: grow the mask by this many latent cells.
        soft_ring: cells around the mask that join the refinement one after the other, so that the seam is gradual.
        sparse: what a masked step computes: everything (``dense``), or the masked tokens beside keys and values of the others that
            were kept from the last dense step (``stale``) or from the candidate's own run (``trace``). See docs/sparse.md.
        refresh_every: with ``stale``, every how many masked steps one is dense, from the first on; None: every second.
        sparse_offload: keep them in the CPU's memory.
    """

    noise_step: int
    global_steps: int = 2
    background: str = "replay"
    dilate: int = 0
    soft_ring: int = 0
    sparse: str = "dense"
    refresh_every: int | None = None
    sparse_offload: bool = False

    def __post_init__(self) -> None:
        if self.refresh_every is not None:
            object.__setattr__(self, "refresh_every", whole("refresh_every", self.refresh_every, 1))
        check_sparse(self.sparse, self.refresh_every, self.sparse_offload)
        if self.background not in BACKGROUNDS:
            raise ValueError(f"expected background to be one of {', '.join(BACKGROUNDS)}, got {self.background!r}")
        if self.sparse == "trace" and self.background != "replay":
            raise ValueError(
                f"expected background 'replay' with sparse 'trace', got {self.background!r}: keys and values of the candidate's own "
                "run belong to its own latents. Use sparse 'stale'"
            )
        for name in ("noise_step", "global_steps", "dilate", "soft_ring"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))

    @classmethod
    def of(
        cls, num_inference_steps: int, noise_step: int | None = None, global_steps: int | None = None, **rest: Any
    ) -> ResampleConfig:
        """The setting of a run, by default from half way on and with 2 global steps, or as few as leave a masked one."""
        start = num_inference_steps // 2 if noise_step is None else noise_step
        config = cls(start, 0 if global_steps is None else global_steps, **rest)
        left = num_inference_steps - config.noise_step
        return replace(config, global_steps=max(0, min(2, left - 1))) if global_steps is None else config

    def masked_steps(self, num_inference_steps: int) -> range:
        """The steps that denoise inside the mask alone; global integration follows."""
        return range(self.noise_step, num_inference_steps - self.global_steps)

    def check_masked(self, num_inference_steps: int) -> None:
        """ValueError where no step is masked: that would be no refinement of a region."""
        self.check_schedule(num_inference_steps)
        if not self.masked_steps(num_inference_steps):
            raise ValueError(
                f"expected noise_step + global_steps < num_inference_steps, got {self.noise_step} + {self.global_steps} of "
                f"{num_inference_steps}: nothing would be refined inside the mask. Leave global_steps out, or start earlier"
            )

    def check_schedule(self, num_inference_steps: int) -> None:
        """ValueError where the schedule does not hold the steps."""
        if self.noise_step >= num_inference_steps:
            raise ValueError(
                f"expected noise_step from 0 to {num_inference_steps - 1} (of {num_inference_steps} steps), got {self.noise_step}"
            )
        if self.noise_step + self.global_steps > num_inference_steps:
            raise ValueError(
                f"expected noise_step + global_steps <= num_inference_steps, got {self.noise_step} + {self.global_steps} "
                f"> {num_inference_steps}: global integration would begin before the refinement"
            )
