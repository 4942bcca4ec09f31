"""ImageReward's checkpoint becomes BLIP's classes, and the reward is the published one."""

import importlib.util
from dataclasses import replace

import pytest
import tiny_judges
import torch

from lotts.verifiers import imagereward
from lotts.verifiers.checkpoints import renamed
from lotts.verifiers.imagereward import ImageRewardConfig, ImageRewardModel, ImageRewardVerifier, convert

PROMPTS = ["a red cat", "a blue dog on a sofa. a red cats", "unknown words"]


def test_every_key_has_a_place():
    state = tiny_judges.imagereward_state()
    converted = convert(state)
    assert set(converted) == set(ImageRewardModel(tiny_judges.REWARD_SIZES).state_dict())
    assert len(state) - len(converted) == 5  # two projections with a bias each, and the range of positions


def test_the_published_model_has_620_tensors_out_of_625():
    with torch.device("meta"):
        full = ImageRewardModel(ImageRewardConfig())
    assert len(full.state_dict()) == 620
    back = [(ours, theirs) for theirs, ours in imagereward.NAMES]
    published = {renamed(key, back) for key in full.state_dict()}
    assert set(imagereward_state_names()) - published == {
        "blip.vision_proj.weight", "blip.vision_proj.bias", "blip.text_proj.weight", "blip.text_proj.bias",
        "blip.text_encoder.embeddings.position_ids",
    }  # fmt: skip
    assert full.text.config.vocab_size == 30524


def imagereward_state_names():
    """The 625 names of the published checkpoint, by its sizes."""
    sizes = replace(tiny_judges.REWARD_SIZES, vision_layers=24, text_layers=12)
    names = list(tiny_judges.imagereward_state(c=sizes))
    assert len(names) == 625
    return names


def test_norms_divide_as_the_published_ones_do():
    """Too little of a difference to show in a tiny model's reward, and enough to change a large one's last digits."""
    model = ImageRewardModel(tiny_judges.REWARD_SIZES)
    epsilons = {
        part: {module.eps for module in getattr(model, part).modules() if isinstance(module, torch.nn.LayerNorm)}
        for part in ("vision", "text")
    }
    assert epsilons == {"vision": {1e-6}, "text": {1e-12}}


def test_the_reward_is_the_published_one(verifier_of):
    verifier = verifier_of("imagereward")
    images = tiny_judges.pictures(3)
    tokens = torch.stack(list(verifier.encode_prompts(PROMPTS).values()))
    pixels = torch.stack([verifier.preprocess(image) for image in images])
    expected = tiny_judges.reward(tiny_judges.imagereward_state(), pixels, tokens[:, 0], tokens[:, 1])
    torch.testing.assert_close(verifier.score(images, PROMPTS).double(), expected, rtol=1e-4, atol=1e-5)


def test_tokens_are_padded_to_35_or_cut(verifier_of):
    verifier = verifier_of("imagereward")
    known = tiny_judges.PIECES.index
    (ids, mask), (cut, _) = verifier.encode_prompts(["A red CATS.", "cat " * 50]).values()
    assert ids[:7].tolist() == [known(p) for p in ("[CLS]", "a", "red", "cat", "##s", ".", "[SEP]")]
    assert ids[7:].tolist() == [known("[PAD]")] * 28
    assert mask.tolist() == [1] * 7 + [0] * 28
    assert cut.tolist() == [known("[CLS]"), *[known("cat")] * 33, known("[SEP]")]


def test_padding_does_not_count(verifier_of):
    verifier = verifier_of("imagereward")
    (tokens,) = verifier.encode_prompts(["a red cat"]).values()
    pixels = verifier.preprocess(tiny_judges.pictures(1)[0])[None]
    other = tokens.clone()
    other[0, 10:] = 7
    assert torch.equal(verifier.forward(pixels, [tokens]), verifier.forward(pixels, [other]))


@pytest.mark.skipif(importlib.util.find_spec("ImageReward") is None, reason="the package image-reward is not installed")
def test_the_package_gives_the_same_rewards():
    """Where the package can be imported at all: see bench/imagereward_parity.py for an environment in which it can."""
    pytest.importorskip("ImageReward", exc_type=ImportError)
    from bench.imagereward_parity import compare_in_process

    assert compare_in_process() == 0.0


def test_the_defaults_are_the_published_places():
    assert str(imagereward.CHECKPOINT) == "THUDM/ImageReward@5736be03b265"
    assert imagereward.LENGTH == 35
    assert isinstance(ImageRewardVerifier.scale, str)
