"""The benchmark of whole steps, on networks small enough to run here."""

import functools
import json

import pytest
import torch

from bench import pipelines
from bench.pipeline_models import MODELS, Model, _flux, _flux_inputs, _unet, _unet_inputs
from lotts.capture.joint import TEXT_IMAGE

TINY_UNET = Model(
    functools.partial(
        _unet,
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=32,
        norm_num_groups=8,
    ),
    functools.partial(_unet_inputs, width=32),
    text=77,
    width=32,
    rows=2,
    side=64,
    cell=8,
    dtype=torch.float16,
)
TINY_FLUX = Model(
    functools.partial(
        _flux,
        guidance_embeds=True,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        axes_dims_rope=(4, 6, 6),
    ),
    _flux_inputs,
    text=512,
    width=4096,
    rows=1,
    side=64,
    cell=16,
    dtype=torch.bfloat16,
    order=TEXT_IMAGE,
)


@pytest.mark.parametrize("model", [TINY_UNET, TINY_FLUX], ids=["unet", "flux"])
def test_captured_steps_are_the_stock_ones(model):
    with torch.no_grad():
        entry = pipelines.measured(model, model.side, rounds=2, device="cpu")
    assert set(entry["seconds"]) == {"stock", "idle", "cross", "self"}
    assert set(entry["output_difference"].values()) == {0.0}
    assert entry["over_stock"]["stock"] == 1.0
    assert entry["weights_mib"] > 0


@pytest.mark.parametrize("model", [TINY_UNET, TINY_FLUX], ids=["unet", "flux"])
def test_every_timed_step_is_captured(model):
    steps = pipelines.Steps(model, model.side, "cpu")
    with torch.no_grad():
        for kind in ("cross", "self"):
            with steps.ready(kind):
                for _ in range(3):
                    steps.calls()[kind]()
                layers = steps.recorder._layers.values()
                forwards = {
                    int(found.forwards)
                    for layer in layers
                    if (found := layer.sums.get(kind)) and found.total is not None
                }
            assert forwards == {4}, kind  # the one that makes it ready, and three more


def test_what_does_not_fit_is_listed_with_what_it_takes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pipelines, "free_bytes", lambda device: 30 << 20)
    monkeypatch.setitem(pipelines.MODELS, "sd2.1", TINY_UNET)
    out = tmp_path / "pipelines.json"
    assert (
        pipelines.main(["--device", "cpu", "--rounds", "1", "--only", "sd2.1", "--only", "flux", "--out", str(out)])
        == 0
    )
    report = json.loads(out.read_text())
    assert report["models"]["flux"]["skipped"].startswith("takes about 53 GiB, 0 GiB are free")
    assert report["models"]["sd2.1"]["pixels"] == 64
    assert "flux: takes about 53 GiB" in capsys.readouterr().out


def test_published_sizes():
    """Parameters in millions as published: 866, 2567, 2,200 or so, and 11,900."""
    counts = {}
    for name, model in MODELS.items():
        with torch.device("meta"):
            counts[name] = round(sum(p.numel() for p in model.build().parameters()) / 1e6)
    assert counts["sd2.1"] == 866
    assert counts["sdxl"] == 2567
    assert 2100 < counts["sd3.5-medium"] < 2300
    assert counts["flux"] == 11901
