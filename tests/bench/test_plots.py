"""The figures of the docs, drawn again from the results that are kept."""

import pytest

pytest.importorskip("matplotlib")

from bench import plots
from bench.record import ROOT


@pytest.mark.parametrize("name", ["loss_curves", "single_samples", "localization", "refinement", "sparse"])
def test_every_figure_can_be_drawn_from_the_results_that_are_kept(name, monkeypatch, tmp_path):
    monkeypatch.setattr(plots, "RESULTS", ROOT / "bench" / "results")
    monkeypatch.setattr(plots, "IMAGES", tmp_path)
    getattr(plots, name)()
    assert len(list(tmp_path.glob("*.png"))) == 1
