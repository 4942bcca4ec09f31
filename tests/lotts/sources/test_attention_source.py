import pytest
import torch
from watching import brightness

from lotts.backbones import backbone_for
from lotts.localize import LocalizeConfig
from lotts.models import load_pipeline
from lotts.search import run
from lotts.sources import AttentionSource

CONFIGS = [
    LocalizeConfig(propagate=False),
    LocalizeConfig(negative="A bad image of {p}."),
    LocalizeConfig(words=("high", "low")),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_ablated_attention_makes_other_maps(tiny_pipe, config):
    def maps(source):
        out = run(
            tiny_pipe, "a red cat", "lotts", budget="samples=2", num_refinements=1, verifier=brightness, source=source,
            num_inference_steps=4, global_steps=1, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return out.samples[0].heatmaps

    whole, ablated = maps("attention"), maps(AttentionSource(config))
    assert torch.equal(whole["CA_orig"], ablated["CA_orig"])
    assert not torch.equal(whole["P"], ablated["P"])
    assert ("CA'_diff" in ablated) == config.propagate


@pytest.mark.parametrize("contrast", ["probes", "batch"])
def test_the_words_that_are_asked_for_are_read(tiny_pipe, contrast, monkeypatch):
    backbone = type(backbone_for(tiny_pipe))
    asked = []

    def weights(self, prompt, template, words):
        asked.append((prompt, template, words))
        return self.content_weights([prompt], template=template)

    monkeypatch.setattr(backbone, "template_word_weights", weights)

    def maps(config):
        source = AttentionSource(config, contrast=contrast)
        out = run(
            tiny_pipe, "a red cat", "lotts", budget="samples=2", num_refinements=1, verifier=brightness, source=source,
            num_inference_steps=4, global_steps=1, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return out.samples[0].heatmaps

    words = ("high", "low", "quality")
    config = LocalizeConfig(words=words)
    assert torch.equal(maps(config)["P"], maps(LocalizeConfig())["P"])
    assert set(asked) == {("a red cat", config.positive, words), ("a red cat", config.negative, words)}


def test_words_cannot_ride_beside_the_prompt_of_a_transformer():
    source = AttentionSource(LocalizeConfig(words=("high", "low")))
    with pytest.raises(
        ValueError, match=r"expected words=None for FluxPipeline, .* AttentionSource\(contrast='batch'\) can"
    ):
        source.check(backbone_for(load_pipeline("shapes-flux")), "a red cat", 4)
