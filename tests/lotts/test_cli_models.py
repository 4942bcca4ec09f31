"""The other pipelines that ship, from the command line to the files of a run."""

import json

import pytest
from PIL import Image

from lotts.cli import main

SHORT = ["--steps", "3", "--global-steps", "1", "--candidates", "1", "--refinements", "1"]


@pytest.mark.parametrize("model", ["shapes-sdxl", "shapes-flux"])
def test_a_run_of_a_pipeline_that_ships_leaves_its_files(model, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["generate", "a red circle left of a blue star", "--model", model, *SHORT]
    assert main([*command, "--device", "cpu", "--out", str(out)]) == 0
    assert "<- best" in capsys.readouterr().out
    written = json.loads((out / "manifest.json").read_text())
    assert (written["model"], written["verifier"]) == (model, "shapes")
    assert [sample["kind"] for sample in written["samples"]] == ["candidate", "refinement"]
    for name in ("best.png", "report.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) >= 64
