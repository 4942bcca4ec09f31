"""Facts about a comparison as a whole: it goes on where it stopped, and its tables say what the items do."""

import csv
import io
import json
import os

import numpy as np
import pytest
from studying import PROMPTS, VARIANTS, study

from lotts import search, verifiers
from lotts.compare import Variant, compare
from lotts.compare.records import leaders
from lotts.output import Sample
from lotts.prompts import Prompt

pytestmark = pytest.mark.usefixtures("tiny")


def rows(out):
    return list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))


@pytest.mark.parametrize("where", ["in a search", "in writing an item"])
def test_what_was_killed_goes_on_and_gives_the_same_table(finished, tmp_path, monkeypatch, where):
    calls = []
    owner, name = (search, "run") if where == "in a search" else (os, "rename")
    original = getattr(owner, name)

    def third_time_unlucky(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, third_time_unlucky)
        with pytest.raises(KeyboardInterrupt):
            compare(study(), tmp_path)
    assert not (tmp_path / "table.csv").exists()
    assert len(list(tmp_path.glob("items/*/*/item.json"))) == 2
    outcome = compare(study(), tmp_path)
    assert (outcome.made, outcome.kept, outcome.failed) == (6, 2, 0)
    for file in ("table.csv", "table.md", "table.json", "curves.csv"):
        assert (tmp_path / file).read_bytes() == (finished / file).read_bytes()
    assert not list(tmp_path.glob("items/*/.*"))


def test_nothing_is_made_twice(finished, monkeypatch):
    before = (finished / "table.csv").read_bytes()
    monkeypatch.setattr(search, "run", lambda *args, **kwargs: pytest.fail("made again"))
    outcome = compare(study(), finished)
    assert (outcome.made, outcome.kept) == (0, 8)
    assert (finished / "table.csv").read_bytes() == before


def test_the_table_says_what_the_items_do(finished):
    records = [json.loads(path.read_text()) for path in finished.glob("items/*/*/item.json")]
    for kind, metric in (("searched", "bright"), ("held out", "red")):
        means = {}
        for method in ("best_of_n", "lotts"):
            for prompt in PROMPTS:
                chosen = [r for r in records if (r["method"], r["prompt"]["text"]) == (method, prompt.text)]
                assert len(chosen) == 2
                best = [r["samples"][r["best"]]["score"] for r in chosen]
                red = [r["metrics"]["red"][str(r["best"])][0] for r in chosen]
                means[method, prompt.text] = np.mean(best if metric == "bright" else red)
        a, b = ([means[method, prompt.text] for prompt in PROMPTS] for method in ("best_of_n", "lotts"))
        row = next(
            r for r in rows(finished) if r["group"] == "all" and r["metric"] == metric and r["variant"] != "best_of_n"
        )
        assert row["kind"] == kind
        assert (row["prompts"], row["runs"]) == ("2", "4")
        assert float(row["mean"]) == pytest.approx(np.mean(b), rel=1e-5)
        difference = np.subtract(b, a)
        assert float(row["difference"]) == pytest.approx(difference.mean(), rel=1e-4)
        assert float(row["difference_error"]) == pytest.approx(difference.std(ddof=1) / 2**0.5, rel=1e-4)
    nfe = {r["variant"]: float(r["mean"]) for r in rows(finished) if (r["group"], r["metric"]) == ("all", "nfe")}
    assert list(nfe.values()) == [12, 10]  # two pictures of 3 guided steps; one, and a refinement of the last 2
    assert {r["group"] for r in rows(finished)} == {"all", "cats", "dogs"}


def test_each_budget_is_kept_by_every_method(tmp_path):
    compare(study(prompts=PROMPTS[:1], seeds=1, metrics=[], budgets=["samples=3", "nfe=17"]), tmp_path)
    spent = {(r["budget"], r["metric"]): float(r["mean"]) for r in rows(tmp_path) if r["variant"] != "best_of_n"}
    assert spent["samples=3", "samples"] == 3
    assert spent["nfe=17", "nfe"] == 14  # a picture of 6 rows and two refinements of 4 each
    plain = {(r["budget"], r["metric"]): float(r["mean"]) for r in rows(tmp_path) if r["variant"] == "best_of_n"}
    assert (plain["nfe=17", "nfe"], plain["nfe=17", "samples"]) == (12, 2)


