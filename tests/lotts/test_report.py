import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_run import fake_output
from PIL import Image

from lotts.manifest import png_bytes
from lotts.report import draw_report, page, save_output, style
from lotts.report.page import _best_panels, number, settings_in_words
from lotts.report.pictures import difference, fit, heat, outlined
from lotts.report.style import ACCENT, font, rounded_mask, wrap


@pytest.mark.parametrize(
    ("candidates", "refinements", "size"),
    [(1, 0, (24, 16)), (1, 1, (16, 48)), (3, 2, (32, 32)), (2, 5, (300, 200))],
)
def test_a_report_is_drawn_for_any_pool(candidates, refinements, size):
    page = draw_report(fake_output(candidates, refinements, size=size))
    assert page.mode == "RGB"
    assert page.width >= 1200
    assert page.height >= 600


def test_the_best_sample_alone_is_framed(monkeypatch):
    framed = []

    def placed(section, picture, at, frame=None):
        framed.append(frame)
        style.place(section, picture, at, frame)

    monkeypatch.setattr(page, "place", placed)
    for gain in (0.1, -0.1):
        framed.clear()
        output = fake_output(gain=gain)
        drawn = draw_report(output)
        # Once in its story and once in the pool, whose others have no frame.
        assert framed.count(ACCENT) == 2
        assert framed.count(None) >= len(output.samples) - 1
        assert len(framed) == framed.count(ACCENT) + framed.count(None)
        assert png_bytes(drawn) == png_bytes(draw_report(output))


def test_a_report_without_maps_and_masks_is_drawn():
    output = fake_output(1, 1)
    for sample in output.samples:
        sample.mask, sample.heatmaps = None, {}
    assert draw_report(output).width > 0


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ({"guidance_scale": 3.0, "true_cfg_scale": 1.0}, ["guidance 3"]),
        ({"guidance_scale": 1.0, "true_cfg_scale": 3.0}, ["true CFG 3"]),
        ({"guidance_scale": 3.5, "true_cfg_scale": 2.0}, ["guidance 3.5", "true CFG 2"]),
        ({"guidance_scale": 1.0, "true_cfg_scale": 1.0}, []),
    ],
)
def test_a_report_says_what_guided(scales, said):
    output = fake_output()
    output.settings = {**output.settings, **scales}
    assert [words for words in settings_in_words(output) if "guidance" in words or "CFG" in words] == said


def test_a_report_says_which_cells_were_resampled_and_of_how_many_candidates():
    output = fake_output(3, 2)
    assert {"2 refinements each", "the weakest 50% resampled"} <= set(settings_in_words(output))
    output.settings["mask_threshold"] = 0.5
    output.samples = [s for s in output.samples if s.parent != 1]
    assert {"4 refinements in all", "resampled where P is above 0.5, 50% at most"} <= set(settings_in_words(output))


def test_a_report_shows_the_mask_that_was_resampled(monkeypatch):
    output, shown = fake_output(2, 1), []
    grown = torch.ones_like(output.samples[0].mask)
    output.samples[2].mask = grown  # of the first candidate
    monkeypatch.setattr("lotts.report.page.outlined", lambda picture, mask, **_: shown.append(mask) or picture)
    draw_report(output)
    assert any(mask is grown for mask in shown)
    assert not any(mask is output.samples[0].mask for mask in shown)


def test_a_report_says_that_the_best_picture_had_nothing_to_resample():
    output = fake_output(2, 1)
    best = output.samples[0]
    output.best = 0
    assert "no refinement scored higher" in {note for _, note, _, _ in _best_panels(output, 64)}
    best.mask = torch.zeros_like(best.mask)
    assert "nothing here to resample" in {note for _, note, _, _ in _best_panels(output, 64)}


def test_a_report_of_a_repair_is_drawn():
    assert draw_report(fake_output(1, 2, repaired=True)).width > 0


def test_small_pictures_grow_by_whole_factors_and_large_ones_shrink():
    pixels = np.arange(16 * 8 * 3, dtype=np.uint8).reshape(16, 8, 3)
    grown = np.asarray(fit(pixels, 256))
    assert grown.shape == (256, 128, 3)
    assert (grown[::16, ::16] == pixels).all()
    assert (grown == pixels.repeat(16, 0).repeat(16, 1)).all()
    assert fit(np.zeros((1024, 512, 3), np.uint8), 256).size == (128, 256)
    # A whole factor would leave 150 pixels at 150 of 256.
    assert fit(np.zeros((150, 150, 3), np.uint8), 256).size == (256, 256)


def test_a_heatmap_is_brightest_at_its_maximum():
    values = torch.zeros(4, 4)
    values[1, 2] = 5.0
    lightness = np.asarray(heat(values, (64, 64)).convert("L"))
    row, column = np.unravel_index(lightness.argmax(), lightness.shape)
    assert (row // 16, column // 16) == (1, 2)


def test_an_outline_keeps_the_inside_and_closes_at_the_edge():
    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2, :2] = True
    out = np.asarray(outlined(picture, mask))
    assert tuple(out[16, 16]) == (200, 30, 30)
    assert tuple(out[0, 16]) == (255, 255, 255)
    assert tuple(out[50, 50]) != (200, 30, 30)


def test_the_difference_counts_visible_changes_only():
    before = np.zeros((10, 10, 3), np.uint8)
    after = before.copy()
    after[:5, :, 0] = 200
    after[5:, :, 0] = 4
    panel, share = difference(before, after, 100)
    assert share == 0.5
    assert panel.size == (100, 100)
    assert difference(before, before, 100)[1] == 0


