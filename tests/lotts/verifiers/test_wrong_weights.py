"""Weights that are not a verifier's own are refused: which file, which keys, how to get the right ones."""

import re
import shutil
import warnings

import pytest
import tiny_judges
import torch
from safetensors.torch import load_file, save_file

from lotts.shapes import reward
from lotts.verifiers import imagereward
from lotts.verifiers.aesthetic import AestheticVerifier
from lotts.verifiers.checkpoints import read_state
from lotts.verifiers.clipscore import ClipScoreVerifier
from lotts.verifiers.hpsv2 import Hpsv2Verifier
from lotts.verifiers.imagereward import ImageRewardVerifier
from lotts.verifiers.pickscore import PickScoreVerifier
from lotts.verifiers.shapes import ShapesVerifier

SIZES = tiny_judges.REWARD_SIZES
GET_REWARD = "hf download THUDM/ImageReward ImageReward.pt --revision 5736be03b2652728fb87788c9797b0570450ab72 --local-dir FOLDER"


def spoilt_clip(folder, clip_folder, change):
    """A copy of the CLIP whose tensors ``change`` has had its way with."""
    shutil.copytree(clip_folder, folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(params=["pickscore", "clipscore", "aesthetic"])
def on_clip(request, head_file):
    """A function that makes a verifier on the CLIP in a folder."""
    makers = {
        "pickscore": PickScoreVerifier,
        "clipscore": ClipScoreVerifier,
        "aesthetic": lambda folder: AestheticVerifier(head_file, clip=folder),
    }
    return makers[request.param]


def test_a_clip_that_lacks_a_tensor_is_refused(tmp_path, clip_folder, on_clip):
    gone = "vision_model.encoder.layers.1.mlp.fc2.bias"
    folder = spoilt_clip(tmp_path / "clip", clip_folder, lambda state: state.pop(gone))
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(folder))}, which lacks 1 of them, such as {gone}; get it with hf download"
    ):
        on_clip(folder)


def test_a_clip_of_other_names_is_refused(tmp_path, clip_folder, on_clip):
    def rename(state):
        for key in [*state]:
            state[f"theirs.{key}"] = state.pop(key)

    with pytest.raises(ValueError, match=r"lacks \d+ of them, such as logit_scale"):
        on_clip(spoilt_clip(tmp_path / "clip", clip_folder, rename))


def test_a_clip_of_another_shape_is_refused(tmp_path, clip_folder, on_clip):
    def widen(state):
        state["visual_projection.weight"] = torch.zeros(17, 32)

    with pytest.raises(
        ValueError, match=r"1 of another shape: visual_projection\.weight is \[17, 32\], not \[16, 32\]"
    ):
        on_clip(spoilt_clip(tmp_path / "clip", clip_folder, widen))


def test_what_a_clip_has_too_much_is_a_warning(tmp_path, clip_folder, on_clip):
    def add(state):
        state["surplus.weight"] = torch.zeros(1)
        state["text_model.embeddings.position_ids"] = torch.arange(40)[None]  # as old releases of transformers saved

    with pytest.warns(UserWarning, match=r"has 1 tensors that are not used, such as surplus\.weight"):
        on_clip(spoilt_clip(tmp_path / "clip", clip_folder, add))


def test_a_clip_file_that_is_damaged(tmp_path, clip_folder, on_clip):
    folder = spoilt_clip(tmp_path / "clip", clip_folder, lambda state: None)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FileNotFoundError, match=r"could not load .*hf download"):
        on_clip(folder)


def test_a_head_of_another_kind_is_refused(tmp_path, clip_folder):
    torch.save({"layers.0.weight": torch.zeros(1024, 16)}, tmp_path / "aesthetic-model.pth")
    with pytest.raises(ValueError, match=r"lacks 9 of them, such as layers\.0\.bias.*hf download trl-lib"):
        AestheticVerifier(tmp_path, clip=clip_folder)


