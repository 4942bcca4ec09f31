import json

import pytest
import torch

from lotts import models
from lotts.models import default_settings, load_pipeline, weights_digest


@pytest.fixture
def saved(tiny_pipe, tmp_path):
    tiny_pipe.save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_folder_is_loaded_with_its_scheduler(saved):
    pipe = load_pipeline(str(saved), device="cpu")
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert pipe.unet.dtype == torch.float32
    assert pipe._progress_bar_config == {"disable": True}


def test_a_scheduler_that_cannot_restart_is_replaced_with_a_warning(tiny_pipe, tmp_path):
    from diffusers import UniPCMultistepScheduler

    tiny_pipe.scheduler = UniPCMultistepScheduler(beta_end=0.0123, steps_offset=1)
    tiny_pipe.save_pretrained(tmp_path / "pipe")
    with pytest.warns(UserWarning, match="UniPCMultistepScheduler cannot restart"):
        pipe = load_pipeline(str(tmp_path / "pipe"), device="cpu", dtype="bf16")
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert pipe.scheduler.config.beta_end == 0.0123
    assert not pipe.scheduler.config.clip_sample
    assert pipe.unet.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:The configuration file:FutureWarning")
def test_what_an_old_configuration_does_not_name_is_what_the_pipeline_corrects_it_to(tiny_pipe, tmp_path):
    from diffusers import DDPMScheduler

    tiny_pipe.scheduler = DDPMScheduler()
    tiny_pipe.save_pretrained(tmp_path / "pipe")
    path = tmp_path / "pipe" / "scheduler" / "scheduler_config.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("clip_sample", "steps_offset")}
    path.write_text(json.dumps(kept))
    with pytest.warns(UserWarning, match="DDPMScheduler cannot restart"):
        pipe = load_pipeline(str(tmp_path / "pipe"), device="cpu")
    assert (pipe.scheduler.config.clip_sample, pipe.scheduler.config.steps_offset) == (False, 1)


def test_an_embedded_pipeline_loads_half_precision_files_as_fp32_without_noise(tiny_pipe, tmp_path, monkeypatch, capfd):
    tiny_pipe.to(dtype=torch.float16).save_pretrained(tmp_path / "sd")
    monkeypatch.setitem(models.EMBEDDED, "shapes-sd", (tmp_path / "sd", "sd"))
    capfd.readouterr()
    pipe = load_pipeline("shapes-sd", device="cpu")
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    assert "it/s" not in capfd.readouterr().err


def test_absent_weights_say_how_to_train_them(tmp_path, monkeypatch):
    monkeypatch.setitem(models.EMBEDDED, "shapes-sd", (tmp_path / "sd", "sd"))
    with pytest.raises(FileNotFoundError, match=r"python -m lotts\.shapes\.train sd"):
        load_pipeline("shapes-sd")


@pytest.mark.parametrize("name", ["shapes-ds", "no/such/folder", "", "../x"])
def test_a_name_that_is_nothing_is_refused_before_any_download(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # elsewhere a folder of that name may be
    with pytest.raises(ValueError, match="shapes-sd, shapes-sdxl, shapes-flux, a folder or a hub id"):
        load_pipeline(name)


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "fp8"}, "fp32, fp16, bf16"),
        ({"device": "toaster"}, "expected a torch device"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_pipeline("shapes-sd", **arguments)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        load_pipeline("shapes-sd", device="cuda:0")


@pytest.mark.parametrize("device", ["meta", "mps" if not torch.backends.mps.is_available() else "meta"])
def test_a_device_of_another_kind_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match=f"expected a device that is there, got {device}"):
        load_pipeline("shapes-sd", device=device)


def test_a_gpu_beyond_those_that_are_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="got cuda:7: there is cuda:0, cuda:1"):
        load_pipeline("shapes-sd", device="cuda:7")


def test_weights_have_a_digest_where_they_are_ours(tmp_path, monkeypatch):
    monkeypatch.setitem(models.EMBEDDED, "shapes-sd", (tmp_path, "sd"))
    (tmp_path / "a.safetensors").write_bytes(b"a")
    first = weights_digest("shapes-sd")
    (tmp_path / "a.safetensors").write_bytes(b"b")
    assert (len(first), weights_digest("shapes-sd") == first) == (16, False)
    assert weights_digest("owner/name") is None


def test_pickles_are_not_read(saved):
    weights = next((saved / "unet").glob("*.safetensors"))
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(OSError, match="safetensors"):
        load_pipeline(str(saved), device="cpu")


def test_embedded_models_have_a_verifier_and_others_do_not():
    ours = {"num_inference_steps": 20, "guidance_scale": 2.0, "true_cfg_scale": 1.0, "verifier": "shapes"}
    assert default_settings("shapes-sd") == ours
    others = {"num_inference_steps": 50, "guidance_scale": None, "true_cfg_scale": 1.0, "verifier": None}
    assert default_settings("owner/name") == others


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_flow_sigmas": True}, "got UniPC"),
        ({"prediction_type": "flow_prediction"}, "got UniPC"),
        (None, "got EDM"),
    ],
)
def test_a_scheduler_of_another_process_is_not_replaced(tiny_pipe, tmp_path, changes, words):
    from diffusers import EDMDPMSolverMultistepScheduler, UniPCMultistepScheduler

    tiny_pipe.scheduler = EDMDPMSolverMultistepScheduler() if changes is None else UniPCMultistepScheduler(**changes)
    tiny_pipe.save_pretrained(tmp_path / "pipe")
    with pytest.raises(ValueError, match=words):
        load_pipeline(str(tmp_path / "pipe"), device="cpu")


def test_a_class_that_cannot_be_driven_is_refused_before_its_weights_are_read(saved, monkeypatch):
    index = saved / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"StableDiffusionInpaintPipeline"'))
    monkeypatch.setattr(models, "_read", lambda *args: pytest.fail("read the weights"))
    with pytest.raises(TypeError, match="got StableDiffusionInpaintPipeline"):
        load_pipeline(str(saved))


def test_on_a_gpu_flows_are_bfloat16_and_others_float16(monkeypatch, saved):
    monkeypatch.setattr(models, "check_device", lambda device: torch.device(device))
    assert models.default_dtype(str(saved), "cuda") == torch.float16
    index = saved / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "FluxPipeline"}))
    assert models.default_dtype(str(saved), "cuda") == torch.bfloat16
    assert models.default_dtype(str(saved), "cpu") == models.default_dtype("shapes-flux", "cuda") == torch.float32


@pytest.mark.parametrize("solver", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_a_flow_keeps_its_shift_under_its_other_name(clip_tokenizer, tmp_path, solver):
    import diffusers
    import tiny

    pipe = tiny.flux(clip_tokenizer)
    pipe.scheduler = getattr(diffusers, solver)(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe.save_pretrained(tmp_path / "pipe")
    with pytest.warns(UserWarning, match="cannot restart"):
        loaded = load_pipeline(str(tmp_path / "pipe"), device="cpu")
    assert type(loaded.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert loaded.scheduler.config.shift == 3.0
