"""LoTTS: candidates, localise, refine, verify, in the paper's order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lotts.backbones import backbone_for
from lotts.localize import quality_mask
from lotts.offloading import frees_hooks
from lotts.output import LoTTSOutput
from lotts.request import Request
from lotts.resample import Trajectory, denoise
from lotts.sources import Heatmaps, MapSource
from lotts.verifiers import Judge


class LoTTS:
    """Localised test-time scaling of a diffusers pipeline.

    >>> out = lotts.LoTTS(pipe, verifier="shapes")("a red circle left of a blue star")
    >>> out.image

    Args:
        pipe: a pipeline of a supported class, with a scheduler that can restart: see ``lotts.supported()``.
        verifier: a name (``lotts.verifiers.available()``) or a callable ``(images, prompts) -> scores``, higher is better.
        source: where defect maps come from: "attention" (the paper's), "prediction", "verifier" (for one that says where
            a picture falls short), or an object with ``watch()``.

    Raises:
        TypeError, ValueError: the pipeline, its scheduler, the verifier or the source cannot be used; the message says why.
    """

    def __init__(self, pipe: Any, verifier: str | Judge = "shapes", *, source: str | MapSource = "attention") -> None:
        from lotts.sources import map_source
        from lotts.verifiers import load

        self.pipe, self.backbone = pipe, backbone_for(pipe)
        self.verifier = load(verifier)
        self.source = map_source(source, self.verifier)

    @frees_hooks
    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        num_candidates: int = 3,
        num_refinements: int = 2,
        mask_ratio: float = 0.5,
        noise_step: int | None = None,
        background: str = "replay",
        global_steps: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        true_cfg_scale: float = 1.0,
        eta: float = 0.0,
        negative_prompt: str = "",
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        mask_threshold: float | None = None,
        dilate: int = 0,
        soft_ring: int = 0,
        sparse: str = "dense",
        refresh_every: int | None = None,
        sparse_offload: bool = False,
        pixel_paste: bool = False,
        batch_size: int = 1,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        output_type: str = "pil",
    ) -> LoTTSOutput:
        """Generate candidates, find and resample the weak region of each, and return the best by the verifier.

        Args:
            prompt: what to draw.
            num_candidates: seeds (the paper's 3), each a whole picture.
            num_refinements: localised refinements of each candidate (the paper's k = 2).
            mask_ratio: share of the picture resampled, in (0, 1] (the paper's r = 0.5).
            mask_threshold: resample only cells whose defect map is above it, ``mask_ratio`` at most; a candidate without any is
                not refined. Means most where the map is a chance, as that of ``source="verifier"``.
            noise_step: step t0, counted from pure noise, where a refinement starts; default: half of the steps.
            guidance_scale, true_cfg_scale, negative_prompt: as the pipeline itself takes them; default: its own default.
            eta: share of fresh noise in each step, 0 to 1, for DDIM as the pipeline takes it (1 is DDPM). Euler and flow matching
                take it too: there 1 is Euler ancestral and the stochastic equation of the same marginals.
            global_steps: last steps that denoise the whole picture; default: 2, or as few as leave a masked one.
            background, dilate, soft_ring, sparse, refresh_every, sparse_offload: see ``ResampleConfig``.
            generator: its seed s gives candidates s, s + 1, ...; candidate i is the picture that ``pipe`` itself makes
                with ``torch.Generator().manual_seed(s + i)``. A list gives one generator a candidate. Default: a random seed.
            pixel_paste: keep the candidate's own pixels outside the mask and its ``soft_ring``, feathered at the seam.
            batch_size: samples denoised at once. With 1 an image depends on its own seed alone, bit for bit; larger
                batches are faster on a GPU and may differ in the last bits.
            callback_on_step_end: diffusers' callback ``(pipe, step, timestep, {"latents": ...})``, in every stage.
            output_type: "pil", "np" (float32 [H, W, 3] in [0, 1]) or "pt" (float32 [3, H, W]) images.

        Raises:
            TypeError, ValueError: an argument is out of range; raised before any compute.
        """
        arguments = {k: v for k, v in locals().items() if k != "self"}
        request = Request.build(self.backbone, self.verifier, self.source, localise=True, **arguments)
        candidates, heatmaps = self.candidates(request)
        masks = quality_mask(heatmaps["P"], mask_ratio, mask_threshold)
        refined = request.refine(candidates, masks)
        candidates = [replace(candidate, trace=None) for candidate in candidates]  # traces are large, and have served
        images = request.pictures([candidate.result for candidate in candidates])
        return request.verified(request.pool("candidate", images, candidates, heatmaps, masks, refined))

    def candidates(self, request: Request) -> tuple[list[Trajectory], Heatmaps]:
        """Noise initiation and defect localisation: one denoised candidate a seed, and its heatmaps [B, h, w]."""
        done: list[Trajectory] = []
        maps: list[Heatmaps] = []
        traced = request.tracer(len(request.seeds))
        for seeds in request.batches(request.seeds):
            with request.watch(seeds) as watch:
                with request.meter.stage("denoise"):
                    batch = denoise(
                        self.backbone,
                        request.text,
                        seeds,
                        request.size,
                        request.steps,
                        watch=watch.step,
                        on_step=request.on_step("candidate"),
                        trace=traced(len(seeds)),
                    )
                with request.meter.stage("localise"):
                    maps.append(watch.maps(functools.partial(_latents_at, batch)))
            request.charge(len(seeds), request.steps, watch)
            done += batch
        return done, {name: torch.cat([m[name] for m in maps]) for name in maps[0]}


def _latents_at(batch: list[Trajectory], step: int) -> torch.Tensor:
    return torch.stack([candidate.at(step) for candidate in batch])
