"""The comparison with the package image-reward can fail, and its material is what it says."""

import json

import pytest
from PIL import Image

from bench import imagereward_parity as parity


def test_a_difference_shows():
    assert parity.compare([0.5, -1.0], [0.5, -1.0]) == 0
    assert parity.compare([0.5, -1.0], [0.5, -1.25]) == 0.25
    for theirs, ours in (([0.5, 0.5], [0.5, 0.5]), ([0.5], [0.5, 1.0]), ([0.0, float("nan")], [0.0, 1.0])):
        with pytest.raises(RuntimeError, match="rewards that tell the pictures apart"):
            parity.compare(theirs, ours)


def test_the_pictures_are_of_all_modes_and_the_vocabulary_is_berts_size(tmp_path):
    parity.prepare(tmp_path)
    pairs = json.loads((tmp_path / "pictures.json").read_text())
    assert [Image.open(tmp_path / file).mode for file, _ in pairs] == parity.MODES
    words = (tmp_path / "bert-base-uncased" / "vocab.txt").read_text().splitlines()
    assert len(words) == len(set(words)) == 30522
    assert [words.index(word) for word in ("[PAD]", "[CLS]", "[SEP]")] == [0, 101, 102]


def test_an_interpreter_that_is_not_there(capsys, tmp_path):
    assert parity.main(["--python", str(tmp_path / "python")]) == 2
    assert "expected an interpreter" in capsys.readouterr().err


def test_the_other_side_that_fails_is_an_error(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(RuntimeError, match="ended with status 3"):
        parity.compare_across(broken)
