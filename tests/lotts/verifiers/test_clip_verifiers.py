"""open_clip's weights under transformers' names, and the scales of the verifiers that compare picture and prompt."""

import json
import shutil

import numpy as np
import pytest
import tiny_judges
import torch
import torch.nn.functional as F
from PIL import Image

from lotts.verifiers import load
from lotts.verifiers.clip import from_open_clip
from lotts.verifiers.hpsv2 import Hpsv2Verifier, clean, vit_h_14
from lotts.verifiers.pickscore import PickScoreVerifier

PROMPTS = ["a red cat", "a blue dog on a sofa", "a dog"]


def test_every_open_clip_key_has_a_place(clip_tokenizer):
    from transformers import CLIPModel

    state = tiny_judges.open_clip_state(len(clip_tokenizer))
    converted = from_open_clip(state | {"attn_mask": torch.zeros(40, 40)})
    model = CLIPModel(tiny_judges.clip_config(clip_tokenizer))
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize(("release", "seed"), [("2.0", 0), ("2.1", 1)])
def test_hpsv2_is_open_clips_cosine(verifier_of, clip_tokenizer, release, seed):
    verifier = verifier_of("hpsv2", release=release)
    images = tiny_judges.pictures(3)
    ids = torch.zeros(3, 40, dtype=torch.long)  # open_clip pads with zeros
    for row, prompt in enumerate(PROMPTS):
        tokens = clip_tokenizer(prompt).input_ids
        ids[row, : len(tokens)] = torch.tensor(tokens)
    pixels = torch.stack([verifier.preprocess(image) for image in images])
    expected = tiny_judges.clip_cosine(tiny_judges.open_clip_state(len(clip_tokenizer), seed), pixels, ids)
    torch.testing.assert_close(verifier.score(images, PROMPTS).double(), expected, rtol=1e-4, atol=1e-6)
    assert release in verifier.version


def test_hpsv2_reads_html_entities_as_open_clip_does(verifier_of):
    images = tiny_judges.pictures(2)
    verifier = verifier_of("hpsv2")
    written, meant = verifier.score(images[:1] * 2, [" cats &amp;amp; dogs ", "cats & dogs"])
    assert written == meant
    assert verifier.score(images[:1], ["cats &amp; dog"]) != meant


def test_hpsv2_cleans_prompts_as_open_clip_does():
    """Expected: what ftfy 6.3.1, html.unescape twice and strip give, as open_clip 3.3.0 applies them."""
    cleaned = {
        "“quoted” — ‘it’s’ dash…": "\"quoted\" — 'it's' dash…",
        "ﬁne ﬂower ﬅ": "fine flower ſt",
        "ＦＵＬＬ　width！": "FULL width!",
        "  &lt;b&gt; cats &amp;amp; dogs\n": "<b> cats & dogs",
        "aʼb „c‟ ‚d‛": "a'b \"c\" 'd'",
        "plain text, untouched": "plain text, untouched",
    }
    assert {text: clean(text) for text in cleaned} == cleaned


def test_hpsv2_sees_the_edges_that_others_crop(verifier_of):
    array = np.asarray(tiny_judges.pictures(1)[0].resize((90, 30)))
    changed = array.copy()
    changed[:, :8] = 255 - changed[:, :8]
    pair = [Image.fromarray(array), Image.fromarray(changed)]
    for name, sees in (("hpsv2", True), ("pickscore", False), ("imagereward", False)):
        one, other = verifier_of(name).score(pair, ["a red cat"] * 2).tolist()
        assert (one != other) is sees


def test_hpsv2_has_two_releases():
    with pytest.raises(ValueError, match=r"release to be one of 2\.0, 2\.1, got '3'"):
        Hpsv2Verifier(release="3")


def test_vit_h_14_is_open_clips():
    config = vit_h_14()
    assert config.vision_config.hidden_act == config.text_config.hidden_act == "gelu"
    assert (config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers) == (32, 24)
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 256


