"""Facts about whole refinements, runs, repairs and searches with sparse steps, on tiny pipelines."""

import json

import pytest
import torch

import lotts
import lotts.search
from lotts.backbones import backbone_for
from lotts.cost import Cost
from lotts.resample import denoise, refine
from lotts.resample_config import ResampleConfig

STEPS = 8


def brightness(images, prompts):
    return [float(image.mean()) for image in images]


def run(pipe, **options):
    settings = {"num_candidates": 2, "num_refinements": 1, "num_inference_steps": STEPS}
    settings |= {"mask_ratio": 0.25, "noise_step": 2} | options
    return lotts.LoTTS(pipe, brightness)(
        "a red cat", generator=torch.Generator().manual_seed(0), guidance_scale=3.0, **settings
    )


def refined(backbone, base, text, mask, **config):
    cost = Cost()
    with torch.no_grad():
        (out,) = refine(backbone, text, [base], mask, [0], ResampleConfig(noise_step=2, **config), STEPS, cost=cost)
    return out, cost


@pytest.fixture
def ready(pipe_of):
    def make(name):
        backbone = backbone_for(pipe_of(name))
        size = backbone.latent_size(*backbone.default_size)
        text = backbone.encode_prompt("a red cat", "", 3.0)
        with torch.no_grad():
            (base,) = denoise(backbone, text, [3], size, STEPS)
        mask = torch.zeros(1, *size, dtype=torch.bool)
        mask[:, 2:8, 2:8] = True
        return backbone, base, text, mask

    return make


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3.5", "flux-dev"])
def test_refreshed_every_step_a_refinement_is_the_dense_one(ready, name):
    backbone, base, text, mask = ready(name)
    dense, _ = refined(backbone, base, text, mask)
    out, cost = refined(backbone, base, text, mask, sparse="stale", refresh_every=1)
    assert cost.sparse_rows == 0
    assert float((out.result - dense.result).abs().max() / dense.result.abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["sd", "sd3.5", "flux-dev"])
@pytest.mark.parametrize("background", ["replay", "fixed"])
def test_outside_the_mask_latents_are_the_background_bit_for_bit(ready, name, background):
    backbone, base, text, mask = ready(name)
    dense, _ = refined(backbone, base, text, mask, background=background)
    out, cost = refined(backbone, base, text, mask, background=background, sparse="stale")
    assert cost.sparse_rows > 0
    last = STEPS - 2
    for step in range(2, last + 1):
        assert torch.equal(out.latents[step][:, ~mask[0]], dense.latents[step][:, ~mask[0]])
    assert not torch.equal(out.latents[last][:, mask[0]], dense.latents[last][:, mask[0]])


def test_a_whole_and_an_empty_mask_are_what_they_are_without(ready):
    backbone, base, text, mask = ready("sd")
    for masks in (torch.ones_like(mask), torch.zeros_like(mask)):
        dense, _ = refined(backbone, base, text, masks)
        out, cost = refined(backbone, base, text, masks, sparse="stale")
        assert torch.equal(out.result, dense.result)
        assert cost.sparse_rows == 0


def test_before_a_sampler_with_a_memory_takes_the_whole_picture_a_step_is_dense(ready):
    from diffusers import DPMSolverMultistepScheduler

    backbone, base, text, mask = ready("sd")
    backbone.pipe.scheduler = DPMSolverMultistepScheduler.from_config(backbone.scheduler.config)
    _, cost = refined(backbone, base, text, mask, sparse="stale", refresh_every=9)
    # Of four masked steps the first and the last are dense.
    assert cost.sparse_rows == 2 * 2
    with pytest.warns(UserWarning, match="the sampler keeps predictions or clamps them"):
        out = run(backbone.pipe, sparse="trace")
    assert out.cost.sparse_rows == 2 * 2
    assert len(out.cost.notes) == 1


@pytest.mark.parametrize("mode", ["stale", "trace"])
def test_a_run_says_what_it_spared(tiny_pipe, mode):
    dense, out = run(tiny_pipe), run(tiny_pipe, sparse=mode)
    assert out.cost.nfe == dense.cost.nfe
    assert out.cost.tokens < dense.cost.tokens
    # Two refinements of four masked steps each, two rows a step; stale makes two of the steps dense.
    assert out.cost.sparse_rows == 2 * 2 * (4 if mode == "trace" else 2)
    assert out.cost.stored_bytes > 0
    assert torch.equal(torch.tensor(out.samples[0].pixels), torch.tensor(dense.samples[0].pixels))
    assert [note.split(":")[0] for note in out.cost.notes] == (["trace"] if mode == "trace" else [])
    assert json.loads(json.dumps(out.cost.as_dict()))["sparse_rows"] == out.cost.sparse_rows


