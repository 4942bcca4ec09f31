import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    CustomDiffusionAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)

from lotts.capture.patch import attention_modules, patched_attention, unsupported_reason


class Counting:
    """A handler that runs plain attention and keeps the key lengths it saw."""

    def __init__(self):
        self.key_lengths = []

    def attend(self, native, query, key, value, *args, **kwargs):
        self.key_lengths.append(key.shape[2])
        return native(query, key, value, *args, **kwargs)


@pytest.fixture
def inputs():
    torch.manual_seed(2)
    return torch.randn(2, 4, 16, 16), 5, torch.randn(2, 7, 32)


def handlers_for(unet):
    return {name: Counting() for name in attention_modules(unet)}


def processors(unet):
    return {name: attn.processor for name, attn in attention_modules(unet).items()}


def use_ip_adapter(unet, num_tokens):
    torch.manual_seed(3)
    unet.set_attn_processor(
        {
            name: AttnProcessor2_0()
            if "attn1" in name
            else IPAdapterAttnProcessor2_0(
                hidden_size=unet.get_submodule(name.removesuffix(".processor")).inner_dim,
                cross_attention_dim=32,
                num_tokens=num_tokens,
            )
            for name in unet.attn_processors
        }
    )


@pytest.mark.parametrize("found", [lambda model: model, attention_modules], ids=["a model", "its modules"])
@torch.no_grad()
def test_every_layer_reaches_its_handler_once_and_the_output_is_bit_identical(tiny_unet, inputs, found):
    expected = tiny_unet(*inputs).sample
    handlers = handlers_for(tiny_unet)
    with patched_attention(found(tiny_unet), handlers):
        actual = tiny_unet(*inputs).sample
    assert torch.equal(actual, expected)
    assert all(len(handler.key_lengths) == 1 for handler in handlers.values())
    assert {handler.key_lengths[0] for name, handler in handlers.items() if "attn2" in name} == {7}


@pytest.mark.parametrize("failing", [False, True])
def test_leaving_gives_back_the_original_processor_objects(tiny_unet, failing):
    before = processors(tiny_unet)
    state = {name: tensor.clone() for name, tensor in tiny_unet.state_dict().items()}
    try:
        with patched_attention(tiny_unet, handlers_for(tiny_unet)):
            assert all(patched is not before[name] for name, patched in processors(tiny_unet).items())
            assert list(tiny_unet.state_dict()) == list(state)
            if failing:
                raise KeyError("in the user's block")
    except KeyError:
        assert failing
    assert all(processor is before[name] for name, processor in processors(tiny_unet).items())
    assert {type(processor) for processor in processors(tiny_unet).values()} == {AttnProcessor2_0}
    assert list(tiny_unet.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in tiny_unet.state_dict().items())


def test_a_processor_set_within_the_block_stays(tiny_unet):
    chosen = AttnProcessor()
    with patched_attention(tiny_unet, handlers_for(tiny_unet)):
        tiny_unet.set_attn_processor(chosen)
    assert all(processor is chosen for processor in processors(tiny_unet).values())


@torch.no_grad()
def test_one_instance_shared_by_all_layers_keeps_a_handler_for_each(tiny_unet, inputs):
    shared = AttnProcessor2_0()
    tiny_unet.set_attn_processor(shared)
    handlers = handlers_for(tiny_unet)
    with patched_attention(tiny_unet, handlers):
        tiny_unet(*inputs)
    assert all(len(handler.key_lengths) == 1 for handler in handlers.values())
    assert all(processor is shared for processor in processors(tiny_unet).values())
    assert type(shared) is AttnProcessor2_0


def test_the_signature_diffusers_filters_by_is_unchanged(tiny_unet):
    use_ip_adapter(tiny_unet, num_tokens=(4,))
    before = {name: inspect.signature(processor.__call__) for name, processor in processors(tiny_unet).items()}
    with patched_attention(tiny_unet, handlers_for(tiny_unet)):
        during = {name: inspect.signature(processor.__call__) for name, processor in processors(tiny_unet).items()}
    assert during == before
    assert any("ip_adapter_masks" in signature.parameters for signature in during.values())


