"""Facts about the pictures and masks that repair is given."""

import numpy as np
import pytest
import torch
from PIL import Image

import lotts
from lotts.repairs import read_mask, read_picture
from lotts.replays import replay

PICTURE = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32)


def brightness(images, prompts):
    return [float(image.mean()) for image in images]


def repair(pipe, image=PICTURE, mask=None, **settings):
    return lotts.repair(
        pipe, image, "a red cat", mask, verifier=brightness, num_refinements=1, num_inference_steps=4,
        output_type="np", generator=torch.Generator().manual_seed(0), **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ((PICTURE * 255).astype(np.int64), r"uint8 or as floating numbers in \[0, 1\], got int64"),
        ((PICTURE * 65535).astype(np.uint16), "got uint16"),
        (PICTURE > 0.5, "got bool"),
        (PICTURE * 255, r"floating numbers in \[0, 1\], got .* to 25"),
        (PICTURE - 1, r"in \[0, 1\]"),
        (np.where(PICTURE > 0.5, np.nan, PICTURE), "got nan to nan"),
        (PICTURE[:33, :31], "got 32 x 31: the nearest that fits is 32 x 32"),
    ],
)
def test_what_is_no_picture_is_refused(tiny_pipe, monkeypatch, image, words):
    monkeypatch.setattr(tiny_pipe.vae, "encode", lambda *a, **k: pytest.fail("computed before checking"))
    with pytest.raises(ValueError, match=words):
        repair(tiny_pipe, image)


def test_pictures_and_masks_stand_as_their_files_say(tmp_path):
    pixels = (PICTURE[:, :24] * 255).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be shown a quarter turn clockwise
    Image.fromarray(pixels).save(tmp_path / "picture.png", exif=turned)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "mask.png", exif=turned)
    expected = np.rot90(pixels, -1)
    assert np.array_equal(np.rint(read_picture(tmp_path / "picture.png") * 255), expected)
    assert np.array_equal(read_picture(Image.open(tmp_path / "picture.png")), read_picture(tmp_path / "picture.png"))
    assert np.array_equal(read_mask(tmp_path / "mask.png").numpy(), expected[..., 0] > 127)


def test_pixel_paste_keeps_what_lies_outside_the_soft_ring(tiny_pipe):
    cells = np.zeros((16, 16), bool)
    cells[6:10, 6:10] = True
    ring = np.zeros((16, 16), bool)
    ring[4:12, 4:12] = True
    inside, around = (np.kron(region, np.ones((2, 2), bool)) for region in (cells, ring))
    out = repair(tiny_pipe, mask=cells, soft_ring=2, global_steps=0, noise_step=0)
    changed = (out.samples[1].image != PICTURE).any(-1)
    assert not changed[~around].any()
    assert changed[around & ~inside].any()
    assert np.array_equal(out.samples[1].mask.numpy(), cells)


@pytest.mark.parametrize("mask", [np.eye(16, dtype=np.uint8), torch.eye(16, dtype=torch.uint8), np.eye(16)])
def test_bytes_of_0_and_1_are_a_mask_and_of_up_to_255_grey_levels(mask):
    assert torch.equal(read_mask(mask), torch.eye(16, dtype=torch.bool))
    assert torch.equal(read_mask(mask * 255), torch.eye(16, dtype=torch.bool))
    assert not read_mask(np.full((4, 4), 90, np.uint8)).any()


def test_a_floating_picture_is_blended_and_judged_as_its_file_has_it(tiny_pipe, tmp_path):
    """So that a replay, which begins with the file, makes the same pictures and scores them the same."""
    out = repair(tiny_pipe, mask=np.eye(16))
    assert not np.array_equal(read_picture(PICTURE), read_picture(np.rint(PICTURE * 255).astype(np.uint8)))
    assert np.array_equal(out.samples[0].image, PICTURE)
    assert replay(out.save(tmp_path / "out"), pipe=tiny_pipe, verifier=brightness).exact


class Wary:
    """Finds the upper left quarter wrong, and the more so the brighter."""

    name = "wary"

    def __call__(self, images, prompts):
        return brightness(images, prompts)

    def defect_maps(self, images, prompts):
        maps = torch.zeros(len(images), 16, 16)
        maps[:, :8, :8] = torch.tensor(brightness(images, prompts))[:, None, None]
        return maps


def test_the_verifier_may_say_where_a_picture_is_to_be_repaired(tiny_pipe):
    out = lotts.repair(
        tiny_pipe, PICTURE, "a red cat", verifier=Wary(), source="verifier", num_refinements=1, mask_ratio=0.25,
        num_inference_steps=4, output_type="np", generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert type(tiny_pipe.scheduler).__name__ == "DDIMScheduler"
    quarter = torch.zeros(16, 16, dtype=torch.bool)
    quarter[:8, :8] = True
    assert torch.equal(out.samples[0].mask, quarter)
    # The original, the same again for its map, and the refinement are judged; the last two are decoded.
    assert (out.cost.verifier_calls, out.cost.vae_decodes) == (3, 2)


def test_a_tiny_autoencoder_encodes_too(tiny_pipe):
    from diffusers import AutoencoderTiny

    tiny_pipe.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    out = repair(tiny_pipe, mask=np.eye(16))
    assert out.samples[1].image.shape == PICTURE.shape


def test_what_is_transparent_lies_outside_a_mask():
    region = np.zeros((32, 32), bool)
    region[4:9, 20:30] = True
    rgba = np.full((32, 32, 4), 255, np.uint8)
    rgba[..., 3] = region * 255
    assert np.array_equal(read_mask(Image.fromarray(rgba)).numpy(), region)
    rgba[..., 3] = 255
    assert read_mask(Image.fromarray(rgba)).all()


def test_a_mask_file_of_0_and_1_is_one_of_0_and_1(tmp_path):
    region = np.eye(16, dtype=np.uint8)
    Image.fromarray(region).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png").numpy(), region.astype(bool))


def test_a_picture_that_is_transparent_in_places_is_refused_and_an_opaque_one_read():
    rgba = np.full((32, 32, 4), 255, np.uint8)
    rgba[..., 1] = 7
    assert np.array_equal(np.rint(read_picture(Image.fromarray(rgba)) * 255)[0, 0], [255, 7, 255])
    rgba[3, 5, 3] = 254
    with pytest.raises(ValueError, match="expected an opaque picture"):
        read_picture(Image.fromarray(rgba))


def test_a_picture_of_a_size_that_nobody_draws_is_refused_in_words(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="expected a picture of a size that can be drawn"):
        read_picture(tmp_path / "large.png")
