import json
import subprocess
import sys
import tempfile

import pytest
import torch
from fake_run import fake_output
from PIL import Image

import lotts
from lotts import cli, models, report, verifiers
from lotts.cli import scores

SCENE = "a red circle left of a blue star"


@pytest.fixture
def ready(tiny_pipe, monkeypatch):
    """The command line over the tiny pipeline and a verifier called "bright"."""
    monkeypatch.setattr(models, "load_pipeline", lambda name, device=None, dtype=None: tiny_pipe)
    monkeypatch.setitem(verifiers.REGISTRY, "bright", lambda: lambda images, prompts: [float(i.mean()) for i in images])
    return ["--verifier", "bright", "--steps", "4", "--global-steps", "1"]


def test_a_run_is_generated_and_replayed(ready, tmp_path, capsys):
    out = tmp_path / "out"
    size = ["--candidates", "1", "--refinements", "1", "--seed", "5"]
    assert cli.main(["generate", "a red cat", *ready, *size, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "candidate, seed 5" in printed.out
    assert "<- best" in printed.out
    assert str(out) in printed.out
    assert printed.err == ""
    manifest = json.loads((out / "manifest.json").read_text())
    told = {name: manifest[name] for name in ("model", "verifier", "dtype", "device", "seeds")}
    assert told == {"model": "shapes-sd", "verifier": "bright", "dtype": "fp32", "device": "cpu", "seeds": [5]}

    assert cli.main(["replay", str(out), "--out", str(tmp_path / "again")]) == 0
    assert "all 2 pictures are the recorded ones" in capsys.readouterr().out
    assert (tmp_path / "again" / "best.png").read_bytes() == (out / "best.png").read_bytes()
    again = json.loads((tmp_path / "again" / "manifest.json").read_text())["samples"]

    manifest["samples"][1]["sha256"] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["replay", str(out)]) == 1
    assert "1 of 2 pictures differ" in capsys.readouterr().out

    manifest["samples"][1]["sha256"] = again[1]["sha256"]
    manifest["samples"][1]["score"] += 1
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["replay", str(out)]) == 1
    assert "1 of 2 scores differ" in capsys.readouterr().out


def test_a_run_of_a_gpu_is_replayed_and_written_without_one(ready, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["generate", "a red cat", *ready, "--candidates", "1", "--out", str(out)]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"device": "cuda:0"}))
    assert cli.main(["replay", str(out), "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["device"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", SCENE, "--verifier", "nobody"], "verifier"),
        (["generate", " "], "prompt"),
        (["generate", "a photo of a cat"], "cannot read"),
        (["generate", SCENE, "--mask-ratio", "2"], "mask_ratio"),
        (["generate", SCENE, "--noise-step", "30"], "noise_step"),
        (["generate", SCENE, "--height", "0"], "height"),
        (["generate", SCENE, "--source", "guess"], "map source"),
        (["generate", SCENE, "--device", "toaster"], "torch device"),
        (["generate", SCENE, "--dtype", "fp8"], "dtype"),
        (["generate", SCENE, "--seed", str(2**64)], "--seed"),
        (["generate", SCENE, "--out", "file.txt/out"], "--out"),
        (["repair", "absent.png", SCENE], "absent.png"),
        (["repair", "file.txt", SCENE], "file.txt"),
        (["repair", "picture.png", SCENE, "--mask", "absent.png"], "absent.png"),
        (["repair", "picture.png", SCENE, "--background", "replay"], "background"),
        (["replay", "out", "--out", "file.txt"], "--out"),
    ],
)
def test_nothing_is_loaded_for_a_command_that_cannot_run(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load_pipeline", lambda *a, **k: pytest.fail("loaded the pipeline"))
    (tmp_path / "file.txt").write_text("no picture")
    Image.new("RGB", (32, 32)).save("picture.png")
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "picture.png"]


