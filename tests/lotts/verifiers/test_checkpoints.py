"""Weights are found where they are, and whoever has the wrong ones is told which file, which keys and how to get it."""

import shutil

import pytest
import tiny_judges
import torch
from safetensors.torch import save_file

from lotts.verifiers import imagereward
from lotts.verifiers.aesthetic import AestheticVerifier
from lotts.verifiers.checkpoints import Checkpoint, renamed
from lotts.verifiers.clipscore import ClipScoreVerifier
from lotts.verifiers.hpsv2 import Hpsv2Verifier
from lotts.verifiers.imagereward import ImageRewardVerifier
from lotts.verifiers.pickscore import PickScoreVerifier

SIZES = tiny_judges.REWARD_SIZES
GET_REWARD = "hf download THUDM/ImageReward ImageReward.pt --revision 5736be03b2652728fb87788c9797b0570450ab72 --local-dir FOLDER"
IMAGES, PROMPTS = tiny_judges.pictures(2), ["a red cat", "a dog"]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A hub cache in a folder, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def put(cache, repository, revision, files):
    """Files in the hub cache's own layout, as downloaded at a revision."""
    folder = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder / file.name)
    return folder


def test_a_file_and_its_folder_are_the_same(reward_folder, verifier_of):
    expected = verifier_of("imagereward").score(IMAGES, PROMPTS)
    by_file = ImageRewardVerifier(reward_folder / "ImageReward.pt", config=SIZES)
    assert torch.equal(by_file.score(IMAGES, PROMPTS), expected)
    assert by_file.version == str(reward_folder / "ImageReward.pt")


def test_imagereward_comes_from_the_hub_at_its_pinned_commit(offline, reward_folder, verifier_of):
    pinned = imagereward.CHECKPOINT
    put(offline, pinned.repository, pinned.revision, [reward_folder / "ImageReward.pt"])
    put(offline, "google-bert/bert-base-uncased", imagereward.TOKENIZER.revision, [reward_folder / "vocab.txt"])
    verifier = ImageRewardVerifier(config=SIZES)
    assert torch.equal(verifier.score(IMAGES, PROMPTS), verifier_of("imagereward").score(IMAGES, PROMPTS))
    assert verifier.version == "THUDM/ImageReward@5736be03b265"


def test_another_repository_and_revision(offline, reward_folder):
    revision = "0123456789abcdef0123456789abcdef01234567"
    put(offline, "someone/reward", revision, [reward_folder / "ImageReward.pt", reward_folder / "vocab.txt"])
    verifier = ImageRewardVerifier("someone/reward", revision=revision, config=SIZES)
    assert verifier.version == "someone/reward@0123456789ab"
    assert len(verifier.score(IMAGES, PROMPTS)) == 2
    with pytest.raises(
        FileNotFoundError, match=r"ImageReward\.pt of someone/reward at revision v2 with .*--revision v2"
    ):
        ImageRewardVerifier("someone/reward", revision="v2", config=SIZES)


def test_clip_comes_from_the_hub_at_its_pinned_commit(offline, clip_folder, verifier_of, head_file, tmp_path):
    put(offline, "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", [*clip_folder.iterdir()])
    clipscore = ClipScoreVerifier()
    assert clipscore.version == "openai/clip-vit-large-patch14@32bd64288804"
    assert torch.equal(clipscore.score(IMAGES, PROMPTS), verifier_of("clipscore").score(IMAGES, PROMPTS))
    head = tmp_path / "aesthetic-model.pth"
    shutil.copy(head_file, head)
    put(offline, "trl-lib/ddpo-aesthetic-predictor", "cf4bd10345610935a80a5d3be9a3133c50f121e4", [head])
    aesthetic = AestheticVerifier()
    assert aesthetic.tower is clipscore.tower
    assert torch.equal(aesthetic.score(IMAGES, PROMPTS), verifier_of("aesthetic").score(IMAGES, PROMPTS))


