"""Folders with tiny random checkpoints in the layouts that users have."""

import numpy as np
import pytest
import tiny_judges
import torch
from chat_server import KEY, Server


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory):
    """ImageReward.pt in its original layout, with a tokenizer beside it."""
    folder = tiny_judges.bert_files(tmp_path_factory.mktemp("imagereward"))
    torch.save(tiny_judges.imagereward_state(), folder / "ImageReward.pt")
    return folder


@pytest.fixture(scope="session")
def hps_folder(tmp_path_factory, clip_tokenizer):
    """Both releases of HPSv2 in open_clip's layout, with a tokenizer beside them."""
    folder = tmp_path_factory.mktemp("hpsv2")
    clip_tokenizer.save_pretrained(folder)
    for seed, name in enumerate(("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt")):
        state = tiny_judges.open_clip_state(len(clip_tokenizer), seed)
        torch.save({"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}}, folder / name)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory, clip_tokenizer):
    """A CLIP in the layout of ``save_pretrained``, with its tokenizer."""
    from transformers import CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)
    model = CLIPModel(tiny_judges.clip_config(clip_tokenizer, "quick_gelu"))
    for parameter in model.parameters():
        # The default initialisation hardly tells pictures apart at this size.
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    clip_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def head_file(tmp_path_factory):
    """The aesthetic head as its authors publish it."""
    path = tmp_path_factory.mktemp("aesthetic") / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(tiny_judges.head_state(), path)
    return path


@pytest.fixture
def verifier_of(reward_folder, hps_folder, clip_folder, head_file, clip_tokenizer):
    """A function from a name to a tiny verifier of the true architecture; towers are shared within a test, not beyond."""
    from lotts.verifiers import clip
    from lotts.verifiers.aesthetic import AestheticVerifier
    from lotts.verifiers.clipscore import ClipScoreVerifier
    from lotts.verifiers.hpsv2 import Hpsv2Verifier
    from lotts.verifiers.imagereward import ImageRewardVerifier
    from lotts.verifiers.pickscore import PickScoreVerifier
    from lotts.verifiers.shapes import ShapesVerifier

    config = tiny_judges.clip_config(clip_tokenizer)
    makers = {
        "imagereward": lambda **o: ImageRewardVerifier(reward_folder, config=tiny_judges.REWARD_SIZES, **o),
        "hpsv2": lambda **o: Hpsv2Verifier(hps_folder, config=config, **o),
        "pickscore": lambda **o: PickScoreVerifier(clip_folder, **o),
        "clipscore": lambda **o: ClipScoreVerifier(clip_folder, **o),
        "aesthetic": lambda **o: AestheticVerifier(head_file, clip=clip_folder, **o),
        "shapes": ShapesVerifier,  # the real one: it is small
    }
    yield lambda name, **options: makers[name](**options)
    clip._shared.clear()


@pytest.fixture
def server(monkeypatch):
    """A chat endpoint on the loopback, and no endpoint in the environment."""
    for name in ("LOTTS_VLM_URL", "LOTTS_VLM_MODEL", "LOTTS_VLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def judge(server):
    """A function that makes a judge who asks that endpoint."""
    from lotts.verifiers.vlm import VLMJudge

    return lambda **options: VLMJudge(
        server.url, "tiny-vlm", **{"api_key": KEY, "backoff": 0.01, "retries": 2} | options
    )


@pytest.fixture
def images():
    """Grey pictures of five levels, for that endpoint."""
    return [np.full((5, 7, 3), level / 255, np.float32) for level in (51, 255, 0, 102, 153)]