@pytest.fixture
def cosine(clip_folder, clip_tokenizer):
    """A function: the cosine of pictures and prompts by transformers' own processor and whole model."""
    from transformers import CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(clip_folder).double().eval()
    side = tiny_judges.SIDE
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    @torch.no_grad()
    def of(images, prompts):
        pixels = processor(images, return_tensors="pt").pixel_values.double()
        tokens = clip_tokenizer(prompts, padding=True, return_tensors="pt")
        output = model(pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return F.cosine_similarity(output.image_embeds, output.text_embeds), float(model.logit_scale.exp())

    return of


def test_pickscore_is_the_scaled_cosine(verifier_of, cosine):
    images = tiny_judges.pictures(3)
    expected, scale = cosine(images, PROMPTS)
    got = verifier_of("pickscore").score(images, PROMPTS).double()
    torch.testing.assert_close(got, scale * expected, rtol=1e-4, atol=1e-4)


def test_clipscore_is_a_hundred_cosines_and_never_negative(verifier_of, cosine):
    images = tiny_judges.pictures(8)
    prompts = ["a red cat", "dog", "sofa", "blue"] * 2
    expected, _ = cosine(images, prompts)
    assert (expected < 0).any()
    assert (expected > 0).any()
    got = verifier_of("clipscore").score(images, prompts).double()
    torch.testing.assert_close(got, 100 * expected.clamp(min=0), rtol=1e-4, atol=1e-4)


def test_long_prompts_are_cut(verifier_of):
    images = tiny_judges.pictures(1)
    for name in ("hpsv2", "pickscore", "clipscore"):
        verifier = verifier_of(name)
        words = "red cat " * 40
        assert torch.equal(verifier.score(images, [words]), verifier.score(images, [words + "blue dog"]))


def test_aesthetic_is_the_head_on_the_normalised_feature(verifier_of, clip_folder):
    from transformers import CLIPModel

    verifier = verifier_of("aesthetic")
    images = tiny_judges.pictures(3)
    pixels = torch.stack([verifier.preprocess(image) for image in images]).double()
    with torch.no_grad():
        feature = CLIPModel.from_pretrained(clip_folder).double().eval().get_image_features(pixel_values=pixels)
    x = F.normalize(feature.pooler_output, dim=-1)
    state = tiny_judges.head_state()
    for index in (0, 2, 4, 6, 7):
        x = F.linear(x, state[f"layers.{index}.weight"].double(), state[f"layers.{index}.bias"].double())
    got = verifier.score(images, PROMPTS).double()
    torch.testing.assert_close(got, x[:, 0], rtol=1e-4, atol=1e-4)
    assert torch.equal(verifier.score(images, PROMPTS[::-1]).double(), got)


def test_clipscore_and_aesthetic_encode_a_picture_once(verifier_of):
    clipscore, aesthetic = verifier_of("clipscore"), verifier_of("aesthetic")
    assert clipscore.tower is aesthetic.tower
    assert verifier_of("clipscore", dtype="bf16").tower is not clipscore.tower
    calls = []
    tower = clipscore.tower
    inner = tower.model.get_image_features
    tower.model.get_image_features = lambda pixel_values: (
        calls.append(len(pixel_values)) or inner(pixel_values=pixel_values)
    )
    try:
        tower.seen.clear()
        images = [image.resize((40, 40)) for image in tiny_judges.pictures(3)]
        clipscore.score(images, PROMPTS)
        aesthetic.score(images, PROMPTS)
        aesthetic.score(images[:1] + tiny_judges.pictures(1, seed=9), PROMPTS[:2])
    finally:
        del tower.model.get_image_features
    assert calls == [3, 1]


def test_a_tower_remembers_no_more_than_it_should(verifier_of, monkeypatch):
    monkeypatch.setattr("lotts.verifiers.clip.REMEMBERED", 2)
    verifier = verifier_of("clipscore")
    verifier.tower.seen.clear()
    verifier.score(tiny_judges.pictures(5), ["a cat"] * 5)
    assert len(verifier.tower.seen) == 2


def test_a_name_takes_a_folder(clip_folder, verifier_of):
    images = tiny_judges.pictures(2)
    named = load(f"clipscore={clip_folder}")
    assert torch.equal(named.score(images, PROMPTS[:2]), verifier_of("clipscore").score(images, PROMPTS[:2]))


def test_the_first_release_has_a_name(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "lotts.verifiers.hpsv2.Hpsv2Verifier", lambda location, release: asked.append((location, release))
    )
    load("hpsv2.0=folder")
    assert asked == [("folder", "2.0")]


def test_old_configurations_name_another_end_token(verifier_of, clip_folder, tmp_path):
    """Those of the published weights say 2, which no tokenizer of theirs uses: the highest token is meant."""
    shutil.copytree(clip_folder, tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] != 2
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    images = tiny_judges.pictures(3)
    expected = verifier_of("pickscore").score(images, PROMPTS)
    assert torch.equal(PickScoreVerifier(tmp_path / "old").score(images, PROMPTS), expected)
