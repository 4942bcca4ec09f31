"""Facts about capture in transformers of joint attention that were changed: fused, adapted, offloaded or compiled."""

import pytest
import tiny
import torch
import torch._dynamo
from joint_recording import latents_of, layer_inputs, recorder_of

import lotts
from lotts.capture.patch import attention_modules


def test_fused_projections(pipe_of):
    for name in ("sd3", "flux-dev"):
        pipe = pipe_of(name)
        with lotts.capture(pipe, "a red cat") as plain:
            latents_of(pipe)
        pipe.transformer.fuse_qkv_projections()
        expected = latents_of(pipe)
        with lotts.capture(pipe, "a red cat") as fused:
            assert torch.equal(latents_of(pipe), expected)
        torch.testing.assert_close(fused.positive, plain.positive, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["sd3.5", "flux-dev"])
def test_lora_counts_for_the_picture_and_for_the_quality_prompts(pipe_of, name):
    from peft import LoraConfig

    pipe = pipe_of(name)
    with lotts.capture(pipe, "a red cat") as plain:
        before = latents_of(pipe)
    torch.manual_seed(0)
    targets = ["to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out.0"]
    pipe.transformer.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=targets))
    expected = latents_of(pipe)
    assert not torch.equal(expected, before)
    with lotts.capture(pipe, "a red cat") as maps:
        assert torch.equal(latents_of(pipe), expected)
    assert not torch.allclose(maps.positive, plain.positive, rtol=1e-4)


def test_ip_adapter_attention_beside_the_joint_one(pipe_of):
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    pipe = pipe_of("flux-dev")
    torch.manual_seed(0)
    for name, attn in attention_modules(pipe.transformer).items():
        if not name.startswith("single"):
            attn.set_processor(FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=16))
    inputs, size = layer_inputs(pipe)
    inputs["joint_attention_kwargs"] = {"ip_hidden_states": [torch.randn(2, 4, 16)]}
    with torch.no_grad():
        expected = pipe.transformer(**inputs).sample
        recorder = recorder_of(pipe, size)
        with recorder:
            assert torch.equal(pipe.transformer(**inputs).sample, expected)
    assert recorder.cross_maps().min() > 0


def test_offloaded_weights(pipe_of):
    """Group offloading replaces the model's forward too; ours wraps it and gives it back."""
    from diffusers.hooks import apply_group_offloading

    pipe = pipe_of("flux-dev")
    expected = latents_of(pipe)
    apply_group_offloading(
        pipe.transformer,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )
    forward = pipe.transformer.__dict__.get("forward")
    with lotts.capture(pipe, "a red cat") as maps:
        assert torch.equal(latents_of(pipe), expected)
    assert pipe.transformer.__dict__.get("forward") is forward
    assert maps.positive.min() > 0


def test_compiled_transformer(clip_tokenizer):
    pipe = tiny.flux(clip_tokenizer, blocks=1)
    inputs, size = layer_inputs(pipe)
    with torch.no_grad():
        expected = pipe.transformer(**inputs).sample
        eager = recorder_of(pipe, size)
        with eager:
            pipe.transformer(**inputs)
        compiled = torch.compile(pipe.transformer, backend="aot_eager", fullgraph=True)
        recorder = recorder_of(pipe, size)
        recorder.model = compiled
        with recorder:
            for _ in range(2):
                step = inputs | {"hidden_states": inputs["hidden_states"].clone()}  # as a pipeline's next step has
                assert torch.equal(compiled(**step).sample, expected)
    torch.testing.assert_close(recorder.cross_maps(), eager.cross_maps())


@torch._dynamo.config.patch(recompile_limit=1)
def test_blocks_compiled_one_by_one_run_eagerly_where_they_are_many(pipe_of):
    pipe = pipe_of("flux-dev")
    with lotts.capture(pipe, "a red cat") as eager:
        expected = latents_of(pipe)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    blocks = [m for m in pipe.transformer.modules() if m._compiled_call_impl is not None]
    assert len(blocks) > 2
    with lotts.capture(pipe, "a red cat") as maps:
        assert torch.equal(latents_of(pipe), expected)
        assert not any(block._compiled_call_impl for block in blocks)
    assert torch.equal(maps.positive, eager.positive)
    assert all(block._compiled_call_impl for block in blocks)


def test_a_processor_that_is_set_while_probes_ride_is_refused(pipe_of):
    """As the perturbed-attention pipelines do within their call."""
    pipe = pipe_of("sd3")
    expected = latents_of(pipe)
    block = pipe.transformer.transformer_blocks[0].attn
    own = block.processor

    def captured(quality):
        with lotts.capture(pipe, "a red cat", words=["cat"], quality=quality):
            block.set_processor(own)
            return latents_of(pipe)

    with pytest.raises(RuntimeError, match=r"to keep its processor while it is captured.*quality=False"):
        captured(quality=True)
    assert torch.equal(captured(quality=False), expected)
    assert block.processor is own
