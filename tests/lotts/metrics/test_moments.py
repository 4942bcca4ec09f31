"""Streamed moments are those of all samples at once, whatever the batches, the order and the workers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts.metrics import Moments, Origin

ORIGIN = Origin("pixels", "1", (8, 8), "pil-bilinear")


def moments(features, origin=ORIGIN):
    out = Moments(origin, features.shape[1])
    out.update(features)
    return out


@st.composite
def cut_samples(draw):
    """Samples far from zero, and where to cut them into batches (empty ones and single samples among them)."""
    count, dim = draw(st.integers(2, 30)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples = rng.normal(draw(st.sampled_from([0.0, 1.0, 1e6])), 1, (count, dim))
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=5)))
    return samples, np.split(samples, cuts)


@settings(deadline=None)
@given(cut_samples())
def test_any_batches_give_the_moments_of_all_samples(given_samples):
    samples, batches = given_samples
    streamed = Moments(ORIGIN, samples.shape[1])
    for batch in batches:
        streamed.update(batch)
    backwards = Moments.merged([moments(batch) for batch in reversed(batches)])
    for found in (streamed, backwards):
        assert found.count == len(samples)
        np.testing.assert_allclose(found.mean, samples.mean(0), rtol=1e-12, atol=1e-12)
        centred = samples - samples.mean(0)
        expected = centred.T @ centred / (len(samples) - 1)
        np.testing.assert_allclose(found.covariance, expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())


def test_a_far_mean_costs_no_digits():
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 1, (1000, 3))
    far = Moments(ORIGIN, 3)
    for batch in np.split(samples + 1e8, 10):
        far.update(batch)
    rounded = samples + 1e8 - 1e8  # what float64 can hold of the samples so far out
    np.testing.assert_allclose(far.covariance, np.cov(rounded.T), rtol=1e-6, atol=1e-6)
    naive = (samples + 1e8).T @ (samples + 1e8) / 1000 - np.outer((samples + 1e8).mean(0), (samples + 1e8).mean(0))
    assert np.abs(naive - np.cov(rounded.T)).max() > 0.1


def test_merging_changes_neither_operand():
    samples = np.random.default_rng(0).normal(size=(9, 2))
    a, b = moments(samples[:4]), moments(samples[4:])
    together = a.merge(b)
    assert (a.count, b.count, together.count) == (4, 5, 9)
    np.testing.assert_allclose(a.mean, samples[:4].mean(0))
    np.testing.assert_allclose(together.covariance, np.cov(samples.T))


def test_half_precision_features_are_summed_in_float64():
    features = torch.tensor([[1.0, 3.0], [2.0, 5.0], [4.0, -7.0]], dtype=torch.bfloat16)
    np.testing.assert_array_equal(moments(features).covariance, np.cov(features.double().numpy().T))


@pytest.mark.parametrize("size", [(8, 8), None])
def test_a_file_holds_all_of_it(tmp_path, size):
    origin = Origin("pixels", "1", size, "none")
    a = moments(np.random.default_rng(0).normal(size=(9, 3)), origin)
    read = Moments.load(a.save(tmp_path / "a.npz"))
    assert (read.origin, read.dim, read.count) == (origin, 3, 9)
    assert np.array_equal(read.mean, a.mean)
    assert np.array_equal(read.covariance, a.covariance)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]  # no temporary file stays
    assert read.merge(a).count == 18


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no file .*a\.npz"):
        Moments.load(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"saved by Moments\.save"):
        Moments.load(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="expected count, extractor, format"):
        Moments.load(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        moments(np.zeros((2, 2))).save(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("name", "value"), [("mean", np.zeros((2, 2))), ("scatter", np.full((3, 3), np.nan)), ("format", 9)]
)
def test_a_changed_file_is_refused(tmp_path, name, value):
    path = moments(np.random.default_rng(0).normal(size=(9, 3))).save(tmp_path / "a.npz")
    with np.load(path) as file:
        fields = {**file, name: value}
    np.savez(path, **fields)
    with pytest.raises(ValueError, match="expected"):
        Moments.load(path)


def test_a_file_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", mean=np.array([{"code": "any"}], object))
    with pytest.raises(ValueError, match=r"allow_pickle|Object arrays"):
        Moments.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((4, 3)), r"expected features \[N, 2\], got float64 \[4, 3\]"),
        (np.zeros(2), r"expected features \[N, 2\]"),
        (np.array([["a", "b"]]), "expected features"),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), "in sample 1 of 2"),
    ],
)
def test_wrong_features_add_nothing(features, message):
    a = Moments(ORIGIN, 2)
    with pytest.raises(ValueError, match=message):
        a.update(features)
    assert a.count == 0


def test_errors_say_what_to_do():
    empty = Moments(ORIGIN, 2)
    with pytest.raises(ValueError, match="at least 1 samples, got 0"):
        _ = empty.mean
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        _ = moments(np.zeros((1, 2))).covariance
    with pytest.raises(ValueError, match="expected moments of 2 features"):
        empty.merge(Moments(Origin("pixels", "2", (8, 8), "pil-bilinear"), 2))
    with pytest.raises(ValueError, match="got none"):
        Moments.merged([])
    with pytest.raises(ValueError, match="whole number"):
        Moments(ORIGIN, 0)
