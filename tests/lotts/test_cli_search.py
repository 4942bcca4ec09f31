"""``lotts search``: one prompt, any method, a budget."""

import json

import pytest

from lotts import cli, models, verifiers


@pytest.fixture
def ready(tiny_pipe, monkeypatch):
    """The command line over the tiny pipeline and a verifier called "bright"."""
    monkeypatch.setattr(models, "load_pipeline", lambda name, device=None, dtype=None: tiny_pipe)
    monkeypatch.setitem(verifiers.REGISTRY, "bright", lambda: lambda images, prompts: [float(i.mean()) for i in images])
    return ["--verifier", "bright", "--steps", "4"]


def test_a_search_is_made_saved_and_replayed(ready, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["search", "a red cat", "--budget", "samples=3", "--out", out, *ready]) == 0
    assert "NFE" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]
    assert (settings["method"], settings["source"], settings["budget"]) == ("lotts_adaptive", "prediction", "samples=3")
    assert cli.main(["replay", out]) == 0


def test_the_embedded_pipeline_is_searched_with_the_verifiers_own_map(tmp_path):
    out = tmp_path / "out"
    method = ["--method", "lotts_chain(num_candidates=1)", "--source", "verifier"]
    arguments = ["--budget", "samples=1", "--steps", "2", *method]
    assert cli.main(["search", "a red circle left of a blue star", *arguments, "--out", str(out)]) == 0
    assert json.loads((out / "manifest.json").read_text())["settings"]["source"] == "verifier"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "luck"], "expected a method out of"),
        (["--method", "lotts(luck=1)"], "expected options of lotts out of"),
        (["--method", "lotts(source=random)"], "expected --source random"),
        (["--budget", "9"], "expected a budget like"),
        (["--source", "verifier"], "with defect_maps"),
        (["--source", "magic"], "expected a map source"),
        (["--verifier", "nobody"], "expected a verifier out of"),
        (["--verifier", "bright,bright2"], "expected a verifier"),
    ],
)
def test_a_users_error_comes_before_the_model_is_loaded(ready, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(models, "load_pipeline", lambda *a, **k: pytest.fail("loaded the pipeline"))
    monkeypatch.setitem(verifiers.REGISTRY, "bright2", verifiers.REGISTRY["bright"])
    assert cli.main(["search", "a red cat", *ready, *arguments]) == 2
    assert message in capsys.readouterr().err
