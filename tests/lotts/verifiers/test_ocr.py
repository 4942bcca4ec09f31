"""Quoted words are found in the prompt, compared letter by letter, and read from real pixels."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from lotts import verifiers
from lotts.cli import main
from lotts.verifiers.ocr import OCRVerifier, closeness, edit_distance, quoted

LETTERS = st.text("abcd", max_size=7)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign that says "OPEN"', ["OPEN"]),
        ("a sign that says “Hello World”, and ‘bye’", ["Hello World", "bye"]),
        ("a sign that says 'OPEN' on the dog's house", ["OPEN"]),
        ("the boys' shirts read 'DON'T STOP'", ["DON'T STOP"]),
        ("the shirts read ‘DON’T STOP’", ["DON’T STOP"]),
        ('"A" above "B" above "A"', ["A", "B"]),
        ('a cake with "Happy Birthday!," in icing, and "love."', ["Happy Birthday!", "love"]),
        ('a "50%" badge', ["50%"]),
    ],
)
def test_quotes_of_all_kinds(prompt, texts):
    assert quoted(prompt) == texts


@pytest.mark.parametrize(
    "prompt", ["a shop sign", "the dog's bone and the cat's toy", 'a " on a wall', '""', '" . "', "5'6\""]
)
def test_a_prompt_without_quotes_is_refused(prompt):
    with pytest.raises(ValueError, match="expected a prompt that quotes"):
        OCRVerifier(lambda pixels: []).check_prompt(prompt)


@given(LETTERS, LETTERS, LETTERS)
def test_the_edit_distance_is_a_distance(a, b, c):
    there = edit_distance(a, b)
    assert there == edit_distance(b, a)
    assert (there == 0) == (a == b)
    assert abs(len(a) - len(b)) <= there <= max(len(a), len(b))
    assert edit_distance(a, c) <= there + edit_distance(b, c)


@given(LETTERS, st.integers(0, 7), st.sampled_from("abcd"))
def test_one_letter_more_is_one_edit(text, at, letter):
    assert edit_distance(text, text[:at] + letter + text[at:]) == 1


@given(st.lists(st.text("abcd", min_size=1, max_size=5), min_size=1, max_size=6), st.text("abcd ", min_size=1))
def test_skipping_hopeless_runs_changes_nothing(words, text):
    wanted = text.replace(" ", "")
    runs = [
        "".join(words[i:j])
        for i in range(len(words))
        for j in range(i + 1, min(len(words), i + len(text.split()) + 2) + 1)
    ]
    every = [1 - edit_distance(wanted, run) / max(len(wanted), len(run)) for run in runs]
    assert closeness(text, words) == max(0, *every)


@pytest.mark.parametrize(
    ("text", "words", "score"),
    [
        ("OPEN", ["open"], 1),
        ("OPEN", ["we", "are", "OPEN", "now"], 1),
        ("OPEN", ["OPENN"], 4 / 5),
        ("OPEN", ["0PEN"], 3 / 4),
        ("OPEN", ["OP", "EN"], 1),
        ("HAPPY BIRTHDAY", ["HAPPYBIRTHDAY"], 1),
        ("HAPPY BIRTHDAY", ["so", "HAPPY", "BIRTH", "DAY"], 1),
        ("CAT", ["CATASTROPHE"], 3 / 11),
        ("OPEN", ["shut"], 0),
        ("OPEN", [], 0),
        ("DON’T", ["DON'T"], 1),
    ],
)
def test_closeness_counts_letters(text, words, score):
    assert closeness(text, words) == pytest.approx(score)


def test_the_score_is_the_mean_over_quoted_texts():
    verifier = OCRVerifier(lambda pixels: ["so OPEN", "today"] if pixels.mean() > 100 else [])
    bright, dark = Image.new("RGB", (9, 5), "white"), np.zeros((4, 4, 3), np.float32)
    prompts = ['"OPEN" and "SHUTTERED"', '"OPEN" and "SHUTTERED"']
    scores = verifier.score([bright, dark], prompts)
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx([(1 + closeness("SHUTTERED", ["so", "OPEN", "today"])) / 2, 0])
    assert verifier([bright], ['"open today"']) == [1]


def test_prompts_are_checked_before_anything_is_read():
    read = []
    verifier = OCRVerifier(lambda pixels: read.append(1) or [])
    with pytest.raises(ValueError, match="expected a prompt that quotes"):
        verifier.score([Image.new("RGB", (9, 5))] * 2, ['a sign "OPEN"', "a sign"])
    assert not read


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'lotts\[ocr\]' on Python 3\.10 to 3\.12"):
        OCRVerifier()
    with pytest.raises(TypeError, match="got '/models/ocr'"):
        verifiers.load("ocr=/models/ocr")


def test_the_command_line_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    Image.new("RGB", (9, 5)).save(tmp_path / "a.png")
    assert main(["score", str(tmp_path / "a.png"), "--prompt", 'a sign "OPEN"', "--verifier", "ocr"]) == 2
    assert "lotts: error: the ocr verifier needs RapidOCR" in capsys.readouterr().err


def sign(*lines, size=(384, 256), font_size=48, colour="black", ground="white"):
    image = Image.new("RGB", size, ground)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(font_size)
    for row, line in enumerate(lines):
        pen.text((20, 20 + row * int(1.6 * font_size)), line, colour, font)
    return image


@pytest.fixture(scope="module")
def real():
    pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    return verifiers.load("ocr")


def test_real_text_is_read(real):
    assert real([sign("OPEN")], ['a sign that says "OPEN"']) == [1]
    assert real([sign("Happy", "Birthday")], ["a cake with “Happy Birthday”"]) == [1]
    white_on_blue = sign("FRESH COFFEE", colour="white", ground="navy", font_size=40)
    assert real([white_on_blue], ["a poster, 'Fresh Coffee'"]) == [1]
    assert real.version.startswith("rapidocr-onnxruntime ")


def test_wrong_missing_and_absent_text_score_in_that_order(real):
    signs = [sign("OPEN DAILY"), sign("OPAN DAILY"), sign("DAILY"), sign()]
    scores = real.score(signs, ['a sign that says "OPEN DAILY"'] * 4).tolist()
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
    assert (scores[0], scores[3]) == (1, 0)


def test_real_scores_do_not_depend_on_the_batch(real):
    signs = [
        sign("OPEN", size=(200, 120)),
        sign("SHUT", size=(210, 120)),
        sign(size=(90, 60)),
        sign("OPAN", size=(200, 110)),
    ]
    prompts = ['"OPEN" or "SHUT"'] * 4
    together = real.score(signs, prompts, batch_size=8)
    floats = [np.asarray(image, np.float32) / 255 for image in signs]
    for batch_size in (1, 3):
        assert torch.equal(together, real.score(floats, prompts, batch_size=batch_size))
