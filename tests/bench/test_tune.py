"""Choosing configurations and rewriting the table, with a clock that needs no GPU."""

import dataclasses
import json

import pytest
import torch

from bench import tune
from lotts.kernels import launch

SECONDS = {256: 3.0, 512: 1.0, 1024: 2.0}


class FakeTimer:
    """Times a call by the block size that it was launched with."""

    def __init__(self, launched):
        self.launched = launched

    def device_only(self, calls, rounds):
        times = {}
        for name, call in calls.items():
            call()
            times[name] = [SECONDS[self.launched[-1]]] * rounds
        return times


@pytest.fixture
def group():
    whole = next(group for group in tune.groups("inject_noise") if group.bits == 16)
    case = dataclasses.replace(whole.cases[0], batch=1, side=8, dtype=torch.float16)
    return dataclasses.replace(whole, cases=(case,))


def test_the_shipped_table_is_formatted_so():
    text = launch.TABLE.read_text(encoding="utf-8")
    assert tune.formatted(json.loads(text)) == text


def test_a_new_row_changes_one_line_and_no_other_chip(group):
    table = json.loads(launch.TABLE.read_text(encoding="utf-8"))
    config = {"BLOCK": 512, "num_warps": 4, "num_stages": 1}
    changed = tune.with_row(table, "sm_90", group, config)
    again = tune.with_row(changed, "sm_90", group, config | {"BLOCK": 256})
    assert again["inject_noise"]["default"] == table["inject_noise"]["default"]
    assert again["contrast_attention"] == table["contrast_attention"]
    before, after = (set(tune.formatted(t).splitlines()) for t in (changed, again))
    assert len(after - before) == 1
    assert changed["inject_noise"]["sm_90"][0]["config"] == config


def test_rows_are_sorted_narrowest_first():
    table = {}
    for head_dim, keys in ((256, 10), (64, 10), (64, 5)):
        group = tune.Group("op", "op", 16, head_dim, keys, ())
        table = tune.with_row(table, "sm_90", group, {"BLOCK": 1})
    assert [(row["head_dim"], row["keys"]) for row in table["op"]["sm_90"]] == [(64, 5), (64, 10), (256, 10)]


def test_every_row_has_cases_within_its_bounds():
    ops = (
        "contrast_attention",
        "propagate_attention",
        "region_attention",
        "norm_rope",
        "inject_noise",
        "blend_step",
        "philox_normal",
    )
    for op in ops:
        for group in tune.groups(op):
            assert group.cases, group
            for case in group.cases:
                assert case.dtype.itemsize * 8 == group.bits
                assert getattr(case, "dim", 0) <= group.head_dim
                assert getattr(case, "keys", 0) <= group.keys
            launch.config(group.row, "sm_90", group.bits, group.head_dim, group.keys)


def test_candidates_are_ranked_by_their_time_over_the_first_one_s_at_all_shapes():
    assert tune.ranked([[[1.0], [0.5], [0.75]]]) == [(0.5, 1), (0.75, 2), (1.0, 0)]
    # Worse at one shape by as much as it is better at another: no gain.
    assert tune.ranked([[[1.0], [0.5]], [[1.0], [2.0]]]) == [(1.0, 0), (1.0, 1)]


@pytest.fixture
def tuned(group, monkeypatch):
    """What ``tune`` chooses for a group whose candidates are the blocks of SECONDS and 2048, which is wrong, and what was timed."""
    configs = [{"BLOCK": block, "num_warps": 4, "num_stages": 1} for block in (*SECONDS, 2048)]
    launched = []

    def ours(case, inputs, impl):
        launched.append(launch.config("inject_noise", "sm_90", 16)["BLOCK"])

    def choose(spilling=(), present=256):
        monkeypatch.setattr(tune, "candidates", lambda group: configs)
        monkeypatch.setattr(launch, "config", lambda *_, **__: dict(configs[0], BLOCK=present))
        monkeypatch.setattr(tune, "spills", lambda job: "spills" if job[4]["BLOCK"] in spilling else None)
        monkeypatch.setattr(tune, "wrong", lambda job: "wrong" if job[1]["BLOCK"] == 2048 else None)
        monkeypatch.setattr(type(group.cases[0]), "ours", ours)
        return tune.tune(group, "sm_90", FakeTimer(launched), map, "cpu")["BLOCK"], set(launched)

    return choose


