import pytest
import torch

from lotts.capture import QUALITY_NEGATIVE, QUALITY_POSITIVE, content_weights, word_weights
from lotts.capture.tokens import template_word_weights


def weighted(tokenizer, input_ids, weights):
    """The tokens of weight 1, without the end-of-word mark."""
    tokens = tokenizer.convert_ids_to_tokens(input_ids.tolist())
    return [token.removesuffix("</w>") for token, weight in zip(tokens, weights.tolist(), strict=True) if weight]


def test_content_leaves_out_stop_words_punctuation_specials_and_padding(clip_tokenizer):
    input_ids, weights = content_weights(clip_tokenizer, ["a red cat, beside THE dog!", "the blue dog"])
    assert weighted(clip_tokenizer, input_ids[0], weights[0]) == ["red", "cat", "dog"]
    assert weighted(clip_tokenizer, input_ids[1], weights[1]) == ["blue", "dog"]
    assert weights.dtype == torch.float32
    assert input_ids.shape == weights.shape == (2, 40)


def test_token_ids_are_those_the_pipelines_use(clip_tokenizer):
    input_ids, _ = content_weights(clip_tokenizer, ["a red cat"], template=QUALITY_POSITIVE)
    stock = clip_tokenizer(
        ["A high-quality image of a red cat."],
        padding="max_length",
        max_length=40,
        truncation=True,
        return_tensors="pt",
    )
    assert torch.equal(input_ids, stock.input_ids)


@pytest.mark.parametrize("template", [QUALITY_POSITIVE, QUALITY_NEGATIVE])
@pytest.mark.parametrize(
    "prompt", ["a red cat", "red cat!", "  the red   cat ", "red-cat", "high quality red cat image"]
)
def test_only_the_prompt_inside_a_template_counts(clip_tokenizer, template, prompt):
    plain_ids, plain = content_weights(clip_tokenizer, [prompt])
    input_ids, weights = content_weights(clip_tokenizer, [prompt], template=template)
    tokens = weighted(clip_tokenizer, input_ids[0], weights[0])
    assert tokens == weighted(clip_tokenizer, plain_ids[0], plain[0])
    assert "red" in tokens


def test_words_of_several_tokens_count_whole(clip_tokenizer):
    input_ids, weights = content_weights(clip_tokenizer, ["a xyz"])
    assert weighted(clip_tokenizer, input_ids[0], weights[0]) == ["x", "y", "z"]


def test_what_truncation_cuts_off_has_no_weight(clip_tokenizer):
    prompt = "red cat " * 40
    _, weights = content_weights(clip_tokenizer, [prompt])
    assert weights.sum() == 38
    assert weights[0, 0] == weights[0, -1] == 0
    input_ids, templated = content_weights(clip_tokenizer, [prompt], template=QUALITY_NEGATIVE)
    assert set(weighted(clip_tokenizer, input_ids[0], templated[0])) == {"red", "cat"}


def test_a_prompt_of_stop_words_counts_all_of_them_and_an_empty_one_none(clip_tokenizer):
    input_ids, weights = content_weights(clip_tokenizer, ["of the", ""])
    assert weighted(clip_tokenizer, input_ids[0], weights[0]) == ["of", "the"]
    assert weights[1].sum() == 0


def test_word_columns_cover_every_occurrence_and_phrases(clip_tokenizer):
    prompt = "a red cat beside a blue Cat"
    weights = word_weights(clip_tokenizer, prompt, ["cat", "blue  cat", "a"])
    input_ids, _ = content_weights(clip_tokenizer, [prompt])
    assert weights.shape == (40, 3)
    columns = [weighted(clip_tokenizer, input_ids[0], column) for column in weights.T]
    assert columns == [["cat", "cat"], ["blue", "cat"], ["a", "a"]]


@pytest.mark.parametrize("word", ["ca", "dog", "", " "])
def test_a_word_that_is_not_in_the_prompt_is_named(clip_tokenizer, word):
    with pytest.raises(ValueError, match=f"the word {word!r} does not occur"):
        word_weights(clip_tokenizer, "a red cat", [word])


def test_a_word_cut_off_by_the_tokenizer_is_an_error(clip_tokenizer):
    with pytest.raises(ValueError, match="lies beyond the 40 tokens"):
        word_weights(clip_tokenizer, "red " * 50 + "dog", ["dog"])


def test_misuse_is_named(clip_tokenizer):
    with pytest.raises(TypeError, match="one string"):
        content_weights(clip_tokenizer, "a red cat")
    with pytest.raises(TypeError, match="one string"):
        word_weights(clip_tokenizer, "a red cat", "cat")
    with pytest.raises(ValueError, match=r"one \{p\}"):
        content_weights(clip_tokenizer, ["a red cat"], template="An image.")
    with pytest.raises(TypeError, match="fast tokenizer"):
        content_weights(object(), ["a red cat"])


@pytest.mark.parametrize(("template", "first"), [(QUALITY_POSITIVE, "high"), (QUALITY_NEGATIVE, "low")])
def test_words_of_a_template_count_outside_of_the_prompt(clip_tokenizer, template, first):
    # The prompt has the words too, which is not what is asked.
    prompt = "a low red cat"
    weights = template_word_weights(clip_tokenizer, prompt, template, ["high", "low", "quality"])
    input_ids, content = content_weights(clip_tokenizer, [prompt], template=template)
    assert "".join(weighted(clip_tokenizer, input_ids[0], weights)) == f"{first}quality"
    assert not (weights * content[0]).any()
    assert weights.shape == content[0].shape


def test_words_after_the_prompt_count_too_and_absent_ones_are_named(clip_tokenizer):
    weights = template_word_weights(clip_tokenizer, "a red cat", "{p}, low quality", ["low"])
    input_ids, _ = content_weights(clip_tokenizer, ["a red cat"], template="{p}, low quality")
    assert "".join(weighted(clip_tokenizer, input_ids[0], weights)) == "low"
    with pytest.raises(ValueError, match=r"expected one of the words 'blurred' in the quality prompt '\{p\}, low"):
        template_word_weights(clip_tokenizer, "a red cat", "{p}, low quality", ["blurred"])
