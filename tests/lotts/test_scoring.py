"""Pictures in files are scored, and told as a table, as JSON and as CSV."""

import csv
import json

import pytest
from PIL import Image

from lotts import cli, scoring, verifiers
from lotts.verifiers.base import Verifier


class Dark(Verifier):
    """How much black is in a picture; counted downwards on purpose."""

    name, version, scale, higher_is_better = "dark", "7", "0 to 255", False

    def preprocess(self, image):
        import torch

        return torch.tensor(float(image.getpixel((0, 0))[0]))

    def forward(self, tensors, cache):
        return tensors


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    monkeypatch.setitem(verifiers.REGISTRY, "dark", Dark)
    monkeypatch.setitem(
        verifiers.REGISTRY, "red", lambda: lambda images, prompts: [float(i[..., 0].mean()) for i in images]
    )


@pytest.fixture
def folder(tmp_path):
    """Three pictures of a red 10, 200 and 200."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, red in (("a.png", 10), ("b.png", 200), ("c.png", 200)):
        Image.new("RGB", (8, 6), (red, 0, 0)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_one_verifier(folder, capsys):
    assert cli.main(["score", str(folder), "--prompt", "a cat", "--verifier", "red"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split() == ["image", "red"]
    assert [line.split()[1] for line in lines[1:]] == ["0.0392", "0.7843", "0.7843"]
    assert [line.endswith("<- best") for line in lines[1:]] == [False, True, False]
    assert printed.err == ""


def test_lower_may_be_better(folder):
    scored = scoring.score_files(scoring.files_of([folder]), ["a"] * 3, "dark", device="cpu")
    assert scored.columns == {"dark": [10, 200, 200]}
    assert scored.best() == [0]
    assert scored.verifiers == [
        {"name": "dark", "version": "7", "scale": "0 to 255", "higher_is_better": False, "weight": 1.0}
    ]


def test_an_ensemble_tells_its_members_and_writes_json(folder, tmp_path, capsys):
    out = tmp_path / "deep" / "scores.json"
    arguments = ["--prompt", "a cat", "--verifier", "red:3,dark", "--out", str(out)]
    assert cli.main(["score", str(folder), *arguments]) == 0
    assert f"{out}: written" in capsys.readouterr().out
    told = json.loads(out.read_text())
    assert [v["weight"] for v in told["verifiers"]] == [3, 1]
    assert [p["scores"]["dark"] for p in told["pictures"]] == [10, 200, 200]
    # red places them 0, 3/4, 3/4 and dark 1, 1/4, 1/4
    assert [p["scores"]["combined"] for p in told["pictures"]] == pytest.approx([0.25, 0.625, 0.625])
    assert [p.name for p in out.parent.iterdir()] == ["scores.json"]


def test_prompts_by_file_and_sets_by_prompt(folder, tmp_path):
    prompts, out = tmp_path / "prompts.json", tmp_path / "scores.csv"
    prompts.write_text(json.dumps({"a.png": "a cat", str(folder / "b.png"): 'a "dog", big', "c.png": "a cat"}))
    assert (
        cli.main(["score", str(folder), "--prompts", str(prompts), "--verifier", "red,dark:2", "--out", str(out)]) == 0
    )
    rows = list(csv.DictReader(out.open()))
    assert [row["prompt"] for row in rows] == ["a cat", 'a "dog", big', "a cat"]
    # Among the cats red prefers c and dark, twice, a; the dog is alone.
    assert [float(row["combined"]) for row in rows] == pytest.approx([2 / 3, 0.5, 1 / 3])


def test_prompts_by_line(folder, tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\n\ntwo \nthree\n")
    files = scoring.files_of([folder])
    assert scoring.read_prompts(lines, files) == ["one", "two", "three"]
    lines.write_text("one\n")
    with pytest.raises(ValueError, match=r"expected 3 lines in .*prompts\.txt, one a picture, got 1"):
        scoring.read_prompts(lines, files)


def test_only_a_few_pictures_are_open_at_once(folder, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 2)
    sizes = []
    forward = Dark.score
    monkeypatch.setattr(
        Dark, "score", lambda self, images, *rest: sizes.append(len(images)) or forward(self, images, *rest)
    )
    scoring.score_files(scoring.files_of([folder]), ["a"] * 3, "dark")
    assert sizes == [2, 1]


def test_pictures_of_a_run_rank_as_in_the_run(tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["--candidates", "2", "--refinements", "0", "--steps", "2", "--out", str(run)]
    prompt = "a red circle left of a blue star"
    assert cli.main(["generate", prompt, *arguments]) == 0
    assert cli.main(["score", str(run / "samples"), "--prompt", prompt, "--verifier", "shapes"]) == 0
    manifest = json.loads((run / "manifest.json").read_text())
    scored = scoring.score_files(scoring.files_of([run / "samples"]), [prompt] * 2, "shapes")
    assert scored.best() == [manifest["best"]]
    # The run scores unrounded pictures, a file holds 8 bits.
    recorded = [sample["score"] for sample in manifest["samples"]]
    assert scored.columns["shapes"] == pytest.approx(recorded, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png", "--prompt", "a"], "absent.png, which is no file"),
        (["notes.txt", "--prompt", "a"], "notes.txt, which PIL cannot read"),
        (["empty", "--prompt", "a"], "expected pictures"),
        (["a.png", "--prompt", "a", "--out", "scores.txt"], "expected a .json or .csv file"),
        (["a.png", "--prompts", "absent.txt"], "absent.txt"),
        (["a.png", "--prompts", "list.json"], "expected a JSON object"),
        (["a.png", "--prompts", "other.json"], "expected a prompt for a.png"),
        (["a.png", "--prompt", "a", "--verifier", "nobody"], "expected a verifier out of"),
        (["a.png", "--prompt", "a", "--verifier", "shapes"], "grammar|scattered"),
        (["a.png", "--prompt", "a", "--device", "abacus"], "expected a torch device"),
        (["a.png", "--prompt", "a", "--batch-size", "0"], "expected batch_size to be a whole number"),
    ],
)
def test_a_users_error_is_one_line(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    (folder / "list.json").write_text("[]")
    (folder / "other.json").write_text('{"b.png": "a"}')
    chosen = arguments if "--verifier" in arguments else [*arguments, "--verifier", "red"]
    assert cli.main(["score", *chosen]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lotts: error: ")
    assert any(part in error for part in message.split("|"))


def test_deep_and_broken_pictures_are_named(folder):
    Image.new("I;16", (8, 6), 40_000).save(folder / "deep.png")
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:-30])
    for name, words in (("deep.png", "8 bits a channel"), ("cut.png", "can be read")):
        with pytest.raises(ValueError, match=words) as told:
            scoring.score_files([folder / name], ["a"], "red", device="cpu")
        assert name in str(told.value)
        assert words in str(told.value)


def test_a_score_that_is_no_number_names_where_its_pictures_begin(folder, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 2)
    monkeypatch.setitem(
        verifiers.REGISTRY, "fickle", lambda: lambda images, prompts: [float("nan")] * len(images) if len(images) == 1 else [0.0, 0.0]
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"picture 0 \('a'\) nan.*picture 0 being .*c\.png"):
        scoring.score_files(scoring.files_of([folder]), ["a"] * 3, "fickle")


def test_files_of_prompts_may_begin_with_a_mark_and_hold_any_separator(tmp_path):
    pictures = ["a.png", "b.png"]
    (tmp_path / "p.txt").write_text("\ufeffa red cat\na\u2028dog\n", encoding="utf-8")
    assert scoring.read_prompts(tmp_path / "p.txt", pictures) == ["a red cat", "a\u2028dog"]
    (tmp_path / "p.json").write_text("\ufeff" + json.dumps({"a.png": "cat", "b.png": "dog"}), encoding="utf-8")
    assert scoring.read_prompts(tmp_path / "p.json", pictures) == ["cat", "dog"]
    (tmp_path / "p.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"p\.json"):
        scoring.read_prompts(tmp_path / "p.json", pictures)


def test_a_verifier_of_the_wrong_shape_is_refused(folder):
    class Careless(Dark):
        def forward(self, tensors, cache):
            return tensors.mean()

    with pytest.raises(ValueError, match=r"forward of dark to give \[3\] scores, got \[\]"):
        Careless()([Image.open(path) for path in scoring.files_of([folder])], ["a"] * 3)


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="expected pictures to score, got none"):
        scoring.score_files([], [], "red")
