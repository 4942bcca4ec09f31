"""Facts about the ledger's clock and gauge."""

import numpy as np
import pytest
import torch

from lotts.cost import STAGES, Cost
from lotts.meter import Meter
from lotts.pipeline import LoTTS
from lotts.repairs import repair
from lotts.search import run

STEPS = {"num_inference_steps": 4, "global_steps": 1, "guidance_scale": 2.0}


def brightness(images, prompts):
    return [float(image.mean()) for image in images]


def test_a_stage_gets_its_own_seconds_and_the_whole_all_of_them(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("lotts.meter.time.perf_counter", lambda: now[0])
    meter = Meter(Cost(), torch.device("cpu"))
    for name, seconds in (("denoise", 2.0), ("decode", 1.0), ("denoise", 4.0)):
        now[0] += 0.5  # between stages
        with meter.stage(name):
            now[0] += seconds
    cost = meter.read()
    assert list(cost.stages.items()) == [("denoise", 6.0), ("decode", 1.0)]
    assert cost.seconds == 8.5
    with pytest.raises(ValueError, match="expected a stage out of text"), meter.stage("lunch"):
        pass


def test_a_stage_that_fails_is_charged_too():
    meter = Meter(Cost(), torch.device("cpu"))
    with pytest.raises(RuntimeError), meter.stage("verify"):
        raise RuntimeError
    assert meter.cost.stages["verify"] >= 0


def test_the_peak_is_what_was_held_on_top():
    meter = Meter(Cost(), torch.device("cpu"))
    if meter.read().peak_bytes is None:
        pytest.skip("this system does not tell")
    held = np.ones(64 << 20, np.uint8)
    del held
    assert 60 << 20 <= meter.read().peak_bytes < 1 << 30
    assert Meter(Cost(), torch.device("cpu")).read().peak_bytes < 60 << 20  # what an earlier run held is no more


def test_what_was_freed_before_hides_nothing():
    """glibc maps a block by itself only while it is larger than any such block freed so far, up to 32 MiB."""
    np.ones(31 << 20, np.uint8)
    blocks = [np.ones(30 << 20, np.uint8) for _ in range(4)]
    above = [np.ones(8 << 20, np.uint8) for _ in range(4)]  # without these the top of the heap would shrink
    del blocks
    meter = Meter(Cost(), torch.device("cpu"))
    if meter.read().peak_bytes is None:
        pytest.skip("this system does not tell")
    held = np.ones(64 << 20, np.uint8)
    del held, above
    assert 60 << 20 <= meter.read().peak_bytes < 1 << 30


def test_every_way_to_run_is_clocked(tiny_pipe):
    seeded = torch.Generator().manual_seed(3)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    generated = LoTTS(tiny_pipe, brightness)("a red cat", 1, 1, generator=seeded, **STEPS)
    repaired = repair(
        tiny_pipe, picture, "a red cat", verifier=brightness, num_refinements=1, generator=seeded, **STEPS
    )
    searched = run(
        tiny_pipe, "a red cat", "lotts_chain", budget="samples=2", num_candidates=1, verifier=brightness,
        generator=seeded, **STEPS,
    )  # fmt: skip
    whole = {"text", "denoise", "localise", "refine", "decode", "verify"}
    assert set(generated.cost.stages) == set(searched.cost.stages) == whole
    assert set(repaired.cost.stages) == whole - {"denoise"} | {"encode"}
    for output in (generated, repaired, searched):
        assert sum(output.cost.stages.values()) <= output.cost.seconds
        assert list(output.cost.as_dict()["stages"]) == [name for name in STAGES if name in output.cost.stages]
        assert output.samples[-1].nfe == output.cost.nfe
    first, second = searched.samples
    assert (first.nfe, second.nfe) == (8, 12)
    assert 0 < first.seconds < second.seconds
