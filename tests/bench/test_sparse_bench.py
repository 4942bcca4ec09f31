"""The benchmark of sparse steps on tiny networks, and the summary of the study of their quality."""

import json

import pytest

from bench import sparse, sparse_quality


def test_quick_measures_both_models_at_every_ratio(capsys, tmp_path):
    out = tmp_path / "sparse.json"
    assert sparse.main(["--quick", "--ratio", "0.2", "--ratio", "0.5", "--device", "cpu", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(report["models"]) == {"flux", "sdxl"}
    for entry in report["models"].values():
        shares = [entry["ratios"][ratio]["model"] for ratio in ("0.2", "0.5")]
        assert 0 < shares[0] < shares[1] < 1
        assert entry["ratios"]["0.2"]["stored_mib"] > entry["ratios"]["0.5"]["stored_mib"] > 0
        assert entry["seconds"]["dense"]["p50"] > 0
    assert "| flux" in capsys.readouterr().out


def test_ratios_outside_the_open_interval_are_refused(capsys):
    with pytest.raises(SystemExit):
        sparse.main(["--quick", "--ratio", "1"])
    assert "between 0 and 1" in capsys.readouterr().err


@pytest.mark.parametrize(("measured", "verdict"), [(0.57, "met"), (0.7, "MISSED")])
def test_on_a_cpu_a_step_is_held_to_the_flop_model(measured, verdict):
    report = {"models": {"flux": {"ratios": {"0.5": {"measured": measured, "model": 0.56}}}}}
    (line,) = sparse.judged(report, "cpu")
    assert line.startswith(verdict)


def row(sparse_scores, dense_scores):
    def arm(scores, psnr):
        verdicts = [{"score": score, "objects": 1.0, "scene": 0.0} for score in scores]
        return {"verdicts": verdicts, "psnr": [psnr] * len(scores), "share": 0.5}

    return {"arms": {"dense @ 0.5": arm(dense_scores, None), "stale @ 0.5": arm(sparse_scores, 30.0)}}


def test_the_study_compares_with_dense_refinements_of_the_same_noise():
    table = sparse_quality.summarise([row([1, 2, 4], [1, 2, 3]), row([1, 3, 2], [1, 2, 3])])
    stale = table["stale @ 0.5"]
    assert stale["score difference"][0] == pytest.approx(1 / 6, abs=1e-3)
    assert stale["rank agreement"][0] == pytest.approx((1 + 2 / 3) / 2, abs=1e-3)
    assert stale["psnr inside the mask"] == [30.0, 0.0]
    assert table["dense @ 0.5"]["psnr inside the mask"] is None
