"""The Fréchet distance is that of the formula, and says what it was measured with."""

import json
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lotts.metrics import InceptionFeatures, ShapesFeatures, fid, frechet_distance, moments_of
from lotts.shapes import reward
from lotts.shapes.draw import SIDE, draw
from lotts.shapes.scenes import sample_scene


class Pixels:
    """An extractor whose features are easily told: the mean of each channel."""

    name, version, size, resize, dim = "channel-means", "1", None, "none", 3

    def __init__(self):
        self.batches = []

    def features(self, images):
        self.batches.append(len(images))
        return torch.tensor(np.array([image.mean((0, 1)) for image in images]))


def covariance(rng, dim, rank):
    samples = rng.normal(size=(rank, dim))
    return samples.T @ samples / dim


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(9)]


@pytest.mark.parametrize("rank", [16, 9])  # full, and singular as with too few pictures
def test_the_distance_is_scipys(rank):
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(rank)
    a, b = covariance(rng, 16, rank), covariance(rng, 16, rank + 3)
    mean_a, mean_b = rng.normal(size=(2, 16))
    root = linalg.sqrtm(a @ b).real
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(a + b - 2 * root)
    # On singular matrices sqrtm itself keeps half of the digits only.
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-10 if rank == 16 else 1e-6)


def test_the_distance_of_commuting_covariances_is_that_of_their_standard_deviations():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b = rng.uniform(0, 3, (2, 6))
    a[2] = b[4] = 0
    value = frechet_distance(np.zeros(6), (basis * a) @ basis.T, np.ones(6), (basis * b) @ basis.T)
    assert value == pytest.approx(6 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rel=1e-7)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 12), st.floats(1e-6, 1e6))
def test_it_is_a_distance(seed, dim, rank, scale):
    rng = np.random.default_rng(seed)
    a, b = scale * covariance(rng, dim, rank), scale * covariance(rng, dim, rank)
    mean_a, mean_b = np.sqrt(scale) * rng.normal(size=(2, dim))
    there, back = frechet_distance(mean_a, a, mean_b, b), frechet_distance(mean_b, b, mean_a, a)
    size = np.trace(a) + np.trace(b)
    assert there >= np.sum((mean_a - mean_b) ** 2) - 1e-6 * size
    assert there == pytest.approx(back, abs=1e-6 * size)
    assert frechet_distance(mean_a, a, mean_a, a) <= 1e-6 * size