def test_runs_share_their_first_picture_but_not_between_seeds(finished):
    first = {}
    for path in finished.glob("items/*/*/item.json"):
        record = json.loads(path.read_text())
        first.setdefault((record["prompt"]["text"], record["seed"]), set()).add(record["samples"][0]["seed"])
    assert all(len(seeds) == 1 for seeds in first.values())
    assert len({seed for seeds in first.values() for seed in seeds}) == 4


def test_one_failure_does_not_sink_the_others_and_is_tried_again(tmp_path, monkeypatch):
    original = search.run

    def fails_for_dogs(pipe, prompt, *args, **kwargs):
        if "dog" in prompt:
            raise RuntimeError("out of bones")
        return original(pipe, prompt, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(search, "run", fails_for_dogs)
        outcome = compare(study(seeds=1), tmp_path)
    assert (outcome.made, outcome.failed, outcome.error) == (2, 2, "RuntimeError: out of bones")
    told = [json.loads(path.read_text()) for path in tmp_path.glob("failures/*.json")]
    assert {entry["error"] for entry in told} == {"RuntimeError: out of bones"}
    assert {row["prompts"] for row in rows(tmp_path) if row["group"] == "all"} == {"1"}
    again = compare(study(seeds=1), tmp_path)
    assert (again.made, again.kept, again.failed) == (2, 2, 0)
    assert not list(tmp_path.glob("failures/*.json"))


def test_another_metric_only_looks_at_the_pictures(tmp_path, monkeypatch):
    compare(study(seeds=1, metrics=[]), tmp_path)
    monkeypatch.setattr(search, "run", lambda *args, **kwargs: pytest.fail("drawn again"))
    outcome = compare(study(seeds=1), tmp_path)
    assert outcome.failed == 0
    assert {row["metric"] for row in rows(tmp_path)} > {"bright", "red"}


def test_a_metric_of_another_version_looks_again(tmp_path, monkeypatch):
    first = study(seeds=1, variants=VARIANTS[:1], metric_versions={"red": "1"})
    compare(first, tmp_path)
    asked = []
    monkeypatch.setattr(search, "run", lambda *args, **kwargs: pytest.fail("drawn again"))
    monkeypatch.setitem(verifiers.REGISTRY, "red", lambda: lambda images, prompts: asked.append(1) or [0.5])
    assert compare(first, tmp_path).made == 0
    assert not asked
    outcome = compare(study(seeds=1, variants=VARIANTS[:1], metric_versions={"red": "2"}), tmp_path)
    assert (outcome.made, outcome.failed) == (2, 0)
    assert {row["mean"] for row in rows(tmp_path) if row["metric"] == "red"} == {"0.5"}


def test_an_item_cut_short_is_made_again(tmp_path):
    compare(study(seeds=1, variants=VARIANTS[:1]), tmp_path)
    before = (tmp_path / "table.csv").read_bytes()
    cut = sorted(tmp_path.glob("items/*/*/item.json"))[0]
    cut.write_text("")
    outcome = compare(study(seeds=1, variants=VARIANTS[:1]), tmp_path)
    assert (outcome.made, outcome.kept) == (1, 1)
    assert (tmp_path / "table.csv").read_bytes() == before
    assert cut.parent.stat().st_mode & 0o055 == 0o055 & ~umask()  # others may read it on a shared disk


def umask():
    value = os.umask(0)
    os.umask(value)
    return value


def test_what_another_process_made_meanwhile_counts(tmp_path, monkeypatch):
    original = search.run

    def overtaken(*args, **kwargs):
        output = original(*args, **kwargs)
        monkeypatch.setattr(search, "run", original)
        compare(one, tmp_path)
        return output

    one = study(seeds=1, variants=VARIANTS[:1], prompts=PROMPTS[:1])
    monkeypatch.setattr(search, "run", overtaken)
    outcome = compare(one, tmp_path)
    assert (outcome.made, outcome.failed) == (1, 0)
    assert len(list(tmp_path.glob("items/*/*"))) == 1


def test_what_a_killed_process_left_is_removed_when_nobody_can_be_at_it(tmp_path):
    compare(study(seeds=1, variants=VARIANTS[:1]), tmp_path)
    left = [tmp_path / "items" / "best_of_n" / ".unfinished-1", tmp_path / "items" / "best_of_n" / ".unfinished-2"]
    for folder in left:
        folder.mkdir()
        (folder / "000.png").write_bytes(b"half")
    os.utime(left[0], (0, 0))
    compare(study(seeds=1, variants=VARIANTS[:1]), tmp_path)
    assert [folder.exists() for folder in left] == [False, True]


def test_prompts_that_a_judge_refuses_are_told_before_any_compute(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(tiny.unet, "forward", lambda *args, **kwargs: pytest.fail("computed something"))
    with pytest.raises(ValueError, match="cannot read"):
        compare(study(metrics=["checker"]), tmp_path)
    with pytest.raises(ValueError, match="scores pictures as they come"):
        compare(study(verifier="bright,red", metrics=[]), tmp_path)
    for method, message in (
        ("lotts(mask_ratio=2)", "mask_ratio"),
        ("lotts_chain(noise_step=99)", "noise_step"),
        ("lotts_adaptive(mask_ratios=())", "mask_ratios as a list of one or more"),
        ("particle(potential=sum)", "expected potential to be one of diff"),
        ("lotts(source=verifier)", "expected a verifier with defect_maps"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(study(variants=[*VARIANTS, Variant.parse(method)]), tmp_path)
    with pytest.raises(ValueError, match="expected a plot out of scaling"):
        compare(study(), tmp_path, form="pie")
    with pytest.raises(ValueError, match="one picture at least"):
        compare(study(budgets=["samples=2", "nfe=1"]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_form_has_a_plot(finished, tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    for form in ("scaling", "ablation", "sweep"):
        (path,) = compare(study(), finished, form=form).plots
        assert path.name == f"{form}.png"
        assert np.asarray(Image.open(path).convert("L")).std() > 5


def test_what_a_search_would_have_returned():
    samples = [Sample(None, score, "candidate", 0, nfe=nfe) for score, nfe in ((1, 5), (3, 10), (2, 10), (4, 15))]
    assert leaders(samples, True) == [
        {"samples": 1, "nfe": 5, "sample": 0},
        {"samples": 3, "nfe": 10, "sample": 1},
        {"samples": 4, "nfe": 15, "sample": 3},
    ]
    assert [point["sample"] for point in leaders(samples, False)] == [0, 2, 3]


def test_a_line_with_a_budget_of_its_own_stands_in_every_table(tmp_path):
    variants = [Variant.parse("best_of_n(budget=samples=4)"), Variant.parse("best_of_n")]
    outcome = compare(study(variants=variants, budgets=["samples=2", "samples=3"], prompts=PROMPTS[:2]), tmp_path)
    found = {(row["budget"], row["variant"]): row for row in rows(tmp_path) if row["metric"] == "samples"}
    assert {key: float(row["mean"]) for key, row in found.items()} == {
        ("samples=2", "best_of_n(budget=samples=4)"): 4,
        ("samples=3", "best_of_n(budget=samples=4)"): 4,
        ("samples=2", "best_of_n"): 2,
        ("samples=3", "best_of_n"): 3,
    }
    seeds = 2
    assert outcome.made == 3 * 2 * seeds  # the line is run once for both tables
    tested = [row for row in rows(tmp_path) if row["variant"] == "best_of_n" and row["metric"] == "bright"]
    assert all(row["p"] for row in tested)


def test_a_failure_whose_words_cannot_be_written_is_told_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "run", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("half a letter: \ud83d")))
    outcome = compare(study(seeds=1), tmp_path)
    assert outcome.failed == 4
    assert "half a letter" in outcome.error


def test_a_prompt_that_a_method_cannot_take_fails_alone_wherever_it_stands(tmp_path):
    prompts = [Prompt("..."), *PROMPTS]
    for order in (prompts, prompts[::-1]):
        outcome = compare(study(prompts=order, seeds=1), tmp_path / order[0].text.strip("."))
        assert (outcome.made, outcome.failed) == (5, 1)
    with pytest.raises(ValueError, match="expected words among what the text encoder reads"):
        compare(study(prompts=prompts[:1], seeds=1, variants=VARIANTS[1:]), tmp_path / "alone")


def test_a_group_may_be_called_all(tmp_path):
    outcome = compare(study(prompts=[Prompt("a red cat", "all"), Prompt("a blue dog", "dogs")], seeds=1), tmp_path)
    assert [row.prompts for row in outcome.rows if (row.group, row.metric) == ("all", "red")] == [2, 2]
