"""Facts about masks that a method's own are compared with."""

import numpy as np
import pytest
import torch

from lotts import LoTTS
from lotts.localize import LocalizeConfig, quality_mask
from lotts.search import run
from lotts.shapes.draw import draw
from lotts.shapes.scenes import caption, parse
from lotts.sources import AttentionSource, map_source
from lotts.verifier_source import VerifierSource
from lotts.verifiers import load


def brightness(images, prompts):
    return [float(image.mean()) for image in images]


class Drawn:
    """Stands for a backbone whose latents are pictures."""

    device = torch.device("cpu")

    def decode(self, latents):
        return latents.numpy()


def maps_of(source, image, prompt, seeds=(1,)):
    latents = torch.from_numpy(np.stack([image] * len(seeds)).astype(np.float32) / 255)
    with map_source(source, brightness).watch(Drawn(), prompt, list(seeds), (16, 16), 4, None) as watch:
        return watch.maps(lambda step: latents)["P"]


@pytest.fixture(scope="module")
def damaged():
    """(picture, prompt, bool [16, 16] cells of the true damage) of a scene with a damaged object."""
    scene = parse("a red circle, a blue square; a green heart, a black ring")
    for seed in range(100):
        drawing = draw(scene, np.random.default_rng(seed), damaged=True)
        cells = drawing.damage.any(0).reshape(16, 8, 16, 8).mean((1, 3)) > 0.3
        if cells.any():
            return drawing.image, caption(scene), cells
    raise AssertionError("no damage drawn")


def test_true_defects_are_in_the_smallest_mask(damaged):
    image, prompt, cells = damaged
    mask = quality_mask(maps_of("defects", image, prompt), 0.3)[0].numpy()
    assert mask[cells].mean() > 0.9


def test_the_foreground_is_the_objects(damaged):
    image, prompt, _ = damaged
    p = maps_of("foreground", image, prompt)[0].numpy()
    assert p[4, 4] > p[0, 8]  # the first object's place against the top edge between two
    assert p[12, 12] > p[8, 0]


def test_random_masks_are_a_samples_own():
    p = maps_of("random", np.zeros((128, 128, 3), np.uint8), "a red cat", seeds=(1, 2))
    again = maps_of("random", np.zeros((128, 128, 3), np.uint8), "a red cat", seeds=(2,))
    assert torch.equal(p[1], again[0])
    assert not torch.equal(p[0], p[1])


def test_the_checker_only_knows_scenes():
    with pytest.raises(ValueError, match="cannot read"):
        maps_of("defects", np.zeros((128, 128, 3), np.uint8), "a photo of a cat")


@pytest.mark.parametrize("config", [LocalizeConfig(propagate=False), LocalizeConfig(negative="A bad image of {p}.")])
def test_ablated_attention_makes_other_maps(tiny_pipe, config):
    def maps(source):
        out = run(
            tiny_pipe, "a red cat", "lotts", budget="samples=2", num_refinements=1, verifier=brightness, source=source,
            num_inference_steps=4, global_steps=1, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return out.samples[0].heatmaps

    whole, ablated = maps("attention"), maps(AttentionSource(config))
    assert torch.equal(whole["CA_orig"], ablated["CA_orig"])
    assert not torch.equal(whole["P"], ablated["P"])
    assert ("CA'_diff" in ablated) == config.propagate


@pytest.mark.parametrize("template", ["A bad image.", "A {q} image of {p}."])
def test_a_quality_prompt_holds_the_prompt(template):
    with pytest.raises(ValueError, match=r"expected negative with \{p\} once"):
        LocalizeConfig(negative=template)


# --- the verifier's own map


def test_the_verifier_finds_what_is_wrong(damaged):
    image, prompt, cells = damaged
    p = maps_of(VerifierSource(load("shapes")), image, prompt)[0].numpy()
    objects = maps_of("foreground", image, prompt)[0].numpy() > 0.5
    assert p[cells].mean() > 2 * p[objects & ~cells].mean()
    # Under a caption that is wrong about the green heart, which lies below on the left, its place stands out.
    other = maps_of(VerifierSource(load("shapes")), image, prompt.replace("green heart", "pink star"))[0].numpy()
    assert (other - p)[9:15, 1:7].mean() > 0.1 + (other - p)[1:7, 9:15].mean()


def test_a_verifier_that_says_where_is_needed(tiny_pipe):
    with pytest.raises(ValueError, match=r"expected a verifier with defect_maps.*got function"):
        LoTTS(tiny_pipe, verifier=brightness, source="verifier")


class Corner:
    """Finds everything wrong with the first cell, whatever the picture."""

    def __call__(self, images, prompts):
        return [0.0] * len(images)

    def defect_maps(self, images, prompts):
        maps = torch.zeros(len(images), 4, 4)
        maps[:, 0, 0] = 1
        return maps


class Dark(Corner):
    """Finds the first cell of dark pictures wrong, nothing in bright ones."""

    def defect_maps(self, images, prompts):
        return (
            super().defect_maps(images, prompts)
            * torch.tensor([im.mean() < self.bound for im in images])[:, None, None]
        )

    def __init__(self, bound):
        self.bound = bound


def test_above_a_threshold_only_what_is_wrong_is_resampled(tiny_pipe):
    def drawn(verifier, **settings):
        return LoTTS(tiny_pipe, verifier=verifier, source="verifier")(
            "a red cat", num_candidates=3, num_refinements=2, num_inference_steps=4, output_type="np",
            generator=torch.Generator().manual_seed(0), **settings,
        )  # fmt: skip

    every = drawn(Dark(2.0), mask_threshold=0.5)
    assert all(0 < sample.mask.float().mean() < 0.2 for sample in every.samples[3:])
    brightness = [sample.image.mean() for sample in every.samples[:3]]
    some = drawn(Dark(sorted(brightness)[1]), mask_threshold=0.5)
    dark = brightness.index(min(brightness))
    assert [sample.parent for sample in some.samples] == [None] * 3 + [dark] * 2
    for mine, theirs in zip(some.samples[3:], every.samples[3 + 2 * dark :], strict=False):
        assert torch.equal(torch.tensor(mine.image), torch.tensor(theirs.image))
    assert every.cost.nfe - some.cost.nfe == 4 * (some.cost.nfe - 3 * 4 * 2) // 2
    none = drawn(Dark(0.0), mask_threshold=0.5)
    assert len(none.samples) == 3
    assert none.report().width > 0


def test_what_the_verifier_points_at_is_resampled_and_charged(tiny_pipe):
    out = LoTTS(tiny_pipe, verifier=Corner(), source="verifier")(
        "a red cat", num_candidates=2, num_refinements=1, mask_ratio=1 / 16, num_inference_steps=4
    )
    mask = out.samples[2].mask
    side = mask.shape[-1] // 4
    assert mask[:side, :side].all()
    assert int(mask.sum()) == side**2
    assert out.cost.localization_rows == 0
    assert out.cost.vae_decodes == out.cost.verifier_calls == 2 + 4  # two to find the defects, four to judge
