"""One call of the method: its checked arguments, its counts, and how pictures become samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from lotts.arguments import check_callback, check_numbers, check_prompt, seeds_from
from lotts.backbones import Backbone, Conditioning
from lotts.checks import truth
from lotts.cost import Cost
from lotts.manifest import made_with
from lotts.meter import Meter
from lotts.output import OUTPUT_TYPES, LoTTSOutput, Sample, as_output_type, best_index, to_uint8
from lotts.paste import paste
from lotts.resample import OnStep, Trajectory, grow, refine
from lotts.resample_config import ResampleConfig
from lotts.sources import Heatmaps, MapSource, Watch, recorded_name
from lotts.sparse import Trace, plan_trace
from lotts.verifiers import Judge, score

T = TypeVar("T")


@dataclass
class Request:
    """Everything the stages share. Built by ``build``, which checks every argument before any compute."""

    backbone: Backbone
    verifier: Judge
    source: MapSource
    prompt: str
    seeds: list[int]
    size: tuple[int, int]
    steps: int
    num_refinements: int
    resample: ResampleConfig
    pixel_paste: bool
    batch_size: int
    callback: Callable[..., dict[str, Any] | None] | None
    output_type: str
    settings: dict[str, Any]
    text: Conditioning
    cost: Cost
    meter: Meter
    _watched: bool = False

    @classmethod
    def build(
        cls,
        backbone: Backbone,
        verifier: Judge,
        source: MapSource,
        *,
        prompt: str,
        negative_prompt: str | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None,
        output_type: str,
        pixel_paste: bool = False,
        localise: bool = False,
        **counts: Any,
    ) -> Request:
        """Check the arguments of ``LoTTS.__call__`` and encode the prompt.

        Args:
            localise: whether ``source`` will be asked, so that it may refuse at once; otherwise it does when it first watches.
            counts: what ``check_numbers`` takes.
        """
        check_prompt(prompt, verifier)
        # A caller may have changed the pipeline since it was wrapped.
        backbone.check_scheduler()
        backbone.check_network()
        check_callback(callback_on_step_end)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"expected output_type to be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        plain, config = check_numbers(**counts)
        pixel_paste = truth("pixel_paste", pixel_paste)
        steps, height, width = plain["num_inference_steps"], plain["height"], plain["width"]
        default_height, default_width = backbone.default_size
        size = backbone.latent_size(
            default_height if height is None else height, default_width if width is None else width
        )
        guidance_scale = plain["guidance_scale"]
        if guidance_scale is None:
            guidance_scale = backbone.default_guidance_scale
        negative_prompt = "" if negative_prompt is None else negative_prompt
        if not isinstance(negative_prompt, str):
            raise TypeError(f"expected negative_prompt as one string, got {type(negative_prompt).__name__}")
        seeds = seeds_from(generator, plain["num_candidates"])
        backbone.check_eta(plain["eta"])
        if localise and hasattr(source, "check"):
            source.check(backbone, prompt, steps)
        backbone.eta = plain["eta"]
        backbone.restart(steps, 0, size)
        backbone.announce(guidance_scale, steps)
        backbone.forget()
        cost = Cost()
        meter = Meter(cost, backbone.device)
        with meter.stage("text"):
            text = backbone.encode_prompt(prompt, negative_prompt, guidance_scale, plain["true_cfg_scale"])
        cost.text_encodes += 1 + text.guided
        if negative_prompt and not text.guided:
            cost.tell("the negative prompt does nothing: there is no classifier-free guidance")
        if plain["guidance_scale"] not in (None, 0.0, 1.0) and not backbone.heeds_guidance:
            cost.tell("guidance_scale does nothing: this network takes none; true_cfg_scale guides it")
        settings = {
            **plain,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "pixel_paste": pixel_paste,
            "seeds": seeds,
            "source": recorded_name(source, verifier),
        }
        return cls(
            backbone,
            verifier,
            source,
            prompt,
            seeds,
            size,
            steps,
            plain["num_refinements"],
            config,
            pixel_paste,
            plain["batch_size"],
            callback_on_step_end,
            output_type,
            settings,
            text,
            cost,
            meter,
        )

    def charge(self, samples: int, steps: int, watch: Watch | None = None, *, shown: int = 0) -> None:
        """Count a batch of samples denoised over some steps, and what finding their defects took.

        ``shown``: steps in which a picture was predicted for the watch alone.
        """
        height, width = self.size
        localization_rows = self.rows(1, shown)
        if watch is not None:
            localization_rows += watch.rows
            self.cost.capture_rows += watch.captured
            self.cost.vae_decodes += watch.decodes
            self.cost.verifier_calls += watch.judgements
        self.cost.denoised(self.rows(samples, steps), localization_rows, height * width)

    def rows(self, samples: int, steps: int) -> int:
        """Network rows of so many samples and steps."""
        return samples * steps * (2 if self.text.guided else 1)

    def tracer(self, samples: int) -> Callable[[int], Trace | None]:
        """Makes the trace of a batch of candidates, of ``samples`` in all; None where refinements need none or it does not fit."""
        steps = self.resample.masked_steps(self.steps)
        wanted = self.resample.sparse == "trace" and self.num_refinements and steps
        if not wanted or self.backbone.linear_update(steps[-1]) is None:
            return lambda batch: None
        rows, offload = self.rows(samples, 1), self.resample.sparse_offload
        return plan_trace(self.backbone, self.size, steps, rows, offload, self.cost) or (lambda batch: None)

    def batches(self, items: Sequence[T]) -> Iterator[list[T]]:
        for start in range(0, len(items), self.batch_size):
            yield list(items[start : start + self.batch_size])

    def watch(self, seeds: Sequence[int]) -> Watch:
        """The map source's watch on a batch of samples, one seed each."""
        self.cost.text_encodes += 0 if self._watched else self.source.text_encodes
        self._watched = True
        with self.meter.stage("text"):
            return self.source.watch(self.backbone, self.prompt, seeds, self.size, self.steps, self.text)

    def on_step(self, stage: str) -> OnStep | None:
        """The user's diffusers callback as a hook of the sampling loop."""
        if self.callback is None:
            return None
        callback, backbone, timesteps = self.callback, self.backbone, self.backbone.scheduler.timesteps

        def hook(step: int, latents: torch.Tensor) -> torch.Tensor | None:
            shown = backbone.to_pipeline(latents)
            returned = callback(backbone.pipe, step, timesteps[step], {"latents": shown, "stage": stage})
            replaced = (returned or {}).get("latents")
            return None if replaced is None or replaced is latents else backbone.from_pipeline(replaced, self.size)

        return hook

    def refine(self, candidates: Sequence[Trajectory], masks: torch.Tensor) -> list[tuple[int, int, Trajectory]]:
        """Consistency maintenance: (parent, refinement, trajectory) for the k refinements of every candidate with a mask."""
        wrong = masks.flatten(1).any(1).tolist()
        jobs = [(parent, k) for parent in range(len(candidates)) if wrong[parent] for k in range(self.num_refinements)]
        out: list[tuple[int, int, Trajectory]] = []
        for batch in self.batches(jobs):
            parents = [parent for parent, _ in batch]
            with self.meter.stage("refine"):
                refined = refine(
                    self.backbone,
                    self.text,
                    [candidates[parent] for parent in parents],
                    masks[parents],
                    [k for _, k in batch],
                    self.resample,
                    self.steps,
                    on_step=self.on_step("refinement"),
                    cost=self.cost,
                )
            self.charge(len(batch), self.steps - self.resample.noise_step)
            out += [(parent, k, trajectory) for (parent, k), trajectory in zip(batch, refined, strict=True)]
        return out

    def pictures(self, latents: Sequence[torch.Tensor]) -> list[np.ndarray]:
        """Decode latents [C, h, w], ``batch_size`` at a time."""
        self.cost.vae_decodes += len(latents)
        with self.meter.stage("decode"):
            return [image for batch in self.batches(latents) for image in self.backbone.decode(torch.stack(batch))]

    def pool(
        self,
        kind: str,
        images: Sequence[np.ndarray],
        candidates: Sequence[Trajectory],
        heatmaps: Heatmaps,
        masks: torch.Tensor,
        refined: Sequence[tuple[int, int, Trajectory]],
    ) -> list[Sample]:
        """All samples as float32 arrays, not yet scored: the candidates with their ``images``, then their refinements."""
        pool = []
        for i, (image, candidate) in enumerate(zip(images, candidates, strict=True)):
            maps = {name: m[i].cpu() for name, m in heatmaps.items()}
            pool.append(Sample(image, float("nan"), kind, candidate.seed, mask=masks[i].cpu(), heatmaps=maps))
        for (parent, k, trajectory), image in zip(
            refined, self.pictures([t.result for _, _, t in refined]), strict=True
        ):
            mask = grow(masks[parent : parent + 1], self.resample.dilate)[0].cpu()
            if self.pixel_paste:
                # The ring was resampled too: cut off at the mask, its gradual seam would be a sharp one.
                image = paste(pool[parent].image, image, grow(mask[None], self.resample.soft_ring)[0])
            pool.append(Sample(image, float("nan"), "refinement", trajectory.seed, parent, k, mask))
        return pool

    def verified(self, samples: list[Sample]) -> LoTTSOutput:
        """Verifier scoring: judge the pool, then bring the pictures into the form the caller asked for."""
        images = [sample.image for sample in samples]
        if samples[0].kind == "original":
            # As their files will have them: a replay of a repair begins with that of the picture that was given.
            images = [to_uint8(image).astype(np.float32) / 255 for image in images]
        scores = self.judge(images)
        cost = self.meter.read()
        for sample, value in zip(samples, scores, strict=True):
            sample.score, sample.image = value, as_output_type(sample.image, self.output_type)
            sample.nfe, sample.seconds = cost.nfe, cost.seconds
        made = made_with(self.backbone.scheduler, self.verifier)
        return LoTTSOutput(self.prompt, samples, best_index(samples), cost, self.settings, made)

    def judge(self, images: Sequence[np.ndarray]) -> list[float]:
        """The verifier's scores of pictures."""
        self.cost.verifier_calls += len(images)
        with self.meter.stage("verify"):
            return score(self.verifier, images, [self.prompt] * len(images), self.backbone.device)
