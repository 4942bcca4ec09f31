"""A search is saved, repeated and watched as any other run."""

import pytest
from searching import brightness, found

from lotts.replays import replay
from lotts.search import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_search_is_saved_and_replays_bit_for_bit(tiny_pipe, tmp_path, method):
    out = found(tiny_pipe, method, "samples=4", batch_size=2)
    folder = out.save(tmp_path / "out")
    assert replay(folder, pipe=tiny_pipe, verifier=brightness).exact


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
