"""Facts about a comparison on several processes, where ray is installed."""

import json
import os
import signal
import threading
import time

import pytest

from lotts.compare import Study, Variant, compare
from lotts.prompts import load_prompts

ray = pytest.importorskip("ray")


def study():
    return Study(
        load_prompts("shapes:3@2-3"),
        [Variant.parse("best_of_n"), Variant.parse("lotts_chain(num_candidates=1, global_steps=1)")],
        ["samples=2"],
        2,
        "shapes-sd",
        "shapes",
        ["checker"],
        settings={"num_inference_steps": 3, "guidance_scale": 3.0},
        device="cpu",
        threads=1,
    )


def kill_the_first_worker(out, killed):
    """Kill the process that made the first item, which by then is at another."""
    until = time.monotonic() + 300
    while not killed and time.monotonic() < until:
        for path in out.glob("items/*/*/item.json"):
            killed.append(json.loads(path.read_text())["timings"]["process"])
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.01)


def test_a_lost_worker_loses_nothing(tmp_path):
    killed = []
    killer = threading.Thread(target=kill_the_first_worker, args=(tmp_path / "two", killed))
    killer.start()
    outcome = compare(study(), tmp_path / "two", workers=2)
    killer.join()
    assert (outcome.made, outcome.failed) == (12, 0)
    compare(study(), tmp_path / "one")
    for file in ("table.csv", "curves.csv"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    makers = {json.loads(p.read_text())["timings"]["process"] for p in (tmp_path / "two").glob("items/*/*/item.json")}
    assert killed[0] in makers
    assert len(makers) >= 2
    assert os.getpid() not in makers
