"""What every verifier is, shown on ones that need no model."""

import numpy as np
import pytest
import torch
from PIL import Image

from lotts import verifiers
from lotts.arguments import check_prompt
from lotts.verifiers.base import Verifier, as_picture, placed
from lotts.verifiers.shapes import ShapesVerifier


class Brightness(Verifier):
    """The mean of a picture times a weight, plus the length of its prompt."""

    name, version, scale = "brightness", "1", "0 to 1"
    batch_size = 3

    def __init__(self, dtype=torch.float32, wrong=()):
        super().__init__(dtype)
        self.layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.layer.weight)
        self.wrong, self.encoded, self.batches = wrong, [], []

    def encode_prompts(self, prompts):
        self.encoded.append(list(prompts))
        return {prompt: len(prompt) for prompt in prompts}

    def preprocess(self, image):
        return torch.from_numpy(np.array(image)).float().mean() / 255

    def forward(self, tensors, cache):
        self.batches.append(len(tensors))
        scores = self.layer(tensors[:, None])[:, 0] + torch.tensor(cache)
        return torch.where(torch.tensor([entry in self.wrong for entry in cache]), torch.nan, scores)


class Darkness(Brightness):
    higher_is_better = False


def greys(*values):
    return [np.full((4, 6, 3), value, np.float32) for value in values]


def test_scores_are_one_float32_tensor_on_the_cpu():
    scores = Brightness().score(greys(0, 0.2, 1), ["a", "bb", "a"])
    assert scores.dtype == torch.float32
    assert scores.device.type == "cpu"
    assert scores.tolist() == pytest.approx([1, 2.2, 2])
    assert Brightness().score([], []).shape == (0,)


def test_batches_are_as_asked():
    verifier = Brightness()
    verifier.score(greys(*[0.5] * 7), ["a"] * 7)
    verifier.score(greys(*[0.5] * 7), ["a"] * 7, batch_size=5)
    assert verifier.batches == [3, 3, 1, 5, 2]
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="batch_size to be a whole number from 1 up"):
            verifier.score(greys(0), ["a"], batch_size=size)


def test_a_prompt_is_encoded_once_and_kept_by_the_caller():
    verifier, cache = Brightness(), {}
    verifier.score(greys(0, 0, 0), ["a", "b", "a"], cache)
    verifier.score(greys(0, 0), ["b", "c"], cache)
    assert verifier.encoded == [["a", "b"], ["c"]]
    assert cache == {"a": 1, "b": 1, "c": 1}


def test_it_is_a_plain_callable():
    images, prompts = greys(0, 1), ["a", "a"]
    assert Brightness()(images, prompts) == [1, 2]
    assert verifiers.score(Brightness(), images, prompts) == [1, 2]
    assert Darkness()(images, prompts) == [-1, -2]
    assert verifiers.load(verifier := Brightness()) is verifier


def test_a_score_that_is_not_finite_names_the_picture():
    with pytest.raises(ValueError, match=r"brightness scored picture 4 \('bad'\) nan: expected a finite number"):
        Brightness(wrong=(3,)).score(greys(*[0] * 6), ["a", "b", "c", "d", "bad", "bad"])


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (greys(0), "a", "one prompt for each of 1 images, got one string"),
        (greys(0, 1), ["a"], "one prompt for each of 2 images, got 1"),
        ([np.zeros((4, 4, 3), np.uint8)], ["a"], "as picture 0, got ndarray uint8"),
        ([*greys(0), np.zeros((4, 4), np.float32)], ["a", "a"], r"as picture 1, got ndarray float32 \[4, 4\]"),
        (greys(2), ["a"], r"picture 0 in \[0, 1\], got values from 2"),
        (greys(np.nan), ["a"], r"picture 0 in \[0, 1\]"),
        ([None], ["a"], "as picture 0, got NoneType"),
    ],
)
def test_wrong_input_is_refused_before_any_compute(images, prompts, message):
    verifier = Brightness()
    with pytest.raises(ValueError, match=message):
        verifier.score(images, prompts)
    assert not verifier.encoded
    assert not verifier.batches


def test_pictures_of_any_mode_become_rgb():
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        assert as_picture(Image.new(mode, (3, 5))).mode == "RGB"
        assert as_picture(Image.new(mode, (3, 5)), mode=None).mode == mode
    array = np.array([[[0, 0.5, 1]]], np.float64)
    assert as_picture(array).getpixel((0, 0)) == (0, 128, 255)