@torch.no_grad()
def test_ip_adapter_layers_hand_over_the_text_call_only_and_share_parameters(tiny_unet, inputs):
    # As many image tokens as text tokens: the two calls differ by their order alone.
    use_ip_adapter(tiny_unet, num_tokens=(7, 7))
    latents, timestep, text = inputs
    images = [torch.randn(2, 1, 7, 32), torch.randn(2, 1, 7, 32)]
    arguments = (latents, timestep, (text, images))
    expected = tiny_unet(*arguments).sample
    keys = list(tiny_unet.state_dict())
    parameters = {name: parameter.data_ptr() for name, parameter in tiny_unet.named_parameters()}
    handlers = handlers_for(tiny_unet)
    with patched_attention(tiny_unet, handlers):
        actual = tiny_unet(*arguments).sample
        assert list(tiny_unet.state_dict()) == keys
        assert {name: parameter.data_ptr() for name, parameter in tiny_unet.named_parameters()} == parameters
    assert torch.equal(actual, expected)
    assert all(len(handler.key_lengths) == 1 for handler in handlers.values())


@torch.no_grad()
def test_ip_adapter_masks_still_arrive(tiny_unet, inputs):
    use_ip_adapter(tiny_unet, num_tokens=(4,))
    latents, timestep, text = inputs
    arguments = (latents, timestep, (text, [torch.randn(2, 1, 4, 32)]))
    masks = [torch.zeros(1, 1, 16, 16)]
    masks[0][..., :8] = 1
    expected = tiny_unet(*arguments, cross_attention_kwargs={"ip_adapter_masks": masks}).sample
    assert not torch.equal(expected, tiny_unet(*arguments).sample)
    with patched_attention(tiny_unet, handlers_for(tiny_unet)):
        actual = tiny_unet(*arguments, cross_attention_kwargs={"ip_adapter_masks": masks}).sample
    assert torch.equal(actual, expected)


def test_a_model_cannot_be_patched_twice(tiny_unet):
    before = processors(tiny_unet)
    with patched_attention(tiny_unet, handlers_for(tiny_unet)):
        during = processors(tiny_unet)
        with (
            pytest.raises(RuntimeError, match="already patched"),
            patched_attention(tiny_unet, handlers_for(tiny_unet)),
        ):
            pass
        assert all(processor is during[name] for name, processor in processors(tiny_unet).items())
    assert all(processor is before[name] for name, processor in processors(tiny_unet).items())


@torch.no_grad()
def test_a_copy_made_within_the_block_runs_plain_attention_afterwards(tiny_unet, inputs):
    expected = tiny_unet(*inputs).sample
    handlers = handlers_for(tiny_unet)
    with patched_attention(tiny_unet, handlers):
        kept = {name: copy.copy(processor) for name, processor in processors(tiny_unet).items()}
    for name, attn in attention_modules(tiny_unet).items():
        attn.processor = kept[name]
    assert torch.equal(tiny_unet(*inputs).sample, expected)
    assert not any(handler.key_lengths for handler in handlers.values())


class CustomProcessor:
    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        return F.scaled_dot_product_attention(hidden_states, hidden_states, hidden_states)


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (AttnProcessor(), "does not call F.scaled_dot_product_attention"),
        (SlicedAttnProcessor(1), "does not call F.scaled_dot_product_attention"),
        (CustomProcessor(), "not one of diffusers' attention processors"),
        (CustomDiffusionAttnProcessor2_0(True, False, 32, 32), "projects the text by layers of its own"),
        (CustomDiffusionAttnProcessor2_0(False, False, 32, 32), None),
        (AttnProcessor2_0(), None),
    ],
    ids=["legacy", "sliced", "custom", "custom diffusion", "custom diffusion's self-attention", "supported"],
)
def test_unsupported_processors_say_why(tiny_unet, processor, reason):
    attn = tiny_unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attn.set_processor(processor)
    found = unsupported_reason(attn)
    assert found is None if reason is None else reason in found


def test_unknown_and_unsupported_names_are_refused(tiny_unet):
    with pytest.raises(ValueError, match="not an attention module"), patched_attention(tiny_unet, {"x": Counting()}):
        pass
    tiny_unet.set_attn_processor(AttnProcessor())
    with pytest.raises(ValueError, match="does not call"), patched_attention(tiny_unet, handlers_for(tiny_unet)):
        pass
