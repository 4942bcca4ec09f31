"""The measured metrics rest on signs and drawings whose truth is known."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.metrics import WORDS, compressed, damaged_shares, misspelled, resized_back, sign
from lotts.verifiers.ocr import edit_distance


@given(st.sampled_from(WORDS), st.integers(0, 2**32 - 1))
def test_a_misspelling_is_one_letter_of_the_same_case(word, seed):
    wrong = misspelled(word, np.random.default_rng(seed))
    assert edit_distance(word, wrong) == 1
    assert [letter.isupper() for letter in wrong] == [letter.isupper() for letter in word]


def test_signs_differ_by_what_is_written():
    signs = [np.asarray(sign(word, 28, 0, np.random.default_rng(0))) for word in ("OPEN", "OPEN", "OPAN")]
    assert np.array_equal(signs[0], signs[1])
    assert 0 < (signs[0] != signs[2]).any(-1).mean() < 0.01


def test_altered_pictures_keep_their_size():
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    for transform in (compressed, resized_back(0, 32)):
        assert transform(image).shape == image.shape
        assert not np.array_equal(transform(image), image)


def test_found_shares_stand_beside_the_true_ones():
    shares = damaged_shares(3)
    assert shares["clean"]["images_true"] == shares["clean"]["pixels_true"] == 0
    assert shares["damaged"]["images_true"] == 1
    assert 0 < shares["damaged"]["pixels"] < 0.2
