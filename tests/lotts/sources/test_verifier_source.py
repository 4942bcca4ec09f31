"""Facts about the verifier's own map."""

import pytest
import torch
from watching import brightness, maps_of

from lotts import LoTTS
from lotts.sources.verifier import VerifierSource
from lotts.verifiers import load


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


def test_a_map_finer_than_the_latents_is_averaged_and_stays_a_chance(tiny_pipe):
    class Fine(Corner):
        def defect_maps(self, images, prompts):
            maps = torch.full((len(images), 64, 64), 0.5)
            maps[:, :3, :3] = 1.0  # nine of the sixteen of a cell, none of them in its middle alone
            maps[:, 32:] = 0.0
            return maps

    out = LoTTS(tiny_pipe, Fine(), source="verifier")(
        "a red cat", num_candidates=1, num_refinements=0, num_inference_steps=2, output_type="np"
    )
    p = out.samples[0].heatmaps["P"]
    assert p[0, 0] == pytest.approx((9 + 7 * 0.5) / 16)
    assert p[4, 4] == pytest.approx(0.5)
    assert 0 < p[8, 4] <= 0.05
    assert p.min() >= 0
