"""The verifier scores any picture of the grammar, one at a time, and refuses what it cannot judge."""

import numpy as np
import pytest
import torch

from lotts import verifiers
from lotts.shapes import reward
from lotts.shapes.draw import draw
from lotts.shapes.scenes import caption, sample_scene
from lotts.verifiers.shapes import ShapesVerifier


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    """The verifier with random weights: what holds here holds for every model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("reward")
    reward.save(reward.RewardModel(), folder)
    return ShapesVerifier(folder)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, n) for n in (2, 9, 16, 5)]
    return [draw(scene, rng).image.astype(np.float32) / 255 for scene in scenes], [caption(scene) for scene in scenes]


def test_a_score_does_not_depend_on_the_batch(verifier, scenes):
    images, prompts = scenes
    together = verifier.score(images, prompts, batch_size=4).tolist()
    assert together == [verifier([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    assert together[::-1] == verifier(images[::-1], prompts[::-1])


def test_scores_are_finite_and_at_most_zero(verifier, scenes):
    scores = verifiers.score(verifier, *scenes)
    assert all(s <= 0 for s in scores)
    assert len(set(scores)) == len(scores)


def test_a_quality_template_changes_nothing(verifier, scenes):
    images, prompts = scenes
    assert verifier(images, [f"A high-quality image of {p}." for p in prompts]) == verifier(images, prompts)


def test_other_sizes_are_resized(verifier, scenes):
    images, prompts = scenes
    double = np.repeat(np.repeat(images[0], 2, 0), 2, 1)
    assert verifier([double], prompts[:1])[0] == pytest.approx(verifier(images[:1], prompts[:1])[0], abs=0.02)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((128, 128), np.float32), "expected a float"),
        (np.zeros((3, 128, 128), np.float32), "expected a float"),
        (np.zeros((128, 128, 3), np.uint8), "expected a float"),
        (np.full((128, 128, 3), 2.0, np.float32), r"in \[0, 1\]"),
        (np.full((128, 128, 3), np.nan, np.float32), r"in \[0, 1\]"),
    ],
)
def test_other_images_are_refused(verifier, image, message):
    with pytest.raises(ValueError, match=message):
        verifier([image], ["a red circle, a blue star"])


def test_as_many_prompts_as_images(verifier, scenes):
    with pytest.raises(ValueError, match="one prompt for each of 4 images, got 1"):
        verifier(scenes[0], scenes[1][:1])


def test_prompts_outside_the_grammar_are_refused_with_examples(verifier):
    verifier.check_prompt("a red circle left of a blue star")
    with pytest.raises(ValueError, match="scattered: a red circle"):
        verifier.check_prompt("a photo of a cat")


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json.*train verifier"):
        ShapesVerifier(tmp_path)


def test_the_registry_knows_it():
    assert "shapes" in verifiers.available()


def test_other_weights_are_another_version(tmp_path):
    model = reward.RewardModel()
    versions = []
    for shift in (0.0, 0.5):
        model.scene_query.data += shift
        reward.save(model, tmp_path)
        versions.append(ShapesVerifier(tmp_path).version)
    assert len({*versions, verifiers.load("shapes").version}) == 3


def test_defect_maps_are_chances_a_picture_each(verifier):
    prompt = "a red circle left of a blue ring"
    pictures = [np.full((128, 128, 3), level, np.float32) for level in (0.2, 0.9)]
    maps = verifier.defect_maps(pictures, [prompt, prompt])
    assert maps.shape == (2, 16, 16)
    assert ((maps >= 0) & (maps <= 1)).all()
    torch.testing.assert_close(verifier.defect_maps(pictures[1:], [prompt])[0], maps[1])
