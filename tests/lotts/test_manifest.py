import hashlib
import json

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from fake_run import fake_output

from lotts.manifest import Manifest, environment, made_with
from lotts.models import weights_digest
from lotts.report import save_output

CONTEXT = {"model": "shapes-sd", "verifier": "shapes", "dtype": "fp32", "device": torch.device("cpu")}


@pytest.fixture
def folder(tmp_path):
    return save_output(fake_output(2, 1), tmp_path / "out", CONTEXT)


def edited(folder, **changes):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    for name, value in changes.items():
        if name in data["samples"][0]:
            data["samples"][0][name] = value
        else:
            data[name] = value
    path.write_text(json.dumps(data))
    return path


def test_a_manifest_says_what_made_the_pictures(folder):
    manifest = Manifest.read(folder)
    assert (manifest.model, manifest.verifier, manifest.dtype, manifest.device) == (
        "shapes-sd",
        "shapes",
        "fp32",
        "cpu",
    )
    assert manifest.environment["threads"] == torch.get_num_threads()
    assert manifest.environment["torch"].startswith("2.")
    assert manifest.prompt == "a red cat"
    assert manifest.seeds == [7, 8]
    assert "seeds" not in manifest.settings
    assert manifest.best == 3
    assert manifest.improvement == pytest.approx(0.1)
    assert manifest.cost["nfe"] == 48
    assert not manifest.repaired


def test_a_scheduler_and_a_verifier_are_written_as_json_has_them():
    class Judge:
        version = "beauty@1"

    made = made_with(DPMSolverMultistepScheduler(trained_betas=(0.1, 0.2)), Judge())
    assert made["verifier"] == "beauty@1"
    assert made["scheduler"]["class"] == "DPMSolverMultistepScheduler"
    assert made["scheduler"]["lambda_min_clipped"] == "-inf"
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_the_state_of_embedded_weights_is_recorded(folder):
    assert Manifest.read(folder).environment["weights"] == weights_digest("shapes-sd")


def test_a_gpu_that_is_not_there_has_no_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment("cuda:3")["processor"] == "cuda:3"
    assert "triton" in environment(None)


def test_every_picture_has_the_digest_of_its_file(folder):
    for entry in Manifest.read(folder).samples:
        assert hashlib.sha256((folder / entry.file).read_bytes()).hexdigest() == entry.sha256


def test_reading_gives_what_was_written(folder):
    path = folder / "manifest.json"
    assert Manifest.read(path).text() == path.read_text(encoding="utf-8")


def test_no_file_is_named_after_the_prompt(tmp_path):
    folder = save_output(fake_output(prompt="../secret words"), tmp_path / "out")
    assert not [path for path in tmp_path.rglob("*") if "secret" in path.name]
    assert Manifest.read(folder).prompt == "../secret words"


def test_a_context_has_known_names_only(tmp_path):
    with pytest.raises(ValueError, match="expected context with model, verifier, dtype, device, got modle"):
        save_output(fake_output(1, 0), tmp_path / "out", {"modle": "shapes-sd"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "format 1"),
        ({"prompt": ""}, "prompt as text"),
        ({"seeds": ["7"]}, "seeds as a list of whole numbers"),
        ({"samples": []}, "samples as a list"),
        ({"best": 9}, "best as the index"),
        ({"settings": 3}, "settings as an object"),
        ({"model": 3}, "model as text or null"),
        ({"mask": "/etc/passwd"}, "mask inside"),
        ({"surprise": 1}, "got surprise"),
        ({"file": "../../elsewhere.png"}, "file inside the manifest's folder"),
        ({"file": "/etc/passwd"}, "file inside the manifest's folder"),
        ({"file": "C:\\elsewhere.png"}, "file inside the manifest's folder"),
        ({"kind": "drawing"}, "kind out of candidate"),
        ({"seed": 1.5}, "seed as a whole number"),
        ({"parent": 0}, "parent of sample 0 before it"),
        ({"refinement": -1}, "refinement as an index"),
        ({"score": "high"}, "score as a number"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
    ],
)
def test_a_wrong_field_is_named(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        Manifest.read(edited(folder, **changes))


def test_a_missing_field_is_named(folder):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["best"]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="expected best in"):
        Manifest.read(path)


@pytest.mark.parametrize("text", ["{", "[]", "3", "\udcff"])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="expected"):
        Manifest.read(tmp_path)


def test_an_absent_manifest_is_said_to_be_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        Manifest.read(tmp_path)
