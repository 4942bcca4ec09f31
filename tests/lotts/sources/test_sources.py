import torch
from watching import brightness

from lotts.sources import AttentionSource, PredictionSource, map_source, recorded_name
from lotts.sources.verifier import VerifierSource


def test_a_source_as_its_name_makes_it_is_recorded_by_name():
    class Seeing:
        def __call__(self, images, prompts):
            return [0.0] * len(images)

        def defect_maps(self, images, prompts):
            return torch.zeros(len(images), 4, 4)

    judge = Seeing()
    for name in ("attention", "prediction", "verifier", "random"):
        assert recorded_name(map_source(name, judge), judge) == name
    others = [PredictionSource((0.5,)), AttentionSource(contrast="batch"), VerifierSource(Seeing()), object()]
    assert [recorded_name(source, judge) for source in others] == [None] * 4
    assert recorded_name(VerifierSource(judge), brightness) is None
