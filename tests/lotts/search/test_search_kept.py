"""A search is saved, repeated and watched as any other run."""

import json
from collections import Counter

import numpy as np
import pytest
from searching import brightness, found

from lotts.replays import replay
from lotts.search import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_search_is_saved_and_replays_bit_for_bit(tiny_pipe, tmp_path, method):
    out = found(tiny_pipe, method, "samples=4", batch_size=2)
    folder = out.save(tmp_path / "out")
    assert replay(folder, pipe=tiny_pipe, verifier=brightness).exact


def test_particles_that_go_back_to_one_noise_replay_bit_for_bit(tiny_pipe, tmp_path):
    out = found(tiny_pipe, "particle", "samples=5", strength=1e6, adaptive=False)
    assert max(Counter(sample.seed for sample in out.samples).values()) > 2
    folder = out.save(tmp_path / "out")
    assert replay(folder, pipe=tiny_pipe, verifier=brightness).exact
    other = json.loads((folder / "manifest.json").read_text())
    other["best"] = (other["best"] + 1) % 5
    (folder / "manifest.json").write_text(json.dumps(other))
    assert not replay(folder, pipe=tiny_pipe, verifier=brightness).same_best


@pytest.mark.parametrize("method", METHODS)
def test_the_same_search_saved_again_renews_its_files(tiny_pipe, tmp_path, method):
    out = found(tiny_pipe, method, "samples=2")
    assert out.save(tmp_path / "out") == out.save(tmp_path / "out")


def test_options_of_numpy_are_saved_as_plain_numbers(tiny_pipe, tmp_path):
    out = found(
        tiny_pipe,
        "lotts",
        "samples=2",
        num_refinements=np.int64(1),
        mask_ratio=np.float32(0.25),
        dilate=np.arange(2)[1],
    )
    settings = json.loads((out.save(tmp_path / "out") / "manifest.json").read_text())["settings"]
    assert (settings["num_refinements"], settings["mask_ratio"], settings["dilate"]) == (1, 0.25, 1)


def test_a_search_by_the_clock_does_not_replay(tiny_pipe, tmp_path):
    folder = found(tiny_pipe, "best_of_n", "seconds=1e-9").save(tmp_path / "out")
    with pytest.raises(ValueError, match="budget was in seconds"):
        replay(folder, pipe=tiny_pipe, verifier=brightness)


@pytest.mark.parametrize("method", METHODS)
def test_the_callback_sees_every_stage(tiny_pipe, method):
    seen = []

    def callback(pipe, step, timestep, kwargs):
        seen.append((kwargs["stage"], step))
        return {}

    out = found(tiny_pipe, method, "samples=4", callback_on_step_end=callback)
    assert {stage for stage, _ in seen} == {sample.kind for sample in out.samples}
