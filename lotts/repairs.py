"""Repairing a picture that already exists: encode, localise, refine, verify."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from lotts.backbones import backbone_for
from lotts.checks import check_depth
from lotts.localize import quality_mask
from lotts.offloading import frees_hooks
from lotts.output import LoTTSOutput, to_uint8
from lotts.request import Request
from lotts.resample import Trajectory, derive_seed, renoise
from lotts.sources import Heatmaps, MapSource, map_source
from lotts.verifiers import Judge, load


@frees_hooks
@torch.no_grad()
def repair(
    pipe: Any,
    image: Image.Image | np.ndarray | str | Path,
    prompt: str,
    mask: Image.Image | np.ndarray | torch.Tensor | str | Path | None = None,
    *,
    verifier: str | Judge = "shapes",
    source: str | MapSource = "attention",
    num_refinements: int = 4,
    mask_ratio: float = 0.5,
    mask_threshold: float | None = None,
    noise_step: int | None = None,
    background: str = "fixed",
    global_steps: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    true_cfg_scale: float = 1.0,
    eta: float = 0.0,
    negative_prompt: str = "",
    generator: torch.Generator | None = None,
    dilate: int = 0,
    soft_ring: int = 0,
    sparse: str = "dense",
    refresh_every: int | None = None,
    sparse_offload: bool = False,
    pixel_paste: bool = True,
    batch_size: int = 1,
    callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
    output_type: str = "pil",
) -> LoTTSOutput:
    """Resample the weak (or the given) region of a picture; never returns something that the verifier scores lower.

    Args:
        pipe: a pipeline of a supported class, with a scheduler that can restart: see ``lotts.supported()``.
        image: a picture (an array uint8, or floating in [0, 1], encoded and judged in 8 bits) or the path of one, opaque; its
            sides must suit the pipeline (multiples of 8 as a rule).
        prompt: what the picture shows.
        mask: where to resample (white, True, 1 or > 0.5; nowhere where it is transparent), as large as the picture or as the
            latent grid; None: find it, and only then ``source``, ``mask_ratio`` and ``mask_threshold`` say anything.
        pixel_paste: keep the picture's own pixels outside the mask and its ``soft_ring``. Without it they pass through the
            autoencoder.
        background: "fixed", "fresh" or "clean"; there is no recorded run to "replay".
        sparse: "dense" or "stale"; there is no recorded run to "trace".

    The other arguments are those of ``LoTTS``. The output's first sample is the picture itself (kind "original"), its
    ``improvement`` says by how much the best refinement outscores it.

    Raises:
        TypeError, ValueError, FileNotFoundError: something does not fit; raised before any compute.
    """
    backbone, judge = backbone_for(pipe), load(verifier)
    maps = map_source(source, judge)
    picture = read_picture(image)
    height, width = picture.shape[:2]
    check_without_run(background, sparse)
    size = backbone.latent_size(height, width)
    region = None if mask is None else _region(read_mask(mask), size, (height, width))
    request = Request.build(
        backbone,
        judge,
        maps,
        prompt=prompt,
        num_candidates=1,
        num_refinements=num_refinements,
        mask_ratio=mask_ratio,
        mask_threshold=mask_threshold,
        noise_step=noise_step,
        background=background,
        global_steps=global_steps,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        true_cfg_scale=true_cfg_scale,
        eta=eta,
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        generator=generator,
        dilate=dilate,
        soft_ring=soft_ring,
        sparse=sparse,
        refresh_every=refresh_every,
        sparse_offload=sparse_offload,
        pixel_paste=pixel_paste,
        batch_size=batch_size,
        callback_on_step_end=callback_on_step_end,
        output_type=output_type,
        localise=region is None,
    )
    request.cost.vae_encodes += 1
    with request.meter.stage("encode"):
        latents = backbone.encode_image(Image.fromarray(to_uint8(picture)))
    original = Trajectory(request.seeds[0], [*[None] * request.steps, latents[0]])
    heatmaps: Heatmaps = {}
    if region is None:
        heatmaps = _localise(request, latents)
        region = quality_mask(heatmaps["P"], mask_ratio, mask_threshold)
    if not region.any():
        request.cost.tell("nothing was resampled: the mask is empty", loud=False)
    masks = region.to(latents.device)
    refined = request.refine([original], masks)
    return request.verified(request.pool("original", [picture], [original], heatmaps, masks, refined))


def _localise(request: Request, x0: torch.Tensor) -> Heatmaps:
    """Show the source the picture under the noise of the steps it asks for."""
    backbone, seed = request.backbone, derive_seed(request.seeds[0], "localise")

    def latents_at(step: int) -> torch.Tensor:
        return x0 if step == request.steps else renoise(backbone, x0, step, [seed])

    with request.watch([seed]) as watch, request.meter.stage("localise"):
        for step in watch.steps():
            latents = latents_at(step)
            with watch.step(step, latents):
                backbone.predict(latents, step, request.text)
        maps = watch.maps(latents_at)
        request.charge(0, 0, watch, shown=len(watch.steps()))
        return maps


def check_without_run(background: str, sparse: str) -> None:
    """ValueError for what takes a recorded run, which a given picture does not have."""
    if background == "replay":
        raise ValueError(
            "expected background 'fixed', 'fresh' or 'clean': a given picture has no recorded run to replay"
        )
    if sparse == "trace":
        raise ValueError("expected sparse 'dense' or 'stale': a given picture has no recorded run to trace")


def read_picture(image: Image.Image | np.ndarray | str | Path) -> np.ndarray:
    """float32 [H, W, 3] in [0, 1], upright by what the file says of its orientation.

    Raises:
        TypeError, ValueError, FileNotFoundError: it is no picture, or its values are not those of one.
    """
    if isinstance(image, (str, Path, Image.Image)):
        upright = _upright(image)
        if not _opaque(upright):
            raise ValueError(
                "expected an opaque picture, got one with transparent pixels, which a pipeline cannot keep: lay it on a background "
                "first"
            )
        image = np.asarray(upright.convert("RGB"))
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
        raise TypeError(
            f"expected a PIL image, an array [H, W, 3] or a path, got {getattr(image, 'shape', type(image).__name__)}"
        )
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(
            f"expected a picture as uint8 or as floating numbers in [0, 1], got {image.dtype}: convert it with "
            "image.astype(np.uint8) if it holds 0 to 255"
        )
    if not (image.size and image.min() >= 0 and image.max() <= 1):  # not a number is in no range either
        told = f"{image.min()} to {image.max()}" if image.size else "none"
        raise ValueError(f"expected a picture's floating numbers in [0, 1], got {told}: scale or clip them first")
    return image.astype(np.float32)


def read_mask(mask: Image.Image | np.ndarray | torch.Tensor | str | Path) -> torch.Tensor:
    """bool, as large as the mask, upright as a picture is; what is transparent is outside.

    Bytes, of a picture or an array, are 0 and 1, or grey levels up to 255.
    """
    if isinstance(mask, (str, Path, Image.Image)):
        upright = _upright(mask)
        if not _opaque(upright):
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright.convert("RGBA"))
        mask = np.asarray(upright.convert("L"))
    array = mask if isinstance(mask, torch.Tensor) else torch.from_numpy(np.array(mask))
    if array.dtype == torch.uint8 and (array > 1).any():
        return array > 127
    return array > 0.5 if array.is_floating_point() else array.bool()


def _opaque(image: Image.Image) -> bool:
    return not image.has_transparency_data or image.convert("RGBA").getchannel("A").getextrema()[0] == 255


def _upright(image: Image.Image | str | Path) -> Image.Image:
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
    except Image.DecompressionBombError as error:
        raise ValueError(f"expected a picture of a size that can be drawn, got {image}: {error}") from None
    check_depth(opened, "a picture" if opened is image else str(image))
    return ImageOps.exif_transpose(opened)


def _region(mask: torch.Tensor, size: tuple[int, int], sides: tuple[int, int]) -> torch.Tensor:
    """bool [1, h, w] on the latent grid; a cell is in the mask when any of its pixels is."""
    if tuple(mask.shape) == size:
        return mask[None]
    if tuple(mask.shape) != sides:
        raise ValueError(
            f"expected a mask of {sides[0]} x {sides[1]} pixels or {size[0]} x {size[1]} latent cells, got {tuple(mask.shape)}"
        )
    return torch.nn.functional.adaptive_max_pool2d(mask[None, None].float(), size)[0] > 0
