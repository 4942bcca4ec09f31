"""Facts about every learned verifier, on tiny random checkpoints in the published layouts."""

import numpy as np
import pytest
import tiny_judges
import torch

from lotts.verifiers import score
from lotts.verifiers.base import Verifier

NAMES = ["imagereward", "hpsv2", "pickscore", "clipscore", "aesthetic"]
PROMPTS = ["a red cat", "a blue dog on a sofa", "a red cat", "cats"]


@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_matter(verifier_of, name):
    images = tiny_judges.pictures(8)
    prompts = PROMPTS * 2
    whole = verifier_of(name).score(images, prompts, batch_size=8)
    assert whole.dtype == torch.float32
    assert whole.shape == (8,)
    assert len(set(whole.tolist())) > 4
    for size in (1, 3):
        again = verifier_of(name)
        if name not in ("imagereward", "hpsv2"):
            again.tower.seen.clear()
        torch.testing.assert_close(again.score(images, prompts, batch_size=size), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_ranks_alike(verifier_of, name, dtype):
    images = tiny_judges.pictures(6)
    one, other = verifier_of(name), verifier_of(name, dtype=dtype)
    if name == "clipscore":  # the random tower's cosines are below 0 as often as above, where all scores are alike
        one.scaled = other.scaled = lambda cosine: 100 * cosine
    full, half = (verifier.score(images, ["a red cat"] * 6) for verifier in (one, other))
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    spread = float(full.max() - full.min())
    assert float((half - full).abs().max()) < 0.05 * spread
    apart = (full[:, None] - full).abs() > 0.1 * spread
    assert apart.sum() > 10
    assert torch.equal((half[:, None] > half)[apart], (full[:, None] > full)[apart])


@pytest.mark.parametrize("name", NAMES)
def test_it_moves_in_and_out(verifier_of, name, monkeypatch):
    verifier = verifier_of(name)
    moves = []

    def record(module, place):
        moves.append((type(module).__name__, str(place)))
        return module

    def fail_inside():
        with verifier.on("meta") as inside:
            assert inside is verifier
            raise RuntimeError("stop")

    monkeypatch.setattr(torch.nn.Module, "to", record)
    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    there, back = moves[: len(moves) // 2], moves[len(moves) // 2 :]
    assert there
    assert [(module, "cpu") for module, _ in there] == back
    assert {place for _, place in there} == {"meta"}


@pytest.mark.parametrize("name", NAMES)
def test_no_weight_stays_behind(verifier_of, name):
    verifier = verifier_of(name)
    modules = [value for value in vars(verifier).values() if isinstance(value, torch.nn.Module)]
    verifier.to("meta")  # a device of which nothing can come back, so that whatever stays shows
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    assert tensors
    assert {t.device.type for t in tensors} == {"meta"}
    assert verifier.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_the_memory_of_a_gpu_comes_back(verifier_of, name):
    verifier = verifier_of(name)
    images = tiny_judges.pictures(4)
    at_home = verifier.score(images, PROMPTS)
    before = torch.cuda.memory_allocated()
    with verifier.on("cuda"):
        assert torch.cuda.memory_allocated() > before
        abroad = verifier.score(images, PROMPTS)
    assert torch.cuda.memory_allocated() == before
    torch.testing.assert_close(abroad, at_home, rtol=1e-3, atol=1e-3)
    assert verifier.device.type == "cpu"


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_encoded_once(verifier_of, name, monkeypatch):
    verifier = verifier_of(name)
    asked = []
    encode = type(verifier).encode_prompts
    monkeypatch.setattr(type(verifier), "encode_prompts", lambda self, p: asked.append(list(p)) or encode(self, p))
    images, cache = tiny_judges.pictures(4), {}
    first = verifier.score(images, PROMPTS, cache)
    assert torch.equal(verifier.score(images, PROMPTS, cache), first)
    assert asked == [list(dict.fromkeys(PROMPTS))]
    assert set(cache) == set(PROMPTS)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_score_as_the_pictures_they_hold(verifier_of, name):
    images = tiny_judges.pictures(3)
    arrays = [np.asarray(image).astype(np.float32) / 255 for image in images]
    verifier = verifier_of(name)
    assert verifier(arrays, ["a red cat"] * 3) == verifier(images, ["a red cat"] * 3)
    assert score(verifier, arrays, ["a red cat"] * 3, "cpu") == verifier(images, ["a red cat"] * 3)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_says_of_itself(verifier_of, name):
    verifier = verifier_of(name)
    assert isinstance(verifier, Verifier)
    assert verifier.name == name
    assert verifier.version
    assert verifier.scale
    assert verifier.higher_is_better is True


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_tensors_take_their_own_path_and_only_when_asked(verifier_of, name):
    verifier = verifier_of(name)
    images = [image.resize((48, 40)) for image in tiny_judges.pictures(3)]
    tensors = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
    pixels = verifier.pixels.of_tensors(tensors)
    cache = verifier.encode_prompts(["a red cat"])
    expected = verifier.forward(pixels, [cache["a red cat"]] * 3)
    assert torch.equal(verifier.score_tensors(tensors, ["a red cat"] * 3), expected)
    assert not torch.equal(pixels, torch.stack([verifier.preprocess(image) for image in images]))
    with pytest.raises(ValueError, match="as picture 0, got Tensor"):
        verifier.score(tensors, ["a red cat"] * 3)
    with pytest.raises(ValueError, match=r"expected float images \[N, 3, H, W\]"):
        verifier.score_tensors(tensors.byte(), ["a red cat"] * 3)
