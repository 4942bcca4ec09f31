"""A set's score is the mean of its pictures' scores, whatever the batches and the verifier."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lotts import verifiers
from lotts.metrics import clip_score
from lotts.verifiers import Verifier
from lotts.verifiers.ensemble import Ensemble, Member


class Darkness(Verifier):
    """Mean darkness of a picture, and how often a prompt was encoded."""

    name, version, scale, higher_is_better = "darkness", "1", "levels, lower is better", False

    def __init__(self):
        super().__init__()
        self.encoded = []

    def check_prompt(self, prompt):
        if not prompt:
            raise ValueError("expected a prompt, got an empty string")

    def encode_prompts(self, prompts):
        self.encoded += prompts
        return super().encode_prompts(prompts)

    def preprocess(self, image):
        return torch.from_numpy(np.array(image)).float()

    def forward(self, tensors, cache):
        return 255 - tensors.mean((1, 2, 3))


@pytest.fixture
def pictures():
    return [np.full((4, 4, 3), level, np.uint8) for level in (0, 10, 50, 240, 241)]


PROMPTS = ["a cat", "a dog", "a cat", "a cat", "a dog"]
SCORES = [255, 245, 205, 15, 14]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_mean_and_standard_error(pictures, batch_size):
    verifier = Darkness()
    found = clip_score(pictures, PROMPTS, verifier, batch_size)
    assert found.mean == np.mean(SCORES)
    assert found.standard_error == pytest.approx(np.std(SCORES, ddof=1) / 5**0.5)
    assert (found.count, found.verifier, found.version) == (5, "darkness", "1")
    assert verifier.encoded == ["a cat", "a dog"]
    assert json.loads(json.dumps(found.as_dict()))["scale"] == "levels, lower is better"
    assert str(found).endswith("(darkness 1, 5 pictures)")


def test_clipscore_is_the_default(pictures, monkeypatch):
    monkeypatch.setitem(verifiers.REGISTRY, "clipscore", Darkness)
    assert clip_score(pictures, PROMPTS).mean == np.mean(SCORES)


def test_a_plain_callable_sees_floats_of_the_very_levels(pictures, tmp_path):
    def first_level(images, prompts):
        assert all(image.dtype == np.float32 for image in images)
        return [float(image[0, 0, 0] * 255) for image in images]

    Image.fromarray(pictures[3]).save(tmp_path / "a.png")
    found = clip_score([pictures[2], tmp_path / "a.png"], PROMPTS[:2], first_level)
    assert found.mean == pytest.approx(145)
    assert (found.verifier, found.version, found.scale) == ("first_level", None, None)


def test_one_picture_has_no_standard_error(pictures):
    found = clip_score(pictures[:1], PROMPTS[:1], Darkness())
    assert found.standard_error is None
    assert str(found) == "255.0000 (darkness 1, 1 pictures)"


def test_errors_come_before_the_first_score(pictures):
    verifier = Darkness()
    with pytest.raises(ValueError, match="one prompt for each of 5 pictures, got 2"):
        clip_score(pictures, PROMPTS[:2], verifier)
    with pytest.raises(ValueError, match="got one string"):
        clip_score(pictures, "a cat", verifier)
    with pytest.raises(ValueError, match="got none"):
        clip_score([], [], verifier)
    with pytest.raises(ValueError, match="batch_size"):
        clip_score(pictures, PROMPTS, verifier, 0)
    with pytest.raises(ValueError, match="got an empty string"):
        clip_score(pictures, [*PROMPTS[:4], ""], verifier, 1)
    with pytest.raises(ValueError, match="expected a verifier out of"):
        clip_score(pictures, PROMPTS, "clapscore")
    assert verifier.encoded == []


def test_an_ensemble_has_no_mean(pictures):
    members = [Member("a", Darkness()), Member("b", Darkness())]
    with pytest.raises(ValueError, match=r"got the ensemble rank\(a:1,b:1\)"):
        clip_score(pictures, PROMPTS, Ensemble(members))


def test_a_wrong_picture_is_named(pictures):
    with pytest.raises(ValueError, match=r"picture 3 as an array \[H, W, 3\]"):
        clip_score([*pictures[:3], np.zeros((4, 4)), pictures[4]], PROMPTS, Darkness(), 2)
