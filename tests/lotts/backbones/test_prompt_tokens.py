import copy

import pytest
import torch

import lotts
from lotts.backbones import backbone_for


def test_words_are_found_by_either_tokenizer(pipe_of):
    backbone = backbone_for(pipe_of("sd3.5"))
    weights = backbone.content_weights(["a red cat"])
    assert weights.shape == (1, 40 + 256)
    assert weights[0].nonzero().flatten().tolist() == [2, 3, 41, 42]  # behind CLIP's start token; T5 has none
    assert torch.equal(backbone.word_weights("a red cat", ["red", "cat"]).sum(1), weights[0])
    with pytest.raises(ValueError, match="does not occur"):
        backbone.word_weights("a red cat", ["dog"])


@pytest.mark.parametrize("name", ["sd", "flux-dev"])
def test_a_word_of_several_vectors_is_all_of_them_where_its_tokenizer_knows_it(pipe_of, name):
    """As textual inversion loads it: into the CLIP tokenizer. FLUX reads its T5, to which it is a word like any other."""
    pipe = pipe_of(name)
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.add_tokens(["<zq>", "<zq>_1", "<zq>_2"])
    backbone = backbone_for(pipe)
    weights = backbone.word_weights("a <zq> cat", ["<zq>", "cat"])
    counts = [int(column.sum()) for column in weights.T]
    tokenizer = backbone.segments[0][0]
    ids = tokenizer("a <zq> cat").input_ids
    if name == "sd":
        assert counts == [3, 1]
        assert weights[:, 0].nonzero().flatten().tolist() == [2, 3, 4]
    else:
        assert counts[0] == len(tokenizer("<zq>").input_ids) - 1  # and an end
        assert weights[: len(ids)].sum() == weights.sum()
    content = backbone.content_weights(["a <zq> cat"])[0]
    assert content.any()
    assert not content[weights.sum(1) == 0].any()


@pytest.mark.parametrize(
    ("scale", "perturbed", "rows", "expected"),
    [(7.5, 0, 4, slice(2, 4)), (1.0, 0, 4, slice(0, 4)), (7.5, 3.0, 6, slice(2, 4)), (1.0, 3.0, 6, slice(0, 3))],
)
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_the_prompts_rows_lie_between_the_unconditional_and_the_perturbed(
    pipe_of, name, scale, perturbed, rows, expected
):
    pipe = pipe_of(name)
    pipe._guidance_scale, pipe._pag_scale = scale, perturbed
    assert backbone_for(pipe).conditional_rows(rows) == expected


def test_quality_prompts_are_embedded_once_a_run(tiny_pipe, monkeypatch):
    """Offloaded text encoders would come back onto the device beside the network."""
    asked, encode = [], tiny_pipe.encode_prompt

    def encode_prompt(prompt, *args, **kwargs):
        asked.append(prompt)
        return encode(prompt, *args, **kwargs)

    monkeypatch.setattr(tiny_pipe, "encode_prompt", encode_prompt)
    for _ in range(2):  # and again in the next: the encoders may be others
        asked.clear()
        out = lotts.LoTTS(tiny_pipe, lambda images, prompts: [float(i.mean()) for i in images])(
            "a red cat", num_candidates=3, num_refinements=1, num_inference_steps=4
        )
        assert asked[0] == "a red cat"
        assert [text for (text,) in asked[1:]] == [
            "A high-quality image of a red cat.",
            "A low-quality image of a red cat.",
        ]
        assert out.cost.text_encodes == 4  # the prompt and the empty one, then the two
