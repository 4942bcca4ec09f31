import pytest
from diffusers.models.attention_processor import AttnProcessor

from lotts.capture import AttentionRecorder
from lotts.capture.selection import layer_filter


def recorder_of(unet, **kwargs):
    return AttentionRecorder(unet, latent_size=(16, 16), **kwargs)


def test_a_model_with_nothing_to_capture_is_an_error_that_names_what_it_has(tiny_unet):
    tiny_unet.set_attn_processor(AttnProcessor())
    with pytest.raises(ValueError, match=r"AttnProcessor does not call.*AttnProcessor2_0\(\)"), recorder_of(tiny_unet):
        pass


def test_a_choice_of_layers_that_fits_none_is_named(tiny_unet):
    with pytest.raises(ValueError, match="no attention layer matches"):
        recorder_of(tiny_unet, layers=["no_such_block"])
    with pytest.raises(ValueError, match=r"got the string 'mid'; write \['mid'\]"):
        layer_filter("mid", ["mid_block"])
    with pytest.raises(ValueError, match="selects none of the 1 attention layers"):
        layer_filter(lambda name: False, ["mid_block"])