@pytest.mark.parametrize("layers", [["up_blocks"], None])
@pytest.mark.parametrize("contrast", ["probes", "batch"])
def test_a_run_is_traced_whatever_its_maps_are_made_of(tiny_pipe, layers, contrast):
    source = lotts.AttentionSource(lotts.LocalizeConfig(layers=layers), contrast=contrast)
    settings = {"num_candidates": 1, "num_refinements": 1, "num_inference_steps": STEPS, "mask_ratio": 0.25}
    settings |= {"guidance_scale": 3.0, "noise_step": 2}
    dense, traced = (
        lotts.LoTTS(tiny_pipe, brightness, source=source)(
            "a red cat", generator=torch.Generator().manual_seed(0), sparse=sparse, **settings
        )
        for sparse in ("dense", "trace")
    )
    assert traced.cost.sparse_rows == 2 * 4
    assert torch.equal(traced.samples[0].heatmaps["P"], dense.samples[0].heatmaps["P"])


def test_a_manifest_carries_it_and_replays(tiny_pipe, tmp_path):
    out = run(tiny_pipe, sparse="stale", refresh_every=3, sparse_offload=True)
    assert out.settings["sparse"] == "stale"
    folder = out.save(tmp_path / "run")
    replayed = lotts.replay(folder, pipe=tiny_pipe, verifier=brightness)
    assert replayed.exact
    assert replayed.output.cost.sparse_rows == out.cost.sparse_rows > 0


def test_the_command_line_takes_it(tmp_path, capsys):
    from lotts.cli import main

    command = [
        "generate",
        "a red circle left of a blue star",
        "--candidates",
        "1",
        "--refinements",
        "1",
        "--steps",
        "6",
    ]
    command += ["--noise-step", "1", "--mask-ratio", "0.2", "--sparse", "stale", "--refresh-every", "2"]
    assert main([*command, "--sparse-offload", "--out", str(tmp_path / "run")]) == 0
    written = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (written["settings"]["sparse"], written["settings"]["refresh_every"]) == ("stale", 2)
    assert written["settings"]["sparse_offload"] is True
    # Masked steps 1, 2, 3, of which 1 and 3 are dense; two rows.
    assert written["cost"]["sparse_rows"] == 2
    assert main([*command[:-2], "--sparse", "sometimes"]) == 2
    assert "dense, stale, trace" in capsys.readouterr().err


def test_a_repair_may_be_stale_but_not_traced(tiny_pipe):
    image = run(tiny_pipe, num_refinements=0).image
    options = {"verifier": brightness, "num_inference_steps": STEPS, "num_refinements": 1}
    options |= {"mask_ratio": 0.25, "noise_step": 2}
    assert lotts.repair(tiny_pipe, image, "a red cat", sparse="stale", **options).cost.sparse_rows > 0
    with pytest.raises(ValueError, match="no recorded run to trace"):
        lotts.repair(tiny_pipe, image, "a red cat", sparse="trace", **options)


@pytest.mark.parametrize("method", ["lotts", "lotts_chain"])
def test_a_search_may_be_sparse_and_inherits_maps(tiny_pipe, method):
    options = {"budget": "samples=4", "verifier": brightness, "num_inference_steps": STEPS}
    options |= {"num_candidates": 2, "mask_ratio": 0.25, "noise_step": 2}
    out = lotts.search.run(tiny_pipe, "a red cat", method, sparse="stale", **options)
    assert out.cost.sparse_rows > 0
    for sample in out.samples:
        if sample.parent is not None and method == "lotts_chain":  # plain LoTTS refines no refinement
            assert torch.equal(sample.heatmaps["P"], out.samples[sample.parent].heatmaps["P"])
    with pytest.raises(ValueError, match="not traced"):
        lotts.search.run(tiny_pipe, "a red cat", method, sparse="trace", **options)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sparse": "half"}, "dense, stale, trace"),
        ({"sparse": "trace", "background": "fixed"}, "background 'replay' with sparse 'trace'"),
        ({"sparse": "stale", "refresh_every": 0}, "refresh_every"),
        ({"refresh_every": 2}, "sparse='stale' alone"),
        ({"sparse": "stale", "sparse_offload": 1}, "sparse_offload"),
        ({"sparse_offload": True}, "expected sparse_offload with sparse='stale' or 'trace'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        ResampleConfig(noise_step=2, **fields)