@pytest.mark.parametrize(
    ("mean", "cov", "message"),
    [
        (np.zeros(3), np.eye(2), r"means \[2\] and covariances \[2, 2\], got \(3,\)"),
        (np.zeros(2), np.eye(3), r"got \(2,\) and \(3, 3\)"),
        (np.array([0, np.nan]), np.eye(2), "finite"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (np.zeros(2), np.diag([1.0, -0.5]), "positive semi-definite"),
    ],
)
def test_what_is_no_gaussian_is_refused(mean, cov, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(np.zeros(2), np.eye(2), mean, cov)


def test_the_number_carries_what_it_depends_on(pictures):
    extractor = Pixels()
    reference, generated = moments_of(pictures, extractor), moments_of(iter(pictures[:5]), extractor, batch_size=2)
    assert extractor.batches == [9, 2, 2, 1]
    result = fid(reference, generated)
    assert str(result).endswith("(channel-means 1, 3 features, none to own size, 5 against 9 pictures)")
    kept = json.loads(json.dumps(result.as_dict()))
    assert kept == {
        "extractor": "channel-means",
        "version": "1",
        "size": None,
        "resize": "none",
        "value": result.value,
        "dim": 3,
        "reference": 9,
        "generated": 5,
    }
    features = np.array([picture.mean((0, 1)) for picture in pictures])
    first = features[:5]
    assert result.value == pytest.approx(
        frechet_distance(features.mean(0), np.cov(features.T), first.mean(0), np.cov(first.T))
    )


def test_every_kind_of_picture_is_the_same_picture(pictures, tmp_path):
    pixels = pictures[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    floats = pixels / np.float32(255)
    kinds = [pixels, Image.fromarray(pixels), floats, torch.from_numpy(floats).permute(2, 0, 1), tmp_path / "a.png"]
    means = [moments_of([kind], Pixels()).mean for kind in kinds]
    assert all(np.array_equal(mean, pixels.mean((0, 1))) for mean in means)


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (np.zeros((4, 4), np.uint8), ValueError, r"picture 1 as an array \[H, W, 3\], got shape \[4, 4\]"),
        (torch.zeros(4, 4, 3), ValueError, r"picture 1 as a tensor \[3, H, W\], got shape \[4, 4, 3\]"),
        (np.full((4, 4, 3), 255.0), ValueError, r"picture 1 in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), ValueError, r"picture 1 in \[0, 1\]"),
        (np.zeros((4, 4, 3), np.int64), ValueError, "picture 1 in uint8 or in floats"),
        (7, TypeError, "picture 1 as a PIL image, array, tensor or path, got int"),
    ],
)
def test_what_is_no_picture_is_named(pictures, picture, error, message):
    with pytest.raises(error, match=message):
        moments_of([pictures[0], picture], Pixels())


def test_few_pictures_are_warned_about(pictures):
    enough, few = moments_of(pictures, Pixels()), moments_of(pictures[:3], Pixels())
    with pytest.warns(UserWarning, match="the generated set has 3 pictures for 3 features"):
        fid(enough, few)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fid(enough, moments_of(pictures[:4], Pixels()))


def test_features_of_different_origin_do_not_compare(pictures):
    other = Pixels()
    other.resize = "pil-bicubic"
    with pytest.raises(ValueError, match=r"same features.*none.*pil-bicubic"):
        fid(moments_of(pictures, Pixels()), moments_of(pictures, other))


def test_extractors_are_checked(pictures):
    with pytest.raises(TypeError, match="got object without name, version, size, resize, dim, features"):
        moments_of(pictures, object())
    short = Pixels()
    short.features = lambda images: torch.zeros(1, 3)
    with pytest.raises(ValueError, match="features of 9 pictures from channel-means, got 1"):
        moments_of(pictures, short)
    with pytest.raises(ValueError, match="batch_size"):
        moments_of(pictures, Pixels(), batch_size=0)


def drawings(count, seed, damaged=False):
    rng = np.random.default_rng(seed)
    return [draw(sample_scene(rng, 6), rng, damaged=damaged).image for _ in range(count)]


@pytest.fixture(scope="module")
def shapes_features(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("reward")
    reward.save(reward.RewardModel(), folder)
    return ShapesFeatures(folder)


def test_the_embedded_features_do_not_depend_on_the_batch(shapes_features):
    images = drawings(3, 0)
    together = shapes_features.features(images)
    assert together.shape == (3, shapes_features.dim)
    torch.testing.assert_close(together, torch.cat([shapes_features.features([i]) for i in images]), rtol=0, atol=1e-5)
    assert shapes_features.features([]).shape == (0, shapes_features.dim)


def test_the_embedded_features_take_other_sizes(shapes_features):
    (image,) = drawings(1, 0)
    double = np.repeat(np.repeat(image, 2, 0), 2, 1)
    small = np.asarray(Image.fromarray(double).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    assert torch.equal(shapes_features.features([double]), shapes_features.features([small]))


@pytest.mark.skipif(not (reward.FOLDER / "model.safetensors").is_file(), reason="the verifier's weights are not here")
def test_damaged_drawings_are_farther_than_other_drawings():
    extractor = ShapesFeatures()
    sets = [moments_of(drawings(110, seed, seed == 3), extractor) for seed in (1, 2, 3)]
    clean, again, damaged = sets
    assert fid(clean, damaged).value > 1.5 * fid(clean, again).value


class FakeInception(torch.nn.Module):
    """Stands in for torch-fidelity's class: same call, features that tell what came."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        self.shapes = []

    def forward(self, x):
        assert x.dtype == torch.uint8
        self.shapes.append(tuple(x.shape))
        return (x.float().mean((2, 3)).repeat(1, 683)[:, :2048],)


class BrokenModule(types.ModuleType):
    """As beside a torchvision built for another torch."""

    def __getattr__(self, name):
        raise RuntimeError("operator torchvision::nms does not exist")


@pytest.fixture
def torch_fidelity(monkeypatch):
    module = types.ModuleType("torch_fidelity")
    module.FeatureExtractorInceptionV3 = FakeInception
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    monkeypatch.setattr("lotts.metrics.extractors.version", {"torch-fidelity": "0.4.0"}.__getitem__)


def test_inception_sees_pictures_of_one_size_together_and_in_order(torch_fidelity):
    extractor = InceptionFeatures()
    wide, tall = (np.full(shape, level, np.uint8) for shape, level in (((4, 6, 3), 10), ((6, 4, 3), 20)))
    features = extractor.features([wide, tall, wide + 30])
    assert features[:, 0].tolist() == [10, 20, 40]
    assert extractor.network.shapes == [(2, 3, 4, 6), (1, 3, 6, 4)]
    assert extractor.version == "0.4.0"
    resized = InceptionFeatures("pil-bicubic")
    resized.features([wide, tall])
    assert resized.network.shapes == [(2, 3, 299, 299)]


def test_inception_of_other_weights_is_another_origin(torch_fidelity, tmp_path):
    versions = []
    for content in (b"one", b"two"):
        (tmp_path / "inception.pth").write_bytes(content)
        versions.append(InceptionFeatures(weights=tmp_path / "inception.pth").version)
    assert all(version.startswith("0.4.0 ") for version in versions)
    assert len(set(versions)) == 2


def test_features_of_other_weights_do_not_compare(tmp_path):
    pictures = drawings(3, 0)
    model = reward.load()
    moments = []
    for shift in (0.0, 0.1):
        model.scene_query.data += shift
        reward.save(model, tmp_path)
        moments.append(moments_of(pictures, ShapesFeatures(tmp_path)))
    assert moments[0].origin.extractor == moments[1].origin.extractor
    with pytest.raises(ValueError, match="expected both sets in the same features"):
        fid(*moments)


def test_inception_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install 'lotts\[fid\]'"):
        InceptionFeatures()
    monkeypatch.setitem(sys.modules, "torch_fidelity", BrokenModule("torch_fidelity"))
    with pytest.raises(ImportError, match=r"torchvision that fits this torch \(operator torchvision::nms"):
        InceptionFeatures()
    with pytest.raises(ValueError, match="resize to be tensorflow-bilinear or pil-bicubic, got 'none'"):
        InceptionFeatures("none")
    with pytest.raises(FileNotFoundError, match=r"at .*inception\.pth"):
        InceptionFeatures(weights=tmp_path / "inception.pth")
