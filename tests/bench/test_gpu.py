"""The GPU runner without a GPU: small shapes, Triton's interpreter, and a clock that needs no device."""

import dataclasses
import itertools
import json

import pytest
import torch

from bench import gpu, render, shapes, targets
from bench.__main__ import main
from bench.cases import AttentionCase, RegionCase, RopeCase
from bench.latent_cases import NoiseCase
from bench.timing import GpuTimer, Times, percentiles, rounds_of


class CountingTimer(GpuTimer):
    """Every call takes one microsecond longer than the one before."""

    def __init__(self):
        self.ticks = itertools.count(1)

    def device_seconds(self, call):
        call()
        return next(self.ticks) * 1e-6

    wall_seconds = device_seconds

    def extra_bytes(self, call):
        call()
        return 1024


def small(case):
    if isinstance(case, AttentionCase):
        text = {"text": 40} if case.joint else {}
        return dataclasses.replace(case, batch=1, rows=70, heads=1, dim=16, dtype=torch.float16, **text)
    if isinstance(case, RegionCase):
        return dataclasses.replace(case, batch=1, rows=70, stored=50, heads=1, dim=16, dtype=torch.float16)
    if isinstance(case, RopeCase):
        return dataclasses.replace(case, batch=2, text=7, rows=30, places=49, heads=1, dim=16, dtype=torch.float16)
    if isinstance(case, NoiseCase):
        return dataclasses.replace(case, batch=2, side=8)
    return dataclasses.replace(case, batch=2, side=8, dtype=torch.float16)


#: One of each op and model.
SMALL = {(case.op, case.model): small(case) for case in reversed(shapes.cases()) if case.pixels == 1024}


@pytest.fixture
def on_cpu(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("kernels are interpreted where there is no GPU")
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "LEAST_ROUNDS", 1)


@pytest.fixture
def report(on_cpu):
    cases = []
    for case in SMALL.values():
        entry = gpu.gate(case)
        cases.append(entry | gpu.measure(case, CountingTimer(), 1, compiled=False, copy=1e12))
    facts = {"commit": "abc", "dirty": False, "gpu": "none", "architecture": "sm_0", "driver": "0", "python": "3"}
    facts |= {"versions": {"torch": torch.__version__}, "date": "today"}
    roofline = {"copy_bytes_per_second": 1e12, "matmul_flops_per_second": 1e15}
    return {"environment": facts, "roofline": roofline, "cases": cases, "targets": targets.judged(cases)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["gpu", "tune"])
def test_without_a_gpu_the_status_is_2(command, capsys):
    assert main([command]) == 2
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("case", SMALL.values(), ids=lambda case: f"{case.op} {case.model}")
def test_wrong_results_do_not_pass_the_gate(case):
    inputs = case.inputs("cpu")
    result = case.ours(inputs, impl="portable")
    wrong = tuple(part * 1.05 for part in result) if isinstance(result, tuple) else result * 1.05
    assert all(check.passed for check in case.check(inputs, result))
    assert not any(check.passed for check in case.check(inputs, wrong))


def test_results_that_are_not_numbers_fail():
    case = SMALL["contrast_attention", "SDXL"]
    inputs = case.inputs("cpu")
    out, maps = case.ours(inputs, impl="portable")
    assert not case.check(inputs, (out * float("nan"), maps))[0].passed


def test_providers_take_turns():
    order = list(rounds_of(["a", "b", "c"], 3))
    assert [name for i, name in order if i == 1] == ["b", "c", "a"]
    assert sorted(order) == [(i, name) for i in range(3) for name in "abc"]


def test_percentiles_are_ordered():
    assert percentiles([3.0]) == {"p20": 3.0, "p50": 3.0, "p80": 3.0}
    assert percentiles(list(range(11))) == {"p20": 2.0, "p50": 5.0, "p80": 8.0}


