"""``lotts compare``, ``ablate`` and ``sweep`` from the command line, on a tiny pipeline."""

import csv

import pytest

from lotts import models, search, verifiers
from lotts.cli import main

COMMON = ["--verifier", "bright", "--steps", "3", "--seeds", "1", "--budget", "samples=2", "--guidance-scale", "2"]


@pytest.fixture(autouse=True)
def ready(tiny_pipe, monkeypatch, tmp_path):
    """The tiny pipeline under every name, a verifier called "bright", and a file of two prompts."""
    monkeypatch.setattr(models, "load_pipeline", lambda name, device=None, dtype=None: tiny_pipe)
    monkeypatch.setitem(verifiers.REGISTRY, "bright", lambda: lambda images, prompts: [float(i.mean()) for i in images])
    (tmp_path / "prompts.txt").write_text("a red cat\na blue dog\n")
    return str(tmp_path / "prompts.txt")


def variants(out):
    with (out / "table.csv").open() as file:
        return list(dict.fromkeys(row["variant"] for row in csv.DictReader(file)))


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (["compare", "--methods", "best_of_n,lotts(global_steps=1)"], ["best_of_n", "lotts(global_steps=1)"]),
        (
            ["ablate", "--limit", "1", "--method", "lotts(num_refinements=1,global_steps=1)"],
            ["no mask", "random mask", "full"],
        ),
        (["sweep", "--method", "lotts(num_refinements=1,global_steps=1)", "--vary", "r=0.2,0.5"], ["r=0.2", "r=0.5"]),
    ],
)
def test_a_study_is_made_and_gone_on_with(ready, tmp_path, command, lines, capsys, monkeypatch):
    name, *rest = command
    words = [name, ready, *rest, *COMMON, "--model", "owner/tiny", "--out", str(tmp_path / "study")]
    assert main(words) == 0
    found = variants(tmp_path / "study")
    assert [line for line in found if line in lines] == lines
    first = (tmp_path / "study" / "table.csv").read_bytes()
    assert "runs made, 0 kept" in capsys.readouterr().out
    monkeypatch.setattr(search, "run", lambda *args, **kwargs: pytest.fail("made again"))
    assert main(words) == 0
    assert "0 runs made" in capsys.readouterr().out
    assert (tmp_path / "study" / "table.csv").read_bytes() == first


def test_a_failed_run_is_told_with_status_1(ready, tmp_path, capsys, monkeypatch):
    original = search.run

    def fails_for_dogs(pipe, prompt, *args, **kwargs):
        if "dog" in prompt:
            raise RuntimeError("out of bones")
        return original(pipe, prompt, *args, **kwargs)

    monkeypatch.setattr(search, "run", fails_for_dogs)
    words = [
        "compare",
        ready,
        "--methods",
        "best_of_n",
        *COMMON,
        "--model",
        "owner/tiny",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(words) == 1
    assert "1 runs failed" in (told := capsys.readouterr().err)
    assert "out of bones" in told


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["ablate", "--method", "lotts(source=random)"], "expected the attention's mask to take apart"),
        (["ablate", "--method", "lotts(mask_threshold=0.5)"], "got a mask_threshold"),
        (["sweep", "--vary", "k"], "expected --vary like k=1,2,8"),
        (["sweep", "--method", "lotts(budget=nfe=8)"], "expected --budget nfe=8 instead of a budget in brackets"),
        (["ablate", "--method", "lotts(budget=nfe=8)"], "expected --budget nfe=8 instead of a budget in brackets"),
        (["sweep", "--method", "lotts_adaptive"], "expected --vary with options of lotts_adaptive"),
        (["sweep", "--vary", "k=1", "--vary", "k=1"], "expected variants that differ, got k=1, k=1"),
        (["compare", "--methods", "luck"], "expected a method out of"),
    ],
)
def test_a_users_error_is_one_line(ready, tmp_path, command, message, capsys):
    name, *rest = command
    assert main([name, ready, *rest, *COMMON, "--model", "owner/tiny", "--out", str(tmp_path / "study")]) == 2
    assert message in capsys.readouterr().err