def test_pickscore_and_hpsv2_share_the_tokenizer_of_a_third_repository(offline, clip_folder, hps_folder, verifier_of):
    tokenizer = [path for path in clip_folder.iterdir() if path.suffix != ".safetensors" and path.name != "config.json"]
    model = [path for path in clip_folder.iterdir() if path not in tokenizer]
    put(offline, "yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800", model)
    weights = hps_folder / "HPS_v2.1_compressed.pt"
    put(offline, "xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a", [weights])
    with pytest.raises(FileNotFoundError, match="hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        PickScoreVerifier()
    put(offline, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c", tokenizer)
    expected = verifier_of("pickscore").score(IMAGES, PROMPTS)
    assert torch.equal(PickScoreVerifier().score(IMAGES, PROMPTS), expected)
    hps = Hpsv2Verifier(config=verifier_of("hpsv2").tower.model.config)
    assert torch.equal(hps.score(IMAGES, PROMPTS), verifier_of("hpsv2").score(IMAGES, PROMPTS))
    assert hps.version == "xswu/HPSv2@697403c78157 (2.1)"


@pytest.mark.parametrize("name", ["hpsv2", "pickscore", "clipscore", "aesthetic"])
def test_a_revision_of_another_repository_is_what_it_is_read_at(
    offline, clip_folder, hps_folder, head_file, verifier_of, name, tmp_path
):
    revision = "0123456789abcdef0123456789abcdef01234567"
    head = tmp_path / "aesthetic-model.pth"
    shutil.copy(head_file, head)
    files = {"hpsv2": [*hps_folder.iterdir()], "aesthetic": [head]}.get(name, [*clip_folder.iterdir()])
    put(offline, "someone/other", revision, files)
    for repository, pinned in (
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c"),
        ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"),
    ):
        put(offline, repository, pinned, [*clip_folder.iterdir()])
    make = {
        "hpsv2": lambda **o: Hpsv2Verifier("someone/other", config=verifier_of("hpsv2").tower.model.config, **o),
        "pickscore": lambda **o: PickScoreVerifier("someone/other", **o),
        "clipscore": lambda **o: ClipScoreVerifier("someone/other", **o),
        "aesthetic": lambda **o: AestheticVerifier("someone/other", **o),
    }[name]
    verifier = make(revision=revision)
    assert verifier.version.startswith("someone/other@0123456789ab")
    assert torch.equal(verifier.score(IMAGES, PROMPTS), verifier_of(name).score(IMAGES, PROMPTS))
    with pytest.raises(FileNotFoundError, match=r"of someone/other|load someone/other"):
        make(revision="v2")


CLIP_KEY = "vision_model.embeddings.class_embedding"


@pytest.mark.parametrize(
    ("make", "file", "key", "command"),
    [
        (ImageRewardVerifier, "ImageReward.pt", "blip.visual_encoder.cls_token", GET_REWARD),
        (Hpsv2Verifier, "HPS_v2.1_compressed.pt", "visual.class_embedding", "hf download xswu/HPSv2 HPS_v2.1_compressed.pt"),
        (PickScoreVerifier, "yuvalkirstain/PickScore_v1", CLIP_KEY, "hf download yuvalkirstain/PickScore_v1 --revision"),
        (ClipScoreVerifier, "openai/clip-vit-large-patch14", CLIP_KEY, "hf download openai/clip-vit-large-patch14 --revision"),
        (AestheticVerifier, "aesthetic-model.pth", "layers.0.weight", "hf download trl-lib/ddpo-aesthetic-predictor aesthetic-model.pth"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_had(offline, tmp_path, make, file, key, command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "gone")
    for location in (None, tmp_path / "empty", tmp_path / "elsewhere", "/nowhere/at/all"):
        with pytest.raises(FileNotFoundError) as lacking:
            make(location)
        assert {part: part in str(lacking.value) for part in (file, key, command)} == dict.fromkeys(
            (file, key, command), True
        )
    with pytest.raises(FileNotFoundError, match=r"a file, a folder or a hub id owner/name .* got /nowhere/at/all"):
        make("/nowhere/at/all")


def test_an_empty_tokenizer_is_not_taken_for_one(offline, tmp_path, reward_folder, clip_folder):
    shutil.copy(reward_folder / "ImageReward.pt", tmp_path / "ImageReward.pt")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\n")
    with pytest.raises(FileNotFoundError, match=r"tokenizer of 16 entries for the model, got 8.*bert-base-uncased"):
        ImageRewardVerifier(tmp_path, config=SIZES)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(clip_folder / name, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="hf download openai/clip-vit-large-patch14"):
        ClipScoreVerifier(tmp_path)


def test_safetensors_are_read_too(tmp_path, reward_folder, verifier_of):
    state = {key: value.clone() for key, value in tiny_judges.imagereward_state().items()}
    tiny_judges.bert_files(tmp_path)
    save_file(state, tmp_path / "reward.safetensors")
    verifier = ImageRewardVerifier(tmp_path / "reward.safetensors", config=SIZES)
    assert torch.equal(verifier.score(IMAGES, PROMPTS), verifier_of("imagereward").score(IMAGES, PROMPTS))


def test_names_change_from_the_beginning_only():
    names = (("a.{}.b.", "x.{}.y."), ("a.", "z."))
    assert [renamed(key, names) for key in ("a.12.b.w", "a.c", "b.a.1.b.w")] == ["x.12.y.w", "z.c", "b.a.1.b.w"]


def test_a_checkpoint_tells_how_to_get_it():
    assert Checkpoint("o/n", None, "f.pt").command == "hf download o/n f.pt --local-dir FOLDER"
    assert str(Checkpoint("o/n", None)) == "o/n"
