import pytest
import torch
from watching import brightness

from lotts.localize import LocalizeConfig
from lotts.search import run
from lotts.sources import AttentionSource


@pytest.mark.parametrize("config", [LocalizeConfig(propagate=False), LocalizeConfig(negative="A bad image of {p}.")])
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