def test_wrong_candidates_are_not_timed(tuned):
    assert tuned() == (512, {256, 512, 1024})


def test_the_fastest_that_does_not_spill_is_chosen(tuned, capsys):
    assert tuned(spilling=[512])[0] == 1024
    assert "512" in capsys.readouterr().out


def test_a_row_stays_where_all_that_is_faster_spills(tuned, capsys):
    assert tuned(spilling=SECONDS)[0] == 256
    assert "what is faster spills; the row stays" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "chosen"), [(2.97, 256), (2.0, 512)])
def test_only_a_clear_gain_replaces_the_present_configuration(tuned, monkeypatch, seconds, chosen):
    monkeypatch.setitem(SECONDS, 512, seconds)
    monkeypatch.setitem(SECONDS, 1024, 4.0)
    assert tuned()[0] == chosen


def test_without_a_valid_candidate_a_row_stays(group, monkeypatch, capsys):
    monkeypatch.setattr(tune, "wrong", lambda job: "wrong")
    present = launch.config(group.row, "sm_90", group.bits, group.head_dim, group.keys)
    assert tune.tune(group, "sm_90", FakeTimer([]), map, "cpu") == present
    assert "no candidate is right; the row stays" in capsys.readouterr().out


def test_a_configuration_is_in_force_within_the_context_only():
    before = launch.config("inject_noise", "sm_90", 16)
    with tune.using("inject_noise", {"BLOCK": 64}):
        assert launch.config("inject_noise", "sm_90", 16) == {"BLOCK": 64}
        assert launch.config("blend_step", "sm_90", 16) != {"BLOCK": 64}
    assert launch.config("inject_noise", "sm_90", 16) == before


def test_results_are_compared_before_a_candidate_counts(group, monkeypatch):
    config = launch.config("inject_noise", "sm_90", 16)
    monkeypatch.setattr(type(group.cases[0]), "ours", lambda case, inputs, impl: inputs["background"].unsqueeze(1))
    assert "FAILS" in tune.wrong((group, config, "cpu"))


def test_every_row_has_a_kernel_whose_candidates_are_compiled(monkeypatch):
    compiled = []

    class Sound:
        def faults(self):
            return []

    monkeypatch.setattr(tune.resources, "needs", lambda op, variant, arch: compiled.append(variant.name) or Sound())
    rows = [group for op in ("norm_rope", "region_attention", "propagate_attention") for group in tune.groups(op)]
    for group in rows:
        compiled.clear()
        config = launch.config(group.row, "sm_90", group.bits, group.head_dim, group.keys)
        assert tune.spills((group.op, group.row, group.bits, group.head_dim, config, "sm_90")) is None
        assert compiled, group.row


class OneWorker:
    """A pool of one process, whose GPU a candidate may take away from those behind it."""

    def __init__(self):
        self.alive, self.ended = True, False

    def map(self, function, jobs, chunksize):
        return [function(self, job) for job in jobs]

    def terminate(self):
        self.ended = True

    join = terminate


def tried(worker, job):
    if not worker.alive:
        return tune.LOST
    worker.alive = not job.startswith("kills")
    return None if worker.alive else f"{job} it"


def test_candidates_behind_one_that_takes_the_gpu_are_tried_by_another_process(monkeypatch):
    pools = []

    def begin(processes):
        pools.append(OneWorker())
        processes.pool = pools[-1]

    monkeypatch.setattr(tune.Processes, "_begin", begin)
    found = tune.Processes(1).map(tried, ["right", "kills", "right", "kills too", "right"])
    assert found == [None, "kills it", None, "kills too it", None]
    assert [pool.ended for pool in pools] == [True, True, False]


def test_a_gpu_that_does_not_answer_in_new_processes_ends_the_run(monkeypatch):
    monkeypatch.setattr(tune.Processes, "_begin", lambda processes: setattr(processes, "pool", OneWorker()))
    with pytest.raises(RuntimeError, match="expected one that works"):
        tune.Processes(1).map(lambda worker, job: tune.LOST, ["right"])


def test_where_the_gpu_is_lost_nothing_is_said_of_a_candidate(group, monkeypatch):
    monkeypatch.setattr(tune, "usable", lambda device: False)
    assert tune.wrong((group, {"BLOCK": 512, "num_warps": 4, "num_stages": 1}, "cuda")) == tune.LOST
