"""What results are written with."""

import pytest

from bench.record import attempted, result_file, told, whole_lines


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
