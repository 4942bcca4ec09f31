"""Capture on the Triton kernels: by the interpreter on a CPU, for real on a GPU."""

import pytest
import torch

from lotts.capture import AttentionRecorder
from lotts.kernels import dispatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def record(unet, model, dtype=torch.float32):
    """The output of a step with both kinds of maps on, and those maps."""
    content = torch.zeros(1, 9, device=DEVICE)
    content[:, 2:5] = 1
    quality = [(noise(1, 9, 32, seed=seed).to(dtype), content) for seed in (1, 2)]
    recorder = AttentionRecorder(unet, content[..., None].expand(2, -1, 1), *quality, latent_size=(16, 16))
    recorder.record_cross = recorder.record_self = True
    recorder.columns = noise(2, 3, 16, 16, seed=4)
    inputs = noise(2, 4, 16, 16, seed=5).to(dtype), torch.tensor(5, device=DEVICE), noise(2, 9, 32, seed=6).to(dtype)
    with recorder:
        return model(*inputs).sample, recorder.cross_maps(), recorder.self_maps()


def zero_in_place(recorder):
    """Empty the sums without making new ones, since a CUDA graph goes on adding to those that it was captured with."""
    for layer in recorder._layers.values():
        for maps in layer.sums.values():
            maps.total.zero_()
            maps.forwards.zero_()


@torch.no_grad()
def test_sums_emptied_in_place_are_those_of_what_follows(shallow_unet):
    unet = shallow_unet.to(DEVICE)
    weight = torch.ones(2, 9, 1, device=DEVICE)
    latents, text = noise(2, 4, 16, 16, seed=5), noise(2, 9, 32, seed=6)
    recorder = AttentionRecorder(unet, weight, latent_size=(16, 16))
    recorder.record_cross = recorder.record_self = True
    recorder.columns = noise(2, 3, 16, 16, seed=4)
    with recorder:
        unet(latents, 900, text)
        zero_in_place(recorder)
        unet(latents, 5, text)
        emptied = recorder.cross_maps(), recorder.self_maps()
        recorder.reset()
        unet(latents, 5, text)
        for actual, alone in zip(emptied, (recorder.cross_maps(), recorder.self_maps()), strict=True):
            torch.testing.assert_close(actual, alone)


@pytest.fixture
def with_kernels(monkeypatch):
    """A switch: from then on the ops that are asked for no implementation take Triton's."""

    def switch():
        monkeypatch.setattr(dispatch, "default_implementation", lambda op, device=None, dtype=torch.float32: "triton")

    return switch


@torch.no_grad()
def test_the_kernels_record_what_the_portable_ops_record(tiny_unet, with_kernels, monkeypatch):
    unet = tiny_unet.to(DEVICE)
    monkeypatch.setattr(dispatch, "default_implementation", lambda op, device=None, dtype=torch.float32: "portable")
    expected = record(unet, unet)
    with_kernels()
    for actual, portable in zip(record(unet, unet), expected, strict=True):
        torch.testing.assert_close(actual, portable, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_step_on_the_kernels_compiles_as_one_graph(shallow_unet, with_kernels):
    unet = shallow_unet.to(DEVICE)
    with_kernels()
    expected = record(unet, unet)
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager" if DEVICE == "cpu" else "inductor")
    for actual, eager in zip(record(unet, compiled), expected, strict=True):
        torch.testing.assert_close(actual, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@torch.no_grad()
def test_a_recorded_step_replays_as_a_cuda_graph(tiny_unet):
    unet = tiny_unet.to(DEVICE)
    content = torch.ones(1, 9, device=DEVICE)
    quality = (noise(1, 9, 32, seed=1), content)
    recorder = AttentionRecorder(unet, content[..., None].expand(2, -1, 1), quality, quality, latent_size=(16, 16))
    recorder.record_cross = recorder.record_self = True
    recorder.columns = noise(2, 3, 16, 16, seed=4)
    latents, step, text = noise(2, 4, 16, 16, seed=5), torch.tensor(5, device=DEVICE), noise(2, 9, 32, seed=6)
    with recorder:
        for _ in range(3):
            unet(latents, step, text)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = unet(latents, step, text).sample
        latents.normal_()
        zero_in_place(recorder)
        graph.replay()
        replayed = out.clone(), recorder.cross_maps(), recorder.self_maps()
        recorder.reset()
        expected = unet(latents, step, text).sample, recorder.cross_maps(), recorder.self_maps()
    for actual, eager in zip(replayed, expected, strict=True):
        torch.testing.assert_close(actual, eager, rtol=1e-4, atol=1e-5)
