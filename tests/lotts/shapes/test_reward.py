"""The reward model learns, its labels say what was done, and its measures are right."""

import dataclasses

import numpy as np
import pytest
import torch

from lotts.shapes.draw import draw
from lotts.shapes.loop import Recipe, Worker, fit
from lotts.shapes.reward import RewardConfig, RewardModel, load, save, score
from lotts.shapes.reward_data import IGNORE, mirror, misquote, sample_picture, wear
from lotts.shapes.reward_queries import Queries
from lotts.shapes.reward_samples import judged, samples
from lotts.shapes.scenes import MAX_OBJECTS, Item, Scene, caption, sample_scene
from lotts.shapes.train_reward import (
    Batch,
    RewardLoss,
    answers_loss,
    auc,
    evaluate_reward,
    export_reward,
    ranks,
    spearman,
)

CPU = torch.device("cpu")
SMALL = RewardConfig(widths=(16, 16, 32), layers=2)


def pictures(count, seed=0, objects=None):
    rng = np.random.default_rng(seed)
    made = []
    while len(made) < count:
        picture = sample_picture(rng)
        if objects is None or len(picture.scene.items) <= objects:
            made.append(picture)
    return made


# --- measures


def test_auc_counts_the_pairs_in_order_ties_half():
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    # Pairs: 0.4 over 0.1, 0.4 ties with 0.4, 0.8 over both.
    assert auc(scores, positive) == pytest.approx((1 + 0.5 + 2) / 4)
    assert auc(-scores, positive) == pytest.approx(1 - 3.5 / 4)


def test_auc_of_one_class_is_undefined():
    assert np.isnan(auc(np.array([1.0, 2.0]), np.array([True, True])))


def test_ranks_of_ties_are_their_mean():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_spearman_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 25, 90]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = (0, -1, 1, 0)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / 60)
    assert np.isnan(spearman([1, 2], [5, 5]))


# --- labels


@pytest.mark.parametrize("kind", ["rows", "relation", "free"])
def test_the_checker_says_of_a_mirrored_picture_what_its_labels_say(kind):
    rng, seen = np.random.default_rng(3), 0
    while seen < 3:
        scene = sample_scene(rng, 3)
        picture = judged(draw(scene, rng, damaged=bool(seen % 2)).image, caption(scene, rng))
        if scene.kind != kind or len(set(scene.items)) < 3 or (mirrored := mirror(picture)) is picture:
            continue  # of two alike either may stand for either
        again = judged(mirrored.image, caption(mirrored.scene, rng))
        np.testing.assert_array_equal(again.right, mirrored.right)
        np.testing.assert_array_equal(again.seen, mirrored.seen)
        assert (again.cells[2] != mirrored.cells[2]).mean() < 0.01  # cells that pixels at a rim decide
        for spot, expected in zip(again.placed, mirrored.placed, strict=True):
            assert abs(spot.x - expected.x) < 1
            assert abs(spot.y - expected.y) < 1
        back = mirror(mirrored)
        assert back.scene == picture.scene
        assert np.array_equal(back.image, picture.image)
        seen += 1


def test_no_picture_becomes_one_of_a_scene_kept_from_training():
    rng = np.random.default_rng(0)
    made = [sample_picture(rng) for _ in range(60)]
    assert not any(mirror(picture).scene.held_out() for picture in made)
    assert not any(misquote(picture, rng).scene.held_out() for picture in made for _ in range(5))
    assert 0 < sum(mirror(picture) is picture for picture in made) < 15


def test_a_misquoted_caption_is_wrong_exactly_where_it_changed():
    rng, seen = np.random.default_rng(1), 0
    for picture in pictures(150, seed=1):
        if picture.scene.relations:
            continue
        quoted = misquote(picture, rng)
        changed = np.array([a != b for a, b in zip(quoted.scene.items, picture.scene.items, strict=True)])
        assert (quoted.right[changed] == 0).all()
        assert (picture.right[changed] == 1).all()
        assert (quoted.right[~changed] == picture.right[~changed]).all()
        assert quoted.image is picture.image
        seen += changed.sum()
    assert seen > 150


def test_a_relation_turned_about_is_wrong_at_both_ends():
    rng, turned = np.random.default_rng(2), 0
    for picture in (p for p in pictures(100, seed=2, objects=3) if p.scene.relations):
        quoted = misquote(picture, rng)
        if quoted.scene.relations != picture.scene.relations:
            at = next(i for i, r in enumerate(quoted.scene.relations) if r != picture.scene.relations[i])
            assert quoted.right[0] == quoted.right[at + 1] == 0
            turned += 1
    assert turned > 3


def test_nothing_right_leaves_nothing_to_misquote():
    picture = pictures(1)[0]
    wrong = dataclasses.replace(picture, right=np.zeros_like(picture.right))
    assert misquote(wrong, np.random.default_rng(0)) is wrong


def test_labels_agree_with_the_checker():
    agree = []
    for picture in pictures(60, seed=3):
        verdict = judged(picture.image, caption(picture.scene))
        known = picture.right != IGNORE
        agree += (verdict.right == picture.right)[known].tolist()
    assert np.mean(agree) > 0.97


