"""Facts about a run's numbers: few steps, seeds at the ends of their range, numpy's scalars."""

import json

import numpy as np
import pytest
import torch

import lotts
from lotts.arguments import seeds_from
from lotts.report import save_output


def brightness(images, prompts):
    return [float(image.mean()) for image in images]


@pytest.fixture
def run(tiny_pipe):
    def call(*arguments, source="attention", **settings):
        options = {"guidance_scale": 3.0, "output_type": "np", "generator": torch.Generator().manual_seed(4)}
        return lotts.LoTTS(tiny_pipe, brightness, source=source)("a red cat", *arguments, **{**options, **settings})

    return call


@pytest.mark.parametrize("source", ["attention", "prediction", lotts.AttentionSource(contrast="batch")])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_few_steps_leave_a_masked_one(run, steps, source):
    out = run(1, 1, num_inference_steps=steps, source=source)
    assert out.settings["global_steps"] == min(2, steps - steps // 2 - 1)
    candidate, refinement = out.samples
    assert not np.array_equal(candidate.image, refinement.image)
    if source != "prediction":
        assert ("CA'_diff" in candidate.heatmaps) == (steps > 1)  # one step is over before its map could spread


def test_a_repair_of_one_step(tiny_pipe):
    picture = np.full((32, 32, 3), 0.5, np.float32)
    out = lotts.repair(tiny_pipe, picture, "a red cat", verifier=brightness, num_refinements=1, num_inference_steps=1)
    assert [sample.kind for sample in out.samples] == ["original", "refinement"]


def test_global_integration_alone_is_no_refinement(run, tiny_pipe, monkeypatch):
    monkeypatch.setattr(tiny_pipe, "encode_prompt", lambda *a, **k: pytest.fail("encoded a text"))
    with pytest.raises(ValueError, match=r"got 2 \+ 2 of 4: nothing would be refined"):
        run(num_inference_steps=4, global_steps=2)


@pytest.mark.parametrize("seed", [-1, 2**64 - 1])
def test_seeds_go_on_from_zero_behind_the_last(run, seed):
    first, *others = seeds_from(torch.Generator().manual_seed(seed), 3)
    assert all(0 <= s < 2**64 for s in (first, *others))
    assert others == [(first + 1) % 2**64, (first + 2) % 2**64]
    out = run(3, 1, num_inference_steps=2, generator=torch.Generator().manual_seed(seed))
    assert [s.seed for s in out.samples[:3]] == [first, *others]
    assert not np.array_equal(out.samples[0].image, out.samples[1].image)


@pytest.mark.parametrize("seed", [42, np.int64(42)])
def test_a_number_is_no_generator(run, seed):
    with pytest.raises(TypeError, match=r"torch\.Generator\(\)\.manual_seed\(42\)"):
        run(generator=seed)


def test_numpys_numbers_are_numbers(run, tmp_path):
    settings = {
        "num_inference_steps": np.int64(4),
        "noise_step": np.int32(2),
        "mask_ratio": np.float32(0.5),
        "mask_threshold": np.float32(0),
        "guidance_scale": np.float32(3),
        "height": np.int64(32),
        "refresh_every": np.int64(1),
    }
    theirs = run(np.int64(1), np.int16(1), sparse="stale", **settings)
    ours = run(1, 1, sparse="stale", **{name: value.item() for name, value in settings.items()})
    assert np.array_equal(theirs.samples[1].image, ours.samples[1].image)
    assert theirs.settings == ours.settings
    written = json.loads((save_output(theirs, tmp_path / "out") / "manifest.json").read_text())
    assert written["settings"]["noise_step"] == 2


@pytest.mark.parametrize(
    "settings",
    [{"height": 0}, {"width": 0}, {"num_candidates": True}, {"noise_step": np.float32(1)}, {"guidance_scale": "3"}],
)
def test_what_is_no_number_of_its_kind_is_named(run, settings):
    with pytest.raises(ValueError, match=f"expected {next(iter(settings))} to be a "):
        run(**settings)