def test_precision_is_named_or_a_dtype():
    assert Brightness("bf16").dtype == Brightness(torch.bfloat16).dtype == torch.bfloat16
    assert Brightness().dtype == torch.float32
    for wrong in ("float32", torch.int8, 16):
        with pytest.raises(ValueError, match="expected dtype to be one of fp32, fp16, bf16"):
            Brightness(wrong)


def test_on_moves_in_and_out_also_after_an_exception(monkeypatch):
    verifier = Brightness()
    places = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, place: places.append(str(place)))
    with verifier.on("meta"):
        assert places == ["meta"]
    with pytest.raises(ValueError, match="stop"), verifier.on("meta"):
        raise ValueError("stop")
    assert places == ["meta", "cpu"] * 2


def test_a_verifier_follows_only_from_the_cpu_and_if_it_wants_to():
    class Recorded(Brightness):
        def on(self, device):
            raise LookupError(device)

    with pytest.raises(LookupError, match="meta"):
        placed(Recorded(), "meta")
    stays = Recorded()
    stays.follows = False
    for judge, device in ((stays, "meta"), (Recorded(), None), (Recorded().to("meta"), "cuda"), (len, "meta")):
        with placed(judge, device):
            pass
    assert ShapesVerifier.follows is False


def test_a_run_scores_on_the_pipelines_device(tiny_pipe):
    import lotts

    used = []

    class Recorded(Brightness):
        def on(self, device):
            used.append(str(device))
            return super().on(device)

    out = lotts.LoTTS(tiny_pipe, Recorded())("a red cat", 2, 1, num_inference_steps=2)
    assert used == ["cpu"]
    assert len(out.samples) == 4
    assert out.improvement >= 0


def test_names_are_lazy_and_load_makes_them(monkeypatch):
    monkeypatch.setitem(verifiers.REGISTRY, "bright", Brightness)
    monkeypatch.setitem(verifiers.REGISTRY, "bright-lazy", f"{__name__}:Brightness")
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("sys").modules[Brightness.__module__])
    assert isinstance(verifiers.load("bright"), Brightness)
    assert isinstance(verifiers.load("bright-lazy"), Brightness)
    assert {"imagereward", "hpsv2", "pickscore", "clipscore", "aesthetic", "shapes"} <= set(verifiers.available())
    for entry in verifiers.REGISTRY.values():
        if isinstance(entry, str) and entry.startswith("lotts."):
            module, _, attribute = entry.partition(":")
            assert callable(getattr(__import__(module, fromlist=[attribute]), attribute))


def test_a_location_goes_to_the_verifier(monkeypatch, tmp_path):
    monkeypatch.setitem(verifiers.REGISTRY, "place", lambda location: lambda images, prompts: location)
    assert verifiers.load("place=/models/a=b")([], []) == "/models/a=b"
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        verifiers.load(f"shapes={tmp_path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nobody", "expected a verifier out of imagereward.*got 'nobody'"),
        ("shapes,nobody", "got 'nobody'"),
        ("", "got ''"),
        ("shapes,", "got ''"),
        ("shapes:x,shapes", "a number as the weight of shapes, got 'x'"),
        ("shapes:-1,shapes", "a weight above 0 for shapes"),
        ("shapes:nan,shapes", "a weight above 0 for shapes"),
        ("shapes=", "hub id after shapes="),
        ("rank(shapes)", "at least 2 verifiers in an ensemble, got 1"),
        ("shapes,shapes", "different verifiers in an ensemble, got shapes, shapes"),
        ("median(shapes,shapes)", r"got 'median\(shapes'"),
    ],
)
def test_texts_that_name_no_verifier(text, message):
    with pytest.raises(ValueError, match=message):
        verifiers.load(text)
    with pytest.raises(TypeError, match="got int"):
        verifiers.load(1)


def test_shapes_satisfies_the_protocol():
    verifier = verifiers.load("shapes")
    assert isinstance(verifier, Verifier)
    check_prompt("a red circle left of a blue star", verifier)
    image = np.random.default_rng(0).random((128, 128, 3), np.float32)
    prompt = "a red circle left of a blue star"
    cache = verifier.encode_prompts([prompt])
    assert verifier.score([image], [prompt], cache).tolist() == verifier([image], [prompt])
    assert verifier.score([image] * 3, [prompt] * 3, batch_size=3).tolist() == verifier([image], [prompt]) * 3
