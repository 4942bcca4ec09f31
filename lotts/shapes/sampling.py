"""Many pictures from the embedded pipelines, on every core, each from its own seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from lotts.models import check_device
from lotts.shapes.draw import SIDE
from lotts.shapes.scenes import MAX_OBJECTS, MIN_OBJECTS, Scene, caption, sample_scene
from lotts.threads import cores

T = TypeVar("T")
R = TypeVar("R")


def held_out_scenes(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes no model was trained on, with their captions, numbers of objects in turn."""
    return list(itertools.islice(every_held_out_scene(seed), count))


def every_held_out_scene(seed: int, low: int = MIN_OBJECTS, high: int = MAX_OBJECTS) -> Iterator[tuple[Scene, str]]:
    """Without end: scenes of ``low`` to ``high`` objects that no model was trained on, with their captions."""
    for index in itertools.count():
        rng = np.random.default_rng([seed, index])
        scene = sample_scene(rng, low + index % (high - low + 1), held_out=True)
        yield scene, caption(scene, rng)


def sample_images(
    pipe: Any,
    captions: Sequence[str],
    seeds: Sequence[int],
    *,
    guidance_scale: float,
    steps: int = 20,
    batch_size: int = 16,
) -> Iterator[np.ndarray]:
    """Yield one uint8 [H, W, 3] picture a caption, in order."""
    for start in range(0, len(captions), batch_size):
        part = slice(start, start + batch_size)
        images = pipe(
            list(captions[part]),
            num_inference_steps=steps,
            **call_arguments(pipe, guidance_scale, len(captions[part])),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            output_type="np",
        ).images
        yield from np.rint(images * 255).astype(np.uint8)


def call_arguments(pipe: Any, guidance_scale: float, prompts: int) -> dict[str, Any]:
    """Classifier-free guidance as the pipeline takes it for that many prompts, and what it would not take by itself."""
    if not hasattr(pipe, "transformer"):
        return {"guidance_scale": guidance_scale}
    # FLUX leaves guidance_scale to what is distilled into the network, and has T5's length and its size at every call.
    return {
        "true_cfg_scale": guidance_scale,
        "negative_prompt": [""] * prompts,
        "max_sequence_length": pipe.tokenizer_2.model_max_length,
        "height": SIDE,
        "width": SIDE,
    }


def on_all_cores(
    work: Callable[[list[T]], list[R]],
    items: Sequence[T],
    *,
    chunk: int = 16,
    processes: int | None = None,
    device: str | torch.device | None = None,
) -> list[R]:
    """``work`` on chunks of items; results in the order of the items.

    One single-threaded process a core where ``device``, on which ``work`` computes, is the CPU; on an accelerator (None: as
    ``load_pipeline`` chooses) this process alone, which holds it already.
    """
    chunks = [list(items[i : i + chunk]) for i in range(0, len(items), chunk)]
    wanted = processes or (cores() if check_device(device).type == "cpu" else 1)
    processes = min(wanted, len(chunks))
    if processes <= 1:
        return [result for part in tqdm(chunks, unit="batch", disable=None) for result in work(part)]
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        done = tqdm(pool.imap(work, chunks), total=len(chunks), unit="batch", disable=None)
        return [result for part in done for result in part]
