import pytest
import torch

from lotts.backbones import backbone_for


def test_words_are_found_by_either_tokenizer(pipe_of):
    backbone = backbone_for(pipe_of("sd3.5"))
    weights = backbone.content_weights(["a red cat"])
    assert weights.shape == (1, 40 + 256)
    assert weights[0].nonzero().flatten().tolist() == [2, 3, 41, 42]  # behind CLIP's start token; T5 has none
    assert torch.equal(backbone.word_weights("a red cat", ["red", "cat"]).sum(1), weights[0])
    with pytest.raises(ValueError, match="does not occur"):
        backbone.word_weights("a red cat", ["dog"])