def test_ratios_name_the_fastest_map_free_attention():
    times = {
        name: Times([t], [t]) for name, t in {"ours": 2.0, "sdpa_flash": 4.0, "sdpa_cudnn": 1.0, "eager": 8.0}.items()
    }
    found = targets.ratios(times, {"ours": 10, "eager": 1000}, traffic=100, copy=100.0)
    assert found["over_map_free"] == 2.0
    assert found["eager_over_ours"] == 4.0
    assert found["memory_over_eager"] == 0.01
    assert found["share_of_copy"] == 0.5


def test_every_target_has_a_case_and_an_unmeasured_one_is_missed():
    every = [gpu.described(case) | {"traffic_bytes": 2**30} for case in shapes.cases()]
    rows = targets.judged(every)
    assert {(row["op"], row["target"]) for row in rows} == {(t.op, t.text) for t in targets.TARGETS}
    assert not any(row["met"] for row in rows)


def test_the_shapes_of_the_targets_are_the_core_cases():
    every = {case.name: case for case in shapes.cases()}
    assert len(every) == len(shapes.cases())
    for target in targets.TARGETS:
        core = [c for c in every.values() if c.core and c.op == target.op]
        assert any(target.applies(gpu.described(case) | {"traffic_bytes": 2**30}) for case in core)


def test_every_case_is_timed_and_rendered(report, tmp_path):
    for case in report["cases"]:
        assert case["correct"], case["checks"]
        assert {"ours", "eager", "portable"} <= set(case["providers"])
    results, page = tmp_path / "gpu.json", tmp_path / "docs" / "gpu.md"
    results.write_text(json.dumps(report))
    pytest.importorskip("matplotlib")
    assert render.main([str(results), "--out", str(page), "--images", str(tmp_path / "docs/images")]) == 0
    text = page.read_text()
    assert all(case["name"] in text for case in report["cases"])
    assert "images/gpu_blend_step.png" in text
    assert (tmp_path / "docs/images/gpu_blend_step.png").exists()


BLEND = {"op": "blend_step", "name": "x", "model": "FLUX", "traffic_bytes": 0}


def test_other_ops_are_kept_only_from_the_same_commit(tmp_path):
    out, facts = tmp_path / "gpu.json", {"commit": "a", "dirty": False, "gpu": "g", "driver": "d", "versions": {}}
    gpu.save(out, {"environment": facts}, [BLEND])
    assert len(gpu.kept(out, facts, ["inject_noise"])) == 1
    assert gpu.kept(out, facts, ["blend_step"]) == []
    assert gpu.kept(out, facts | {"commit": "b"}, ["inject_noise"]) == []
    gpu.save(out, {"environment": facts | {"commit": None}}, [BLEND])
    assert gpu.kept(out, facts | {"commit": None}, ["inject_noise"]) == []
    gpu.save(out, {"environment": facts | {"dirty": True}}, [BLEND])
    assert gpu.kept(out, facts | {"dirty": True}, ["inject_noise"]) == []  # twice changed need not be twice the same


def test_a_case_that_fails_is_red_and_the_others_go_on(on_cpu, capsys):
    case = next(iter(SMALL.values()))

    def broken(case):
        raise ZeroDivisionError("out of shared memory")

    entry = gpu.survived(case, broken)
    assert (entry["name"], entry["correct"], entry["checks"]) == (case.name, False, [])
    assert "ZeroDivisionError: out of shared memory" in capsys.readouterr().out
    green = gpu.survived(case, gpu.gate)
    assert green["correct"]
    red = gpu.survived(case, broken, found=green)
    assert (red["correct"], red["checks"]) == (False, green["checks"])
    for case in SMALL.values():  # what failed is missed, and no error where targets are judged
        assert not any(row["met"] for row in targets.judged([gpu.survived(case, broken)]))


def test_attention_without_maps_is_credited_with_its_own_work():
    for case in SMALL.values():
        if isinstance(case, AttentionCase):
            plain = case.plain_flops(case.inputs("cpu"))
            keys = case.keys - (sum(case.probes) if case.joint else 0)
            queries = case.queries - (sum(case.probes) if case.joint else 0)
            assert plain == 4 * case.batch * case.heads * queries * keys * case.dim
            assert plain < case.flops()
