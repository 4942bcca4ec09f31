"""What results are written with."""

import pytest

from bench.record import attempted, earlier_models, result_file, told, whole_lines, with_model, write_json


def test_rows_that_were_cut_short_are_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert whole_lines(path) == []
    path.write_text('{"index": 0}\n{"index": 1}\n{"ind')
    assert whole_lines(path) == [{"index": 0}, {"index": 1}]


def test_results_of_each_model_have_a_file_of_their_own():
    assert [result_file("x", f"shapes-{name}").name for name in ("sd", "sdxl", "flux")] == [
        "x.json",
        "x_sdxl.json",
        "x_flux.json",
    ]


@pytest.mark.parametrize(("error", "words"), [(AssertionError(), "AssertionError"), (ValueError("a\nb "), "b")])
def test_errors_are_told_in_a_line(error, words):
    assert told(error) == words


def test_a_measurement_that_fails_is_skipped_with_its_reason():
    assert attempted(lambda: {"a": 1}) == {"a": 1}
    assert attempted(lambda: [][1])["skipped"] == "failed: IndexError: list index out of range"


FACTS = {"commit": "a", "dirty": False, "cpu": "c", "gpu": "g", "driver": "1", "versions": {"torch": "2"}}


def test_models_of_an_earlier_run_stay_where_it_is_comparable(tmp_path):
    path = tmp_path / "report.json"
    assert earlier_models(None, FACTS) == earlier_models(path, FACTS) == {}
    models = {"flux": {"seconds": 1}}
    write_json(path, {"environment": FACTS | {"date": "before"}, "models": models})
    assert earlier_models(path, FACTS | {"date": "now"}) == models
    for change in ({"commit": "b"}, {"commit": None}, {"dirty": True}, {"gpu": "h"}, {"versions": {"torch": "3"}}):
        assert earlier_models(path, FACTS | change) == {}


def test_a_failure_does_not_replace_a_measurement():
    failed, measured = {"skipped": "failed"}, {"seconds": 1}
    assert with_model({}, "flux", failed) == {"flux": failed}
    assert with_model({"flux": failed}, "flux", measured) == {"flux": measured}
    assert with_model({"flux": measured}, "flux", failed) == {"flux": measured}
    assert with_model({"flux": measured}, "flux", {"seconds": 2}) == {"flux": {"seconds": 2}}