def test_what_the_checker_finds_damaged_teaches_the_cells():
    found, drawn = [], []
    for picture in pictures(60, seed=4):
        verdict = judged(picture.image, caption(picture.scene))
        assert verdict.exact
        assert (verdict.cells[:2] == IGNORE).all()
        if picture.tidy:
            found.append(verdict.cells[2])
            drawn.append(picture.cells[2])
    hurt = np.concatenate(drawn) == 1
    assert hurt.sum() > 50
    assert np.concatenate(found)[hurt].mean() > 0.75
    assert np.concatenate(found)[~hurt].mean() < 0.02


def test_wear_keeps_the_picture():
    picture = pictures(1)[0]
    worn = wear(picture, np.random.default_rng(0)).image
    assert worn.shape == picture.image.shape
    assert worn.dtype == np.uint8
    assert 0 < np.abs(worn.astype(float) - picture.image).mean() < 8


def test_what_was_judged_pixel_by_pixel_is_not_worn():
    picture = pictures(1)[0]
    sample = judged(picture.image, caption(picture.scene))
    assert all(wear(sample, np.random.default_rng(seed)) is sample for seed in range(8))


def test_samples_are_read_and_judged(tmp_path):
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng, 3) for _ in range(4)]
    images = np.stack([draw(scene, rng).image for scene in scenes])
    np.savez(tmp_path / "a.npz", images=images, captions=[caption(scene) for scene in scenes])
    source = samples([tmp_path / "a.npz"], 0)
    twice = [next(source) for _ in range(8)]
    assert {p.image.tobytes() for p in twice} == {image.tobytes() for image in images}
    assert np.mean([p.right.mean() for p in twice]) > 0.9


# --- the model


def test_queries_state_the_caption_and_pad_the_rest():
    rows = Scene("rows", (Item("red", "circle"), Item("blue", "star", "small")), rows=(2,))
    queries = Queries.of([rows, Scene("free", rows.items)])
    assert queries.real.sum(1).tolist() == [2, 2]
    assert queries.stated[0, 1].tolist() == [4, 4, 0]
    # The first centre, a quarter of the way across and half way down, lies between four tokens.
    assert queries.near[0, 0].argmax() in (7 * 16 + 3, 7 * 16 + 4, 8 * 16 + 3, 8 * 16 + 4)
    assert queries.placed.sum(1).tolist() == [2, 0]
    assert (queries.features[:, 2:] == 0).all()


def test_padding_changes_no_answer():
    torch.manual_seed(0)
    model = RewardModel(SMALL).eval()
    batch = Batch.of(pictures(2, objects=5), CPU)
    with torch.no_grad():
        before = model(batch.pictures, batch.queries)[-1]
        batch.queries.features[~batch.queries.real] = 3.0
        after = model(batch.pictures, batch.queries)[-1]
    real = batch.queries.real
    torch.testing.assert_close(before.objects[real], after.objects[real])
    torch.testing.assert_close(score(before, real), score(after, real))


def test_the_model_is_small():
    assert sum(p.numel() for p in RewardModel().parameters()) < 1_500_000


def test_a_fresh_model_learns_eight_drawings():
    torch.manual_seed(0)
    model = RewardModel(SMALL)
    batch = Batch.of(pictures(8, seed=8, objects=4), CPU)
    known, truth = batch.right != IGNORE, batch.right == 1
    assert 0.2 < truth[known].float().mean() < 0.9
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(100):
        answers = model(batch.pictures, batch.queries)
        answers_loss(answers, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    assert ((answers[-1].objects > 0) == truth)[known].float().mean() > 0.95


def test_training_exports_a_model_that_loads(tmp_path):
    torch.manual_seed(0)
    model, recipe = RewardModel(), Recipe(images=8, batch_size=4, learning_rate=1e-3)
    fit(Worker(0, 1, 0, CPU), model, RewardLoss(model, recipe, Worker(0, 1, 0, CPU)), recipe, tmp_path / "reward")
    export_reward(tmp_path, folder=tmp_path / "weights")
    loaded = load(tmp_path / "weights")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    figures = evaluate_reward(loaded, pictures=24)
    assert 0 <= figures["auc"] <= 1
    assert -1 <= figures["spearman"] <= 1


def test_answers_have_one_logit_an_item_and_one_a_picture():
    batch = Batch.of(pictures(3), CPU)
    answers = RewardModel(SMALL)(batch.pictures, batch.queries)
    assert len(answers) == SMALL.layers
    assert answers[-1].objects.shape == (3, MAX_OBJECTS)
    assert answers[-1].scene.shape == (3,)


def test_wrong_configurations_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="divisible by 8"):
        RewardConfig(widths=(24, 40, 90))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(tmp_path)
    save(RewardModel(SMALL), tmp_path)
    (tmp_path / "config.json").write_text('{"version": 0}')
    with pytest.raises(ValueError, match="expected version 1"):
        load(tmp_path)
