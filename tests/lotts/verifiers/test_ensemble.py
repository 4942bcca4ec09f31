"""Laws of ensembles: what does not change the scores, and what decides a tie."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lotts import verifiers
from lotts.verifiers.base import Verifier
from lotts.verifiers.ensemble import Ensemble, Member, combine

METHODS = ("rank", "zscore")
numbers = st.integers(-50, 50).map(lambda n: n / 8)
weights_ = st.integers(1, 16).map(lambda n: n / 4)


@st.composite
def tables(draw):
    members, count = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    rows = st.lists(numbers, min_size=count, max_size=count)
    scores = draw(st.lists(rows, min_size=members, max_size=members))
    weights = draw(st.lists(weights_, min_size=members, max_size=members))
    return torch.tensor(scores, dtype=torch.float64), weights, ["p"] * count


def best(scores):
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


@pytest.mark.parametrize("method", METHODS)
@given(table=tables())
def test_the_order_of_members_and_pictures_does_not_matter(method, table):
    scores, weights, prompts = table
    combined = combine(scores, weights, prompts, method)
    assert torch.equal(combine(scores.flip(0), weights[::-1], prompts, method), combined)
    assert torch.equal(combine(scores.flip(1), weights, prompts, method), combined.flip(0))


@given(table=tables())
def test_ranks_see_only_order(table):
    scores, weights, prompts = table
    combined = combine(scores, weights, prompts)
    assert torch.equal(combine(scores**3 + 2 * scores - 7, weights, prompts), combined)
    assert combined.min() >= 0
    assert combined.max() <= 1
    assert combined.double().mean() == pytest.approx(0.5, abs=1e-6)


@given(table=tables(), scale=st.sampled_from([1e-9, 0.5, 3.0, 1e9]), offset=st.sampled_from([0.0, -5.0, 1e4]))
def test_standard_scores_see_neither_scale_nor_offset(table, scale, offset):
    scores, weights, prompts = table
    combined = combine(scores, weights, prompts, "zscore")
    if scale >= 0.5 or offset == 0:
        moved = combine(scale * scores + offset, weights, prompts, "zscore")
        torch.testing.assert_close(moved, combined, rtol=1e-4, atol=1e-5)
    assert combined.double().mean() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
@given(table=tables())
def test_better_everywhere_is_better(method, table):
    scores, weights, prompts = table
    combined = combine(scores, weights, prompts, method)
    for i in range(len(prompts)):
        for j in range(len(prompts)):
            if (scores[:, i] >= scores[:, j]).all():
                assert combined[i] >= combined[j]
                if (scores[:, i] > scores[:, j]).any():
                    assert combined[i] > combined[j]


@pytest.mark.parametrize("method", METHODS)
@given(table=tables())
def test_equal_pictures_tie_to_the_bit_and_the_first_is_best(method, table):
    scores, weights, prompts = table
    doubled = combine(scores.repeat(1, 2), weights, prompts * 2, method)
    assert torch.equal(doubled[: len(prompts)], doubled[len(prompts) :])
    assert best(doubled.tolist()) < len(prompts)


@pytest.mark.parametrize("method", METHODS)
@given(table=tables(), factor=st.sampled_from([2.0, 0.1, 7.0]))
def test_only_the_ratio_of_weights_counts(method, table, factor):
    scores, weights, prompts = table
    combined = combine(scores, weights, prompts, method)
    scaled = combine(scores, [factor * weight for weight in weights], prompts, method)
    torch.testing.assert_close(scaled, combined, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@given(table=tables())
def test_a_member_without_an_opinion_changes_no_choice(method, table):
    scores, weights, prompts = table
    alone = combine(scores, weights, prompts, method)
    silent = torch.full((1, len(prompts)), 0.1, dtype=torch.float64)
    joined = combine(torch.cat([scores, silent]), [*weights, 1.0], prompts, method)
    assert torch.isfinite(joined).all()
    assert best(joined.tolist()) == best(alone.tolist())


@pytest.mark.parametrize("method", METHODS)
@given(first=tables(), second=tables())
def test_prompts_are_sets_of_their_own(method, first, second):
    if len(first[0]) != len(second[0]):
        return
    scores = torch.cat([first[0], second[0]], 1)
    prompts = ["p"] * first[0].shape[1] + ["q"] * second[0].shape[1]
    both = combine(scores, first[1], prompts, method)
    alone = [combine(scores[:, [p == q for p in prompts]], first[1], ["x"] * prompts.count(q), method) for q in "pq"]
    assert torch.equal(both, torch.cat(alone))


@given(table=tables())
def test_standard_scores_are_the_formula(table):
    scores, weights, prompts = table
    expected = np.zeros(len(prompts))
    for row, weight in zip(scores.numpy(), weights, strict=True):
        if row.std() > 0:
            expected += weight * (row - row.mean()) / row.std() / sum(weights)
    np.testing.assert_allclose(combine(scores, weights, prompts, "zscore"), expected, atol=1e-5)


def test_ranks_by_hand():
    scores = torch.tensor([[1.0, 2.0, 2.0, 9.0]])
    assert combine(scores, [1.0], "pppp").tolist() == pytest.approx([0, 0.5, 0.5, 1])
    assert combine(scores[:, :1], [1.0], "p").tolist() == [0.5]
    votes = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert combine(votes, [2.0, 1.0], "pp").tolist() == pytest.approx([1 / 3, 2 / 3])


class Fixed(Verifier):
    name, version, scale = "fixed", "v1", "any"

    def __init__(self, higher_is_better=True):
        super().__init__()
        self.higher_is_better = higher_is_better
        self.layer = torch.nn.Linear(1, 1)
        self.homes = []

    def preprocess(self, image):
        return torch.tensor(image.getpixel((0, 0))[0] / 255)

    def forward(self, tensors, cache):
        self.homes.append(str(self._device))
        return tensors.float()


def greys(*values):
    return [np.full((2, 2, 3), value, np.float32) for value in values]


def test_members_may_be_callables_and_count_downwards():
    def length(images, prompts):
        return [len(images) - i for i in range(len(images))]

    ensemble = Ensemble([Member("up", Fixed()), Member("down", Fixed(False)), Member("call", length, 0.5)])
    scores = ensemble(greys(0.2, 0.8, 0.4), ["a"] * 3)
    assert scores == pytest.approx([0.6, 0.5, 0.4])
    assert ensemble.name == "rank(up:1,down:1,call:0.5)"
    assert ensemble.version == "v1, v1, call"
    assert "within the pictures of one prompt and call" in ensemble.scale
    cache = ensemble.encode_prompts(["a"])
    assert ensemble.score(greys(0.2, 0.8, 0.4), ["a"] * 3, cache, 2).tolist() == scores
    assert set(cache) == {"up", "down"}


def test_members_move_one_at_a_time(monkeypatch):
    moves = []
    first, second = Fixed(), Fixed()
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, place: moves.append((self is second.layer, str(place))) or self
    )
    ensemble = Ensemble([Member("first", first), Member("second", second)])
    with pytest.raises(ValueError, match="one prompt"), ensemble.on("meta"):
        ensemble.score(greys(0.1), [])
    assert moves == []
    with ensemble.on("meta"):
        ensemble.score(greys(0.1, 0.4), ["a", "a"])
    assert moves == [(False, "meta"), (False, "cpu"), (True, "meta"), (True, "cpu")]
    ensemble.score(greys(0.1), ["a"])
    assert len(moves) == 4
    ensemble.to("meta").offload()
    assert moves[4:] == [(False, "meta"), (True, "meta"), (False, "cpu"), (True, "cpu")]


def test_a_member_that_fails_is_named():
    bad = Ensemble([Member("up", Fixed()), Member("odd", lambda images, prompts: [math.nan] * len(images))])
    with pytest.raises(ValueError, match=r"odd scored picture 0 \('a'\) nan"):
        bad(greys(0.1), ["a"])
    short = Ensemble([Member("up", Fixed()), Member("short", lambda images, prompts: [1.0])])
    with pytest.raises(ValueError, match="one score for each of 2 pictures, got 1 of short"):
        short(greys(0.1, 0.2), ["a", "a"])
    with pytest.raises(ValueError, match="weight above 0 for x, got 0"):
        Member("x", Fixed(), 0.0)
    with pytest.raises(ValueError, match="method to be one of rank, zscore, got 'mean'"):
        Ensemble([Member("a", Fixed()), Member("b", Fixed())], "mean")


def test_members_refuse_prompts_for_all():
    ensemble = Ensemble([Member("up", Fixed()), Member("shapes", verifiers.load("shapes"))])
    ensemble.check_prompt("a red circle left of a blue star")
    with pytest.raises(ValueError, match="a photo of a cat"):
        ensemble.check_prompt("a photo of a cat")


def test_a_run_uses_an_ensemble(tiny_pipe, monkeypatch):
    import lotts

    monkeypatch.setitem(verifiers.REGISTRY, "bright", lambda: lambda images, prompts: [float(i.mean()) for i in images])
    monkeypatch.setitem(
        verifiers.REGISTRY, "red", lambda: lambda images, prompts: [float(i[..., 0].mean()) for i in images]
    )
    out = lotts.LoTTS(tiny_pipe, "zscore(bright:2,red)")("a red cat", 2, 1, num_inference_steps=2)
    bright = [sample.pixels.mean() / 255 for sample in out.samples]
    red = [sample.pixels[..., 0].mean() / 255 for sample in out.samples]
    expected = combine(torch.tensor([bright, red]), [2, 1], ["p"] * 4, "zscore").tolist()
    assert [sample.score for sample in out.samples] == pytest.approx(expected, abs=0.05)
    assert out.improvement >= 0
