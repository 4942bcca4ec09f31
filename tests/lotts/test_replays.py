import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lotts.localize import LocalizeConfig
from lotts.pipeline import LoTTS
from lotts.repairs import repair
from lotts.replays import replay
from lotts.report import save_output
from lotts.sources import AttentionSource

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
    assert (again.rescored, again.same_best) == ([], True)


def edited(folder, change):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


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


def test_scores_and_the_choice_are_compared_too(tiny_pipe, generated):
    best = json.loads((generated / "manifest.json").read_text())["best"]

    def otherwise(data):
        data["samples"][0]["score"] -= 1.0
        data["best"] = (best + 1) % 4

    again = replay(edited(generated, otherwise), pipe=tiny_pipe, verifier=brightness)
    assert again.differences == []
    assert [(r.file, r.now - r.then) for r in again.rescored] == [(again.manifest.samples[0].file, pytest.approx(1.0))]
    assert "then" in str(again.rescored[0])
    assert not again.same_best
    assert not again.exact


def test_another_verifier_scheduler_or_weights_are_told(tiny_pipe, generated, tmp_path, monkeypatch):
    from lotts import models

    def otherwise(data):
        data["environment"] |= {"triton": "1.0", "verifier": "beauty@1", "weights": "0" * 16}
        data["environment"]["scheduler"]["beta_end"] = 0.5
        data["model"] = "shapes-sd"

    path = edited(generated, otherwise)
    monkeypatch.setattr(models, "load_pipeline", lambda name, device=None, dtype=None: tiny_pipe)
    with pytest.warns(UserWarning, match=r"scheduler\.beta_end 0\.5 then, 0\.02 now"):
        again = replay(path, verifier=brightness)
    assert again.exact
    assert set(again.changes) == {"triton", "verifier", "weights", "scheduler.beta_end"}
    assert again.changes["weights"][1] == models.weights_digest("shapes-sd")


@pytest.mark.parametrize("mask", [None, np.ones((16, 16), bool)])
def test_a_map_source_with_arguments_must_be_given_where_it_is_asked(tiny_pipe, tmp_path, mask):
    source = AttentionSource(LocalizeConfig(sign=-1))
    picture = np.full((32, 32, 3), 128, np.uint8)
    output = repair(
        tiny_pipe, picture, "a red cat", mask, verifier=brightness, source=source, generator=seeded(3), **STEPS
    )
    assert output.settings["source"] is None
    folder = save_output(output, tmp_path / "out")
    if mask is None:
        with pytest.raises(ValueError, match="pass source="):
            replay(folder, pipe=tiny_pipe, verifier=brightness)
    assert replay(folder, pipe=tiny_pipe, verifier=brightness, source=None if mask is not None else source).exact


def test_a_run_of_a_gpu_is_replayed_without_one(tiny_pipe, generated, monkeypatch):
    from lotts import models

    asked = []

    def load_pipeline(name, device=None, dtype=None):
        asked.append(device)
        return tiny_pipe

    monkeypatch.setattr(models, "load_pipeline", load_pipeline)
    path = edited(generated, lambda data: data.update(device="cuda:9", model="shapes-sd"))
    again = replay(path, verifier=brightness)
    assert (asked, again.device) == ([None], "cpu")
    assert again.exact


def test_a_run_that_draws_more_or_fewer_pictures_is_compared_by_lineage(tiny_pipe, generated):
    def drop_the_first_refinement(data):
        del data["samples"][2]
        data["best"] = 0

    again = replay(edited(generated, drop_the_first_refinement), pipe=tiny_pipe, verifier=brightness)
    assert [str(difference).split(": ")[1] for difference in again.differences] == ["drawn, but not recorded"]
    assert (again.rescored, again.exact) == ([], False)

    def claim_another(data):
        data["samples"].append(data["samples"][-1] | {"refinement": 7})

    again = replay(edited(generated, claim_another), pipe=tiny_pipe, verifier=brightness)
    told = sorted(str(difference).split(": ")[1] for difference in again.differences)
    assert told == ["drawn, but not recorded", "recorded, but not drawn again"]
