"""Facts about runs of pipelines whose weights are elsewhere between forwards."""

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import lotts
import lotts.search

STEPS = 4
CPU = torch.device("cpu")


def brightness(images, prompts):
    return [float(image.mean()) for image in images]


def run(pipe, **options):
    settings = {"num_candidates": 2, "num_refinements": 1, "num_inference_steps": STEPS, "global_steps": 1}
    settings |= {"noise_step": 1, "mask_ratio": 0.25, "output_type": "np"} | options
    return lotts.LoTTS(pipe, brightness)("a red cat", generator=torch.Generator().manual_seed(0), **settings)


def repair(pipe, **options):
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    settings = {"num_refinements": 1, "num_inference_steps": STEPS, "global_steps": 1} | options
    return lotts.repair(pipe, picture, "a red cat", verifier=brightness, **settings)


def search(pipe, **options):
    settings = {"budget": "samples=2", "num_inference_steps": STEPS} | options
    return lotts.search.run(pipe, "a red cat", "best_of_n", verifier=brightness, **settings)


@pytest.mark.parametrize("sparse", ["dense", "stale"])
@pytest.mark.parametrize("name", ["sd", "flux-dev"])
def test_offloaded_layer_by_layer_a_run_draws_the_same(pipe_of, name, sparse):
    pipe = pipe_of(name)
    expected = run(pipe, sparse=sparse, num_candidates=1)
    network = pipe.unet if name == "sd" else pipe.transformer
    accelerate.cpu_offload(network, execution_device=CPU)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    out = run(pipe, sparse=sparse, num_candidates=1)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert (out.cost.sparse_rows, out.cost.notes) == (expected.cost.sparse_rows, [])
    assert (out.cost.sparse_rows > 0) == (sparse == "stale")
    for ours, theirs in zip(out.samples, expected.samples, strict=True):
        np.testing.assert_allclose(ours.image, theirs.image, atol=1e-6)


@pytest.mark.parametrize("entry", [run, repair, search])
def test_a_run_ends_as_the_pipelines_calls_do(tiny_pipe, monkeypatch, entry):
    calls = []
    monkeypatch.setattr(tiny_pipe, "maybe_free_model_hooks", lambda: calls.append(1))
    entry(tiny_pipe)
    assert calls == [1]

    def interrupt(*args):
        raise KeyError("in a step")

    with pytest.raises(KeyError, match="in a step"):
        entry(tiny_pipe, callback_on_step_end=interrupt)
    assert calls == [1, 1]


def test_a_pipeline_without_hooks_to_free_runs_all_the_same(tiny_pipe, monkeypatch):
    monkeypatch.delattr(DiffusionPipeline, "maybe_free_model_hooks")
    assert len(run(tiny_pipe).samples) == 4


@pytest.mark.parametrize("name", ["sd", "flux-dev"])
def test_models_that_take_turns_on_the_device_leave_it(pipe_of, name):
    pipe = pipe_of(name)
    expected = run(pipe, batch_size=2)
    pipe.enable_model_cpu_offload(device="cpu")
    hooks = list(pipe._all_hooks)
    out = run(pipe, batch_size=2)
    assert len(pipe._all_hooks) == len(hooks)
    assert not any(hook in hooks for hook in pipe._all_hooks), "hooks are made anew where they were freed"
    for ours, theirs in zip(out.samples, expected.samples, strict=True):
        assert np.array_equal(ours.image, theirs.image)


def test_a_capture_outlives_the_hooks_that_a_call_frees(pipe_of):
    pipe = pipe_of("flux-dev")

    def maps():
        with lotts.capture(pipe, "a red cat") as found:
            for seed in (0, 1):
                pipe(
                    "a red cat",
                    num_inference_steps=2,
                    output_type="latent",
                    generator=torch.Generator().manual_seed(seed),
                    negative_prompt="the blue dog",
                    true_cfg_scale=2.0,
                )
        return torch.stack([found.original, found.positive])

    expected = maps()
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(maps(), expected)
    pipe.remove_all_hooks()
    assert "_old_forward" not in vars(pipe.transformer)
    with lotts.capture(pipe, "a red cat") as found:  # what the first capture replaced is gone
        pipe("a red cat", num_inference_steps=1, output_type="latent")
    assert found.original.min() > 0
