"""Preprocessing is the published one to the bit, for pictures of any size and mode."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lotts.verifiers.pixels import MEAN, STD, Pixels

SIZES = [(64, 64), (65, 64), (67, 32), (31, 90), (224, 224), (300, 225), (225, 301), (17, 500), (512, 512), (33, 1)]
MODES = ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"]


def picture(size, mode):
    width, height = size
    rng = np.random.default_rng(width * 1000 + height)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    return image if mode == "RGBA" else image.convert("RGB" if mode == "CMYK" else "RGBA").convert(mode)


def normalised(array):
    return (array.astype(np.float64).transpose(2, 0, 1) / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[
        :, None, None
    ]


def torchvision_crop(image, side):
    """What Resize(side, BICUBIC), CenterCrop(side), RGB, ToTensor and Normalize do to a PIL image."""
    width, height = image.size
    if width <= height:
        image = image.resize((side, int(side * height / width)), Image.Resampling.BICUBIC)
    else:
        image = image.resize((int(side * width / height), side), Image.Resampling.BICUBIC)
    array = np.array(image.convert("RGB"))
    top = round((array.shape[0] - side) / 2.0)
    left = round((array.shape[1] - side) / 2.0)
    return normalised(array[top : top + side, left : left + side])


def longest_and_pad(image, side):
    """What open_clip's resize-longest transform does to a PIL image: the longer edge by PIL, RGB, black around."""
    width, height = image.size
    scale = side / float(max(height, width))
    height, width = (max(1, round(edge * scale)) for edge in (height, width))
    array = np.array(image.resize((width, height), Image.Resampling.BICUBIC).convert("RGB"))
    canvas = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = array
    return normalised(canvas)


@pytest.mark.parametrize("mode", MODES)
def test_crop_is_torchvisions(mode):
    for size in SIZES:
        image = picture(size, mode)
        np.testing.assert_allclose(Pixels()(image), torchvision_crop(image, 224), rtol=1e-5, atol=1e-6)


def authors_of_hpsv2(image, side):
    """What the package hpsv2 does: RGB, floats, the longer edge by torch's antialiased bicubic, black around, Normalize."""
    array = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).double() / 255
    scale = side / max(array.shape[1:])
    size = [round(edge * scale) for edge in array.shape[1:]]
    array = F.interpolate(array[None], size, mode="bicubic", antialias=True)[0]
    down, across = (side - edge for edge in size)
    array = F.pad(array, (across // 2, across - across // 2, down // 2, down - down // 2))
    return (array - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize("size", [(640, 480), (300, 512), (1024, 1024)])
def test_hpsv2s_own_way_rounds_less_and_is_close(size):
    """A bound on what PIL's rounding to 8 bits changes: a third of a level on average in pictures that are no noise."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    levels = (Pixels(fit="pad")(image) - authors_of_hpsv2(image, 224)).abs() * torch.tensor(STD)[:, None, None] * 255
    assert 0 < float(levels.mean()) < 0.35
    assert float(levels.max()) < 3


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("imagereward", torchvision_crop),
        ("aesthetic", torchvision_crop),
        ("hpsv2", longest_and_pad),
        ("pickscore", lambda image, side: transformers_crop(image, side)),
        ("clipscore", lambda image, side: transformers_crop(image, side)),
    ],
)
def test_each_verifier_prepares_pictures_as_its_own_pipeline_does(verifier_of, name, published):
    verifier = verifier_of(name)
    for size, mode in (((65, 41), "RGBA"), ((37, 90), "P"), ((32, 35), "RGB"), ((50, 50), "L")):
        image = picture(size, mode)
        np.testing.assert_allclose(verifier.preprocess(image), published(image, 32), rtol=1e-5, atol=1e-5)


def transformers_crop(image, side):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    # Alpha was dropped when these verifiers were published; the processor of today lays it on white.
    return processor(image.convert("RGB"), return_tensors="pt").pixel_values[0]


@pytest.mark.parametrize("mode", MODES)
def test_pad_is_open_clips(mode):
    for size in SIZES:
        image = picture(size, mode)
        np.testing.assert_allclose(Pixels(fit="pad")(image), longest_and_pad(image, 224), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_crop_is_transformers(mode):
    for size in SIZES:
        image = picture(size, mode)
        expected = transformers_crop(image, 224)
        np.testing.assert_allclose(Pixels(style="transformers")(image), expected, rtol=1e-5, atol=1e-5)


def test_the_two_styles_differ_where_they_say():
    def differ(size, mode):
        image = picture(size, mode)
        return not torch.equal(Pixels()(image), Pixels(style="transformers")(image))

    assert not differ((300, 300), "RGB")
    assert differ((300, 300), "RGBA")
    assert differ((224, 227), "RGB")  # 3 pixels to cut: 2 on top or 1
    assert not differ((224, 225), "RGB")


def test_tensors_are_resized_about_as_pil_does_but_not_exactly():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8))
    for size in ((480, 300), (120, 200), (224, 224)):
        image = small.resize(size, Image.Resampling.BICUBIC)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        for fit in ("crop", "pad"):
            pixels = Pixels(fit=fit)
            exact, close = pixels(image), pixels.of_tensors(tensor)[0]
            inside = slice(8, -8) if fit == "crop" else slice(90, 130)
            assert float((exact - close)[:, inside, inside].abs().max()) < 0.03
            if size != (224, 224):
                assert not torch.equal(exact, close)


def test_black_bars_are_black_in_tensors_too():
    image = torch.ones(1, 3, 10, 40)
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    padded = Pixels(8, fit="pad").of_tensors(image)[0]
    exact = Pixels(8, fit="pad")(Image.new("RGB", (40, 10), (255, 255, 255)))
    torch.testing.assert_close(exact[:, 0, 0], black)
    torch.testing.assert_close(padded, exact)


def test_fit_and_style_are_known():
    with pytest.raises(ValueError, match="fit to be crop or pad, got 'stretch'"):
        Pixels(fit="stretch")
    with pytest.raises(ValueError, match="style to be torchvision or transformers, got 'open_clip'"):
        Pixels(style="open_clip")
