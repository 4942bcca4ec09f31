"""What is measured on a GPU of the element-wise ops: latents, and noise alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import lotts.kernels
from bench.accuracy import Check, compare
from bench.cases import Case, Inputs, Maker


@dataclass(frozen=True)
class LatentCase(Case):
    """Latents [batch, channels, side, side], ``refinements`` of each where noise is injected."""

    channels: int
    side: int
    refinements: int = 1
    guidance: bool = False

    def shape(self) -> dict[str, Any]:
        return {"B": self.batch, "K": self.refinements, "C": self.channels, "h": self.side, "w": self.side}

    def inputs(self, device: str) -> Inputs:
        make = Maker(device, self.dtype)
        sizes = (self.channels, self.side, self.side)
        common: Inputs = {
            "mask": make.uniform(self.batch, 1, self.side, self.side).mul(2).sub(0.5).clamp(0, 1),
            "background": make.normal(self.batch, *sizes),
        }
        if self.op == "inject_noise":
            seeds = torch.arange(self.batch * self.refinements, device=device).reshape(self.batch, self.refinements)
            return {"x0": make.normal(self.batch, *sizes), **common, "seeds": seeds, "signal": 0.8, "noise": 0.6}
        rows = self.batch * (2 if self.guidance else 1)
        made: Inputs = {"latents": make.normal(self.batch, *sizes), "prediction": make.normal(rows, *sizes), **common}
        made |= {"latents_factor": 0.98, "prediction_factor": -0.05}
        return made | ({"guidance_scale": 5.0} if self.guidance else {})

    def check(self, inputs: Inputs, result: Any) -> list[Check]:
        # The first and the last sample: the noise of the reference is made by NumPy, on one core.
        ends = [0, self.batch - 1]
        part = {name: a[ends] if torch.is_tensor(a) else a for name, a in inputs.items()}
        drawn: dict[str, Tensor] = {}
        if self.op == "inject_noise":
            noise = lotts.kernels.philox_normal(part["seeds"], part["x0"].shape[1:], impl="reference")
            drawn = {"drawn": noise}
        else:
            halves = inputs["prediction"].unflatten(0, (-1, self.batch))
            part["prediction"] = halves[:, ends].flatten(0, 1)
        wide = {name: a.double() if torch.is_tensor(a) and a.is_floating_point() else a for name, a in part.items()}
        truth = self.formula()(**wide, **{name: a.double() for name, a in drawn.items()})
        eager = self.formula()(**part, **{name: a.to(self.dtype) for name, a in drawn.items()})
        return [compare("latents", result[ends], eager, truth, torch.finfo(self.dtype).eps)]


@dataclass(frozen=True)
class NoiseCase(Case):
    """Noise alone, [batch, channels, side, side] in float32; the baseline is torch.randn, which makes other numbers."""

    channels: int
    side: int

    def shape(self) -> dict[str, Any]:
        return {"B": self.batch, "C": self.channels, "h": self.side, "w": self.side}

    def inputs(self, device: str) -> Inputs:
        return {"seeds": torch.arange(self.batch, device=device), "shape": (self.channels, self.side, self.side)}

    def check(self, inputs: Inputs, result: Any) -> list[Check]:
        ends = [0, self.batch - 1]
        truth = lotts.kernels.philox_normal(inputs["seeds"][ends], inputs["shape"], impl="reference")
        error = result[ends].double() - truth.double()
        # Bits are equal everywhere; logarithm, sine and cosine differ between libraries by units in the last place.
        return [Check("noise", error.abs().max().item(), 4e-6, error.square().mean().sqrt().item(), 1e-6)]