@pytest.mark.parametrize(("score", "text"), [(0.61149, "0.611"), (-0.5, "-0.500"), (22.314, "22.31"), (1534.2, "1534")])
def test_scores_have_about_four_figures(score, text):
    assert number(score) == text


def test_text_wraps_within_its_width_and_ends_in_an_ellipsis():
    face = font(20)
    lines = wrap("red " * 200, face, 300, max_lines=3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(face.getlength(line) <= 300 for line in lines)
    assert wrap("a cat", face, 300) == ["a cat"]
    unbroken = wrap("x" * 200, face, 300, max_lines=99)
    assert "".join(unbroken) == "x" * 200
    assert wrap("wide", face, 1) == list("wide")


def test_round_corners_are_clear_and_the_middle_is_solid():
    mask = np.asarray(rounded_mask((40, 30), 8))
    assert mask.shape == (30, 40)
    assert mask[0, 0] == mask[-1, -1] == mask[0, -1] == mask[-1, 0] == 0
    assert (mask[8:-8] == 255).all()


# --- saving


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_run_is_saved_as_named_files(tmp_path):
    output = fake_output(2, 1)
    folder = save_output(output, tmp_path / "out")
    assert folder == tmp_path / "out"
    assert files_of(folder) == [
        "best.png",
        "manifest.json",
        "report.png",
        "samples/00-candidate-seed7.png",
        "samples/01-candidate-seed8.png",
        "samples/02-refinement-of-00.png",
        "samples/03-refinement-of-01.png",
    ]
    assert (np.asarray(Image.open(folder / "best.png")) == output.samples[3].pixels).all()


def test_the_same_run_renews_its_folder_and_another_goes_elsewhere(tmp_path):
    folder = tmp_path / "out"
    first = save_output(fake_output(seed=0), folder)
    before = {name: (first / name).read_bytes() for name in files_of(first)}
    slower = fake_output(seed=0)
    slower.cost.seconds = 99.0
    assert save_output(slower, folder) == folder
    pictures = [name for name in before if name.startswith("samples/")]
    assert all((folder / name).read_bytes() == before[name] for name in pictures)

    kept = {name: (folder / name).read_bytes() for name in files_of(folder)}
    assert save_output(fake_output(seed=1), folder) == tmp_path / "out-2"
    assert save_output(fake_output(seed=2), folder) == tmp_path / "out-3"
    assert save_output(fake_output(seed=1), folder) == tmp_path / "out-2"
    assert {name: (folder / name).read_bytes() for name in files_of(folder)} == kept


@pytest.mark.parametrize("name", ["manifest.json", "best.png", "samples/notes.txt"])
def test_files_of_others_are_not_overwritten(tmp_path, name):
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    assert save_output(fake_output(1, 0), tmp_path / "out") == tmp_path / "out-2"
    assert theirs.read_text() == "mine"


def test_a_folder_with_unrelated_files_is_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert save_output(fake_output(1, 0), tmp_path) == tmp_path


def test_no_temporary_file_stays_and_a_failed_write_leaves_none(tmp_path, monkeypatch):
    from lotts.report import save

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(save.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_output(fake_output(1, 0), tmp_path / "out")
    assert files_of(tmp_path) == []


def test_pngs_are_the_same_bytes_and_hold_no_metadata():
    picture = Image.fromarray(fake_output(1, 0).samples[0].pixels)
    marked = picture.copy()
    marked.info["dpi"] = (300, 300)
    assert png_bytes(picture) == png_bytes(marked)


def test_a_given_mask_is_saved_with_a_repair(tmp_path):
    output = fake_output(1, 1, repaired=True)
    folder = save_output(output, tmp_path / "out")
    mask = json.loads((folder / "manifest.json").read_text())["mask"]
    assert (np.asarray(Image.open(folder / mask)) > 127).tolist() == output.samples[0].mask.tolist()


def test_a_long_chain_of_refinements_is_drawn():
    output = fake_output(1, 1, size=(4, 4))
    first, second = output.samples
    chain = [first] + [replace(second, parent=index) for index in range(1200)]
    assert draw_report(replace(output, samples=chain, best=1200)).height > 100


def test_a_report_that_cannot_be_drawn_costs_no_manifest(tmp_path, monkeypatch):
    from lotts.report import save

    monkeypatch.setattr(save, "draw_report", lambda output: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save.save_output(fake_output(), tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_run_that_cannot_be_described_leaves_no_folder(tmp_path):
    output = fake_output(1, 1)
    output.settings["mask_ratio"] = object()
    with pytest.raises(TypeError):
        save_output(output, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["a file", "a link to nowhere"])
def test_where_the_next_folder_is_no_folder_the_one_after_it_is_taken(tmp_path, there):
    save_output(fake_output(1, 1), tmp_path / "out")
    if there == "a file":
        (tmp_path / "out-2").write_text("mine")
    else:
        (tmp_path / "out-2").symlink_to(tmp_path / "gone")
    assert save_output(fake_output(2, 1), tmp_path / "out") == tmp_path / "out-3"


def test_a_folder_under_a_link_to_nowhere_is_an_error_and_no_search_for_another(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        save_output(fake_output(1, 1), tmp_path / "gone" / "out")


@pytest.mark.parametrize("letter", ["字", "x"])
def test_a_long_text_without_spaces_is_wrapped_at_once(letter):
    face = font(36, letter)
    asked = []

    class Counted:
        def getlength(self, text):
            asked.append(len(text))
            return face.getlength(text)

    lines = wrap(letter * 20_000, Counted(), 1200)
    assert len(asked) < 200  # halving, and no line beyond the last shown
    assert len(lines) == 4
    assert all(0.9 * 1200 < face.getlength(line) <= 1200 for line in lines)
    assert lines[-1].endswith("…")