def test_other_tensors_than_the_shapes_verifiers_are_refused(tmp_path):
    shutil.copytree(reward.FOLDER, tmp_path / "reward")
    file = tmp_path / "reward" / "model.safetensors"
    state = load_file(file)
    del state["scene_query"]
    save_file(state, file)
    with pytest.raises(ValueError, match=r"tensors of the reward model in .*scene_query.*train verifier"):
        ShapesVerifier(tmp_path / "reward")
    file.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"tensors of the reward model in .*train verifier"):
        ShapesVerifier(tmp_path / "reward")


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    (tmp_path / "reward.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"expected tensors by name in .*hf download THUDM/ImageReward"):
        read_state(tmp_path / "reward.safetensors", imagereward.CHECKPOINT)


def saved(path, state):
    torch.save(state, path)
    return tiny_judges.bert_files(path.parent) and path


def test_a_missing_tensor_is_named_as_the_checkpoint_names_it(tmp_path):
    state = tiny_judges.imagereward_state()
    del state["blip.visual_encoder.blocks.1.attn.qkv.bias"]
    path = saved(tmp_path / "ImageReward.pt", state)
    with pytest.raises(ValueError, match=r"lacks 1 of them") as error:
        ImageRewardVerifier(path, config=SIZES)
    text = str(error.value)
    assert str(path) in text
    assert "such as blip.visual_encoder.blocks.1.attn.qkv.bias" in text
    assert "tensors such as blip.visual_encoder.cls_token" in text
    assert GET_REWARD in text


def test_a_tensor_of_another_shape_is_named(tmp_path, clip_tokenizer):
    state = tiny_judges.imagereward_state() | {"mlp.layers.7.weight": torch.zeros(2, 16)}
    with pytest.raises(ValueError, match=r"1 of another shape: mlp\.layers\.7\.weight is \[2, 16\], not \[1, 16\]"):
        ImageRewardVerifier(saved(tmp_path / "ImageReward.pt", state), config=SIZES)


def test_hpsv2s_own_names_are_told(tmp_path, clip_tokenizer):
    clip_tokenizer.save_pretrained(tmp_path)
    state = tiny_judges.open_clip_state(len(clip_tokenizer))
    del state["visual.transformer.resblocks.0.ln_1.bias"]
    torch.save({"state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(
        ValueError, match=r"such as visual\.transformer\.resblocks\.0\.ln_1\.bias.*hf download xswu/HPSv2"
    ):
        Hpsv2Verifier(tmp_path, config=tiny_judges.clip_config(clip_tokenizer))


def test_tensors_too_many_are_a_warning(tmp_path):
    state = tiny_judges.imagereward_state() | {"surplus.weight": torch.zeros(1)}
    with pytest.warns(UserWarning, match=r"has 1 tensors that are not used, such as surplus\.weight"):
        ImageRewardVerifier(saved(tmp_path / "ImageReward.pt", state), config=SIZES)


def test_the_published_layouts_warn_of_nothing(verifier_of):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("imagereward", "hpsv2", "pickscore", "clipscore", "aesthetic"):
            verifier_of(name)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"\x80\x04cos\nsystem\n."])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "ImageReward.pt"
    path.write_bytes(content)
    tiny_judges.bert_files(tmp_path)
    with pytest.raises(
        ValueError, match=r"expected tensors by name in .*ImageReward\.pt.*hf download THUDM/ImageReward"
    ):
        ImageRewardVerifier(path, config=SIZES)


def test_a_pickled_object_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = saved(tmp_path / "ImageReward.pt", {"x": Trap()})
    with pytest.raises(ValueError, match="expected tensors by name"):
        ImageRewardVerifier(path, config=SIZES)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("held", [[torch.zeros(1)], {"epoch": 3}, {}])
def test_what_holds_no_tensors_by_name(tmp_path, held):
    path = saved(tmp_path / "x.pt", held)
    with pytest.raises(ValueError, match="expected tensors by name"):
        read_state(path, imagereward.CHECKPOINT)
