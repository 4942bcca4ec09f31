"""Facts about every learned verifier, on tiny random checkpoints in the published layouts."""

import gc
import itertools
import types

import numpy as np
import pytest
import tiny_judges
import torch
from transformers import CLIPConfig, CLIPModel

from lotts.verifiers import load, places, score, with_places
from lotts.verifiers.base import Verifier
from lotts.verifiers.hpsv2 import vit_h_14
from lotts.verifiers.imagereward import ImageRewardConfig, ImageRewardModel

NAMES = ["imagereward", "hpsv2", "pickscore", "clipscore", "aesthetic"]
HOLDING = [*NAMES, "shapes"]  # those with weights
PROMPTS = ["a red cat", "a blue dog on a sofa", "a red cat", "cats"]
SCENES = [
    "a red circle, a blue star",
    "a red circle above a blue ring",
    "a red circle, a blue star",
    "a red ring, a pink cross",
]


def prompts_for(name):
    return SCENES if name == "shapes" else PROMPTS


def forget(verifier):
    """Drop the features that a tower remembers."""
    if hasattr(verifier, "tower"):
        verifier.tower.seen.clear()


@pytest.mark.parametrize("name", HOLDING)
def test_batches_do_not_matter(verifier_of, name):
    images = tiny_judges.pictures(8)
    prompts = prompts_for(name) * 2
    whole = verifier_of(name).score(images, prompts, batch_size=8)
    assert whole.dtype == torch.float32
    assert whole.shape == (8,)
    assert len(set(whole.tolist())) > 4
    for size in (1, 3):
        again = verifier_of(name)
        forget(again)
        again.batch_size = size  # of prompts too
        torch.testing.assert_close(again.score(images, prompts), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HOLDING)
def test_fp32_is_the_default(verifier_of, name):
    modules = [value for value in vars(verifier_of(name)).values() if isinstance(value, torch.nn.Module)]
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", HOLDING)
def test_a_score_that_is_no_number_names_the_picture(verifier_of, name):
    verifier = verifier_of(name)
    images, prompts = tiny_judges.pictures(3), prompts_for(name)[:3]
    before = verifier.preprocess

    def spoilt(image):
        tensor = before(image).float()
        return tensor * float("nan") if image.size == images[1].size else tensor

    verifier.preprocess = spoilt
    with pytest.raises(ValueError, match=rf"{name} scored picture 1 \({prompts[1]!r}\) nan"):
        verifier.score(images, prompts)
    forget(verifier)


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
    assert len(set(full.tolist())) == 6
    assert float((half - full).abs().max()) < 0.05 * float(full.max() - full.min())
    if dtype == "fp16":  # bf16 keeps 8 bits: close ones may trade places
        assert torch.equal(half.argsort(), full.argsort())


@pytest.mark.parametrize("name", HOLDING)
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


def held(verifier):
    """Every tensor that can be reached from a verifier, whatever holds it, but for the features of pictures seen."""
    forget(verifier)
    seen, found, left = set(), [], [verifier.__dict__]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, (type, types.ModuleType, types.FunctionType)):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            found.append(thing)
        else:
            left += gc.get_referents(thing)
    return found


@pytest.mark.parametrize("name", HOLDING)
def test_no_weight_stays_behind(verifier_of, name):
    verifier = verifier_of(name)
    weights = sum(t.nbytes for t in held(verifier))
    assert weights > 10_000
    verifier.to("meta")  # a device of which nothing can come back, so that whatever stays shows
    assert {t.device.type for t in held(verifier)} == {"meta"}
    assert sum(t.nbytes for t in held(verifier)) == weights
    assert verifier.device.type == "meta"


@pytest.mark.parametrize("name", HOLDING)
def test_offloading_goes_to_the_cpu(verifier_of, name, monkeypatch):
    verifier = verifier_of(name).to("meta")
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, place: moved.append((module, torch.device(place).type)))
    assert verifier.offload() is verifier
    assert {place for _, place in moved} == {"cpu"}
    reached = {id(p) for module, _ in moved for p in (*module.parameters(), *module.buffers())}
    assert {id(t) for t in held(verifier)} <= reached


def allocated(call):
    """The most bytes that ``call`` had allocated on the CPU at a time, and those that it leaves allocated."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    running = list(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda event: event.start_ns())))
    assert torch.is_tensor(result)
    return max(running), running[-1]


@pytest.mark.parametrize("name", HOLDING)
def test_memory_goes_with_the_batch_and_not_with_the_pictures(verifier_of, name):
    verifier = verifier_of(name)
    images, prompts = [image.resize((60, 50)) for image in tiny_judges.pictures(9)], prompts_for(name)[:1] * 9
    cache = verifier.encode_prompts(prompts)

    def peak(count, batch_size):
        forget(verifier)
        most, left = allocated(lambda: verifier.score(images[:count], prompts[:count], cache, batch_size))
        assert left < 4_000 * count  # scores, and the features that a tower remembers
        return most

    three = peak(3, 3)
    assert peak(9, 3) < 1.2 * three
    if name != "shapes":  # whose score is one picture at a time always
        assert peak(9, 9) > 1.8 * three


@pytest.mark.parametrize(("build", "gibibytes"), [
    (lambda: ImageRewardModel(ImageRewardConfig()), 1.66),
    (lambda: CLIPModel(vit_h_14()), 3.67),
    (lambda: CLIPModel(vit_l_14()), 1.59),
])  # fmt: skip
def test_the_published_sizes_need_what_the_documentation_says(build, gibibytes):
    with torch.device("meta"):
        weights = build().state_dict().values()
    assert sum(t.nbytes for t in weights if t.is_floating_point()) / 2**30 == pytest.approx(gibibytes, abs=0.006)


def vit_l_14():
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)


@pytest.mark.gpu
@pytest.mark.parametrize("name", HOLDING)
def test_the_memory_of_a_gpu_comes_back(verifier_of, name):
    verifier, prompts = verifier_of(name), prompts_for(name)
    images = tiny_judges.pictures(4)
    at_home = verifier.score(images, prompts)
    with verifier.on("cuda"):
        verifier.score(images, prompts)  # libraries take what they keep for themselves
    forget(verifier)
    before = torch.cuda.memory_allocated()
    with verifier.on("cuda"):
        assert torch.cuda.memory_allocated() > before
        abroad = verifier.score(images, prompts)
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


@pytest.mark.parametrize("name", [*HOLDING, "vlm"])
def test_what_it_says_of_itself(verifier_of, name, monkeypatch):
    monkeypatch.setenv("LOTTS_VLM_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("LOTTS_VLM_MODEL", "none")
    verifier = load(name) if name == "vlm" else verifier_of(name)
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
    with pytest.raises(ValueError, match="one prompt for each"):
        verifier.score_tensors(tensors, "cat")
    with pytest.raises(ValueError, match=r"images in \[0, 1\]"):
        verifier.score_tensors(tensors * 255, ["a red cat"] * 3)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clipscore", "clipscore"),
        ("clipscore=w", "clipscore=/a/w"),
        (
            "zscore(imagereward:2, clipscore=openai,hpsv2=openai/clip)",
            "zscore(imagereward:2, clipscore=/a/openai,hpsv2=openai/clip)",
        ),
        ("clipscore=odd", "clipscore=odd"),
    ],
)
def test_places_are_told_anew_member_by_member(text, told):
    there = {"w": "/a/w", "openai": "/a/openai", "odd": "/a, b/odd"}
    found = with_places(text, lambda place: there.get(place, place))
    assert found == told
    assert [name for name, _ in places(found)] == [name for name, _ in places(text)]