def test_a_picture_is_repaired(ready, tmp_path, capsys):
    Image.effect_noise((32, 32), 80).convert("RGB").save(tmp_path / "picture.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "mask.png")
    arguments = [str(tmp_path / "picture.png"), "a red cat", "--mask", str(tmp_path / "mask.png"), "--refinements", "1"]
    assert cli.main(["repair", *arguments, *ready, "--out", str(tmp_path / "out")]) == 0
    assert "original" in capsys.readouterr().out
    assert (tmp_path / "out" / "samples" / "00-original.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "  "], "expected a prompt"),
        (["generate", "a cat", "--mask-ratio", "2"], "mask_ratio"),
        (["generate", "a cat", "--mask-threshold", "-1"], "mask_threshold"),
        (["generate", "a cat", "--dilate", "-1"], "dilate"),
        (["generate", "a cat", "--noise-step", "9"], "noise_step"),
        (["generate", "a cat", "--background", "none"], "background"),
        (["generate", "a cat", "--source", "guess"], "map source"),
        (["generate", "a cat", "--verifier", "nobody"], "verifier"),
        (["repair", "absent.png", "a cat"], "absent.png"),
        (["repair", "absent.png", "a cat", "--background", "replay"], "absent.png|background"),
        (["replay", "absent"], "manifest"),
    ],
)
def test_a_users_error_is_one_line_and_status_2(ready, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    defaults = [] if arguments[0] == "replay" else ready
    assert cli.main([*arguments[:1], *defaults, *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lotts: error: ")
    assert "Traceback" not in error
    assert any(part in error for part in message.split("|"))
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_model_is_named_before_its_verifier_is_missed(capsys):
    assert cli.main(["generate", "a cat", "--model", "shapes-ds"]) == 2
    error = capsys.readouterr().err
    assert "shapes-ds" in error
    assert "shapes-sd, shapes-sdxl, shapes-flux, a folder or a hub id" in error
    assert "--verifier" not in error


def test_a_hub_model_needs_a_verifier(capsys):
    assert cli.main(["generate", "a cat", "--model", "owner/name"]) == 2
    error = capsys.readouterr().err
    assert "expected --verifier for owner/name" in error
    assert all(name in error for name in verifiers.available())


def test_the_models_own_defaults_are_used(monkeypatch, tmp_path):
    asked = {}

    class Fake:
        def __init__(self, pipe, verifier, source):
            asked.update(verifier=verifier, source=source)

        def __call__(self, prompt, **settings):
            asked.update(settings)
            return fake_output(1, 0)

    class Pipe:
        dtype, device = None, "cpu"

    monkeypatch.setattr(models, "load_pipeline", lambda name, device=None, dtype=None: Pipe())
    monkeypatch.setattr("lotts.pipeline.LoTTS", Fake)
    assert cli.main(["generate", SCENE, "--out", str(tmp_path / "out")]) == 0
    assert (asked["verifier"].name, asked["source"]) == ("shapes", "attention")
    assert (asked["num_inference_steps"], asked["guidance_scale"]) == (20, 2.0)
    assert (asked["num_candidates"], asked["num_refinements"], asked["background"]) == (3, 2, "replay")
    assert asked["generator"].initial_seed() == 0
    assert asked["pixel_paste"] is False
    assert "eta" not in asked
    assert cli.main(["generate", SCENE, "--eta", "0.5", "--out", str(tmp_path / "noisy")]) == 0
    assert asked["eta"] == 0.5


@pytest.mark.parametrize("arguments", [[], ["paint"], ["generate"], ["generate", "a cat", "--steps", "many"]])
def test_a_wrong_command_line_shows_usage(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "usage: lotts" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["generate", "repair", "search", "replay", "score", "compare", "ablate", "sweep", "doctor"]
)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "(default: )" not in text
    assert command == "doctor" or "examples:" in text


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"lotts {lotts.__version__}\n"


def test_the_doctor_prints_a_table_or_json(capsys):
    assert cli.main(["doctor"]) == 0
    assert "shapes-sd" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lotts"] == lotts.__version__


def test_the_command_line_starts_without_heavy_imports():
    code = "import sys, lotts.cli; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(scores, "_doctor", interrupt)
    assert cli.main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_device_without_room_is_told_in_words(ready, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(models, "load_pipeline", full)
    assert cli.main(["generate", "a red cat", *ready]) == 2
    assert "smaller --batch-size" in capsys.readouterr().err


def test_a_folder_is_recorded_where_it_is(ready, tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    quick = ["--candidates", "1", "--refinements", "0", "--out", "out"]
    assert cli.main(["generate", "a red cat", "--model", "models/mine", *ready, *quick]) == 0
    recorded = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert recorded["model"] == str(tmp_path / "models" / "mine")


def test_a_run_is_kept_elsewhere_where_its_folder_went_away(ready, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = report.save_output

    def full(output, folder, context):
        if folder == "out":
            raise OSError("No space left on device")
        return written(output, folder, context)

    monkeypatch.setattr(report, "save_output", full)
    quick = ["--candidates", "1", "--refinements", "0", "--out", "out"]
    assert cli.main(["generate", "a red cat", *ready, *quick]) == 1
    assert "out cannot be written to: No space left" in capsys.readouterr().err
    assert list(tmp_path.glob("lotts-*/best.png"))


def test_a_folder_under_a_link_to_nowhere_is_told_before_any_compute(ready, tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(models, "load_pipeline", lambda *a, **k: pytest.fail("loaded a model"))
    assert cli.main(["generate", "a red cat", *ready, "--out", str(tmp_path / "gone" / "out")]) == 2
    assert "gone is no folder" in capsys.readouterr().err


def test_a_manifest_does_not_say_where_pictures_are_sent(ready, tmp_path, capsys, monkeypatch):
    quick = ["--candidates", "1", "--refinements", "0", "--out", str(tmp_path / "out")]
    assert cli.main(["generate", "a red cat", *ready, *quick]) == 0
    path = tmp_path / "out" / "manifest.json"
    changed = json.loads(path.read_text()) | {"verifier": "bright,vlm=http://127.0.0.1:9/v1"}
    path.write_text(json.dumps(changed))
    monkeypatch.setattr(models, "load_pipeline", lambda *a, **k: pytest.fail("loaded a model"))
    assert cli.main(["replay", str(path)]) == 2
    assert "expected the address that judges the pictures from you" in capsys.readouterr().err
    monkeypatch.undo()


def test_a_replay_may_be_judged_by_another(ready, tmp_path, monkeypatch, capsys):
    quick = ["--candidates", "1", "--refinements", "0", "--out", str(tmp_path / "out")]
    assert cli.main(["generate", "a red cat", *ready, *quick]) == 0
    monkeypatch.setitem(verifiers.REGISTRY, "dark", lambda: lambda images, prompts: [-float(i.mean()) for i in images])
    again = ["--out", str(tmp_path / "again")]
    assert cli.main(["replay", str(tmp_path / "out"), "--verifier", "dark", *again]) == 1
    assert "1 of 1 scores differ" in capsys.readouterr().out
    assert cli.main(["replay", str(tmp_path / "again")]) == 0  # it says who judged it


def test_what_older_versions_recorded_and_did_nothing_with_is_replayed(ready, tmp_path):
    quick = ["--candidates", "1", "--refinements", "1", "--out", str(tmp_path / "out")]
    assert cli.main(["generate", "a red cat", *ready, *quick]) == 0
    path = tmp_path / "out" / "manifest.json"
    recorded = json.loads(path.read_text())
    recorded["settings"] |= {"sparse_offload": True, "pixel_paste": 0}
    path.write_text(json.dumps(recorded))
    assert cli.main(["replay", str(path)]) == 0
