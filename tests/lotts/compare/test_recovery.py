"""Facts about a comparison that something went wrong with, or that goes on elsewhere."""

import shutil
from pathlib import Path

import pytest
import torch
from studying import study

from lotts import models
from lotts.compare import compare
from lotts.compare.records import sweep_up

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize("harm", ["picture", "record"])
def test_an_item_that_was_cut_short_is_made_again(finished, tmp_path, harm):
    """As after a power cut: a record that ends within a letter, or a picture that ends early beside a whole record."""
    shutil.copytree(finished, tmp_path / "out")
    record = min((tmp_path / "out").glob("items/lotts/*/item.json"))
    if harm == "record":
        record.write_bytes('{"prompt": "caf\u00e9'.encode()[:-1])
    else:
        picture = min(record.parent.glob("*.png"))
        picture.write_bytes(picture.read_bytes()[:40])
    metrics = ["red", "green"]  # one more, for which pictures are read
    outcome = compare(study(metrics=metrics), tmp_path / "out")
    assert outcome.failed == 0
    fresh = compare(study(metrics=metrics), tmp_path / "fresh")
    assert (tmp_path / "out" / "table.csv").read_bytes() == (tmp_path / "fresh" / "table.csv").read_bytes()
    assert (outcome.made, fresh.made) == (8, 8)


def test_leftovers_that_are_finished_meanwhile_are_no_error(tmp_path, monkeypatch):
    left = tmp_path / "items" / "lotts" / ".unfinished-x"
    left.mkdir(parents=True)
    glob = Path.glob

    def listed_and_gone(self, pattern):
        found = list(glob(self, pattern))
        if left.exists():
            left.rename(left.with_name("whole"))
        return found

    monkeypatch.setattr(Path, "glob", listed_and_gone)
    sweep_up(tmp_path)
    assert left.with_name("whole").exists()


def test_a_study_has_one_precision_wherever_it_goes_on(monkeypatch):
    assert study().dtype == "fp32"
    monkeypatch.setattr(models, "check_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(models, "_class_name", lambda location: "StableDiffusionPipeline")
    assert study(model="owner/name").dtype == "fp16"
    assert study(model="shapes-sd").dtype == "fp32"
    assert study(model="owner/name", dtype="bf16").dtype == "bf16"


def test_workers_are_checked_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load_pipeline", lambda *args, **kwargs: pytest.fail("loaded the model"))
    with pytest.raises(ValueError, match="workers from 1 up, got -1"):
        compare(study(), tmp_path, workers=-1)
