import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lotts.pipeline import LoTTS
from lotts.repairs import repair
from lotts.replays import replay
from lotts.report import save_output

STEPS = {"num_inference_steps": 4, "num_refinements": 1, "global_steps": 1, "guidance_scale": 2.0}


def brightness(images, prompts):
    return [float(image.mean()) for image in images]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def generated(tiny_pipe, tmp_path):
    output = LoTTS(tiny_pipe, brightness)("a red cat", num_candidates=2, generator=seeded(3), **STEPS)
    return save_output(output, tmp_path / "out")


def test_a_generated_run_replays_bit_for_bit(tiny_pipe, generated):
    again = replay(generated, pipe=tiny_pipe, verifier=brightness)
    assert again.exact
    assert again.changes == {}
    assert again.output.best == again.manifest.best


def test_a_repair_with_a_given_mask_replays_bit_for_bit(tiny_pipe, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[4:9, 3:8] = True
    output = repair(tiny_pipe, picture, "a red cat", mask, verifier=brightness, generator=seeded(3), **STEPS)
    folder = save_output(output, tmp_path / "out")
    again = replay(folder, pipe=tiny_pipe, verifier=brightness)
    assert again.exact
    assert (again.output.samples[0].mask == torch.from_numpy(mask)).all()


def test_differences_and_changes_are_told(tiny_pipe, generated):
    path = generated / "manifest.json"
    data = json.loads(path.read_text())
    # The recorded run, had it been made elsewhere with other bits: one picture kept, one lost.
    data["environment"]["torch"] = "1.0"
    first, second = data["samples"][0], data["samples"][1]
    pixels = np.asarray(Image.open(generated / first["file"])).copy()
    pixels[0, 0, 0] ^= 4
    Image.fromarray(pixels).save(generated / first["file"])
    first["sha256"] = hashlib.sha256((generated / first["file"]).read_bytes()).hexdigest()
    second["sha256"] = "0" * 64
    path.write_text(json.dumps(data))
    with pytest.warns(UserWarning, match=r"torch 1\.0 then"):
        again = replay(path, pipe=tiny_pipe, verifier=brightness)
    assert not again.exact
    assert [(d.file, d.largest, d.share) for d in again.differences] == [
        (first["file"], 4, 1 / 1024),
        (second["file"], None, None),
    ]
    assert "up to 4 of 255" in str(again.differences[0])


def test_the_thread_count_is_the_recorded_one_during_the_run(tiny_pipe, generated, monkeypatch):
    from lotts import replays

    path = generated / "manifest.json"
    data = json.loads(path.read_text())
    before = torch.get_num_threads()
    data["environment"]["threads"] = before + 1
    path.write_text(json.dumps(data))
    seen = []

    class Stop(Exception):
        pass

    def stop(*args):
        seen.append(torch.get_num_threads())
        raise Stop

    monkeypatch.setattr(replays, "_generate", stop)
    with pytest.raises(Stop):
        replay(path, pipe=tiny_pipe, verifier=brightness)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_what_the_manifest_cannot_name_must_be_given(tiny_pipe, generated):
    with pytest.raises(ValueError, match="pass verifier="):
        replay(generated, pipe=tiny_pipe)
    with pytest.raises(ValueError, match="pass pipe="):
        replay(generated, verifier=brightness)


def test_a_setting_that_no_run_has_is_named(tiny_pipe, generated):
    path = generated / "manifest.json"
    data = json.loads(path.read_text())
    data["settings"]["output_type"] = "np"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="got output_type"):
        replay(path, pipe=tiny_pipe, verifier=brightness)
