"""The CPU runner on tiny shapes, with a peer that only answers."""

import sys

import pytest
import torch

from bench import cpu
from bench.__main__ import main
from bench.record import write_atomically, write_json
from bench.unet_step import Sample, sampled

PEER = """
import json, sys
print(json.dumps({"kinds": ["peer stock", "peer cross"], "versions": {"torch": "0"}}), flush=True)
for line in sys.stdin:
    seconds = {"peer stock": 1.0, "peer cross": 3.0}[line.strip()]
    print(json.dumps({"seconds": seconds, "cpu_seconds": 1.0, "peak_bytes": 1, "output_difference": 0.0}), flush=True)
"""


@pytest.fixture
def tiny_unet(monkeypatch):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=cpu.EMBEDDING,
        norm_num_groups=8,
    ).eval()
    inputs = (unet, torch.randn(2, 4, 16, 16), torch.randn(2, cpu.TOKENS, cpu.EMBEDDING))
    monkeypatch.setattr(cpu, "unet_and_inputs", lambda small, latent: inputs)


@torch.no_grad()
def test_capture_leaves_the_output_and_a_peer_takes_turns(tiny_unet, tmp_path, monkeypatch):
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "cpu.py"))
    found = cpu.captured_step(2, small=True, latent=16, python=sys.executable)
    assert set(found["providers"]) == {"stock", "idle", "cross", "self", "peer stock", "peer cross"}
    assert set(found["output_difference"]) == {"idle", "cross", "self"}
    assert max(found["output_difference"].values()) <= 1e-5
    assert found["peer_over_peer_stock"] == {"peer cross": 3.0}
    assert set(found["peer_over_ours"]) == {"peer cross"}


def test_a_peer_that_cannot_start_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "peer.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "cpu.py"))
    with pytest.raises(RuntimeError, match="status 3"), cpu.peer_steps(sys.executable, True, 16):
        pass


def test_the_op_is_timed_beside_attention_and_eager():
    entry = cpu.self_attention(heads=2, tokens=64, rounds=2)
    assert set(entry["providers"]) == {"sdpa", "ours", "eager"}
    assert entry["self_attention_over_sdpa"] > 0
    assert entry["eager_over_ours"] > 0


def test_ratios_are_medians_of_rounds():
    samples = {
        name: [Sample(seconds, seconds, 0) for seconds in values]
        for name, values in {"stock": [1.0, 10.0, 1.0], "cross": [2.0, 20.0, 9.0]}.items()
    }
    assert cpu.ratio(samples, "cross", "stock") == 2.0
    assert cpu.figures(samples, "stock")["cross"]["time_ratio"] == 2.0


def test_the_run_mean_weighs_kinds_by_their_steps():
    # Of 50 steps, 25 record cross-attention and 10 self-attention.
    assert cpu.run_mean({"idle": 1.0, "cross": 1.2, "self": 1.5}) == pytest.approx((15 + 25 * 1.2 + 10 * 1.5) / 50)


def test_targets_are_judged():
    step = {"captured_step_over_stock": {"cross": 1.05, "self": 1.2, "run mean": 1.1}}
    op = {"5 heads": {"self_attention_over_sdpa": 1.3, "eager_over_ours": 2.4}}
    met = {row["target"]: row["met"] for row in cpu.judged({"self_attention": op, "step": step})}
    assert met == {
        "self_attention_over_sdpa, 5 heads": True,
        "eager_over_ours, 5 heads": False,
        "captured_step_over_stock, cross": True,
        "captured_step_over_stock, self": False,
        "captured_step_over_stock, run mean": True,
    }


def test_memory_is_what_a_call_holds_above_before():
    _, sample = sampled(lambda: torch.ones(16 << 20).sum())
    assert 60e6 < sample.peak_bytes < 200e6


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_help_lists_the_commands_and_an_unknown_one_is_refused(capsys):
    assert main(["--help"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in ("resources", "gpu", "render", "tune", "cpu"))
    assert main(["fly"]) == 2
    assert "expected one of" in capsys.readouterr().err
