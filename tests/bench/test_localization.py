"""What the localisation study's taps read is what capture records."""

import pytest
import torch

from bench import embedded
from bench.localization_taps import tapped
from lotts.capture import AttentionRecorder
from lotts.capture.tokens import QUALITY_NEGATIVE, QUALITY_POSITIVE

PROMPT = "a red circle left of a small blue ring"


@torch.no_grad()
@pytest.mark.parametrize("model", ["shapes-sd", "shapes-flux"])
def test_taps_read_what_capture_records(model):
    backbone, text = embedded.backbone(model), embedded.encode(model, PROMPT)
    size = backbone.latent_size(*backbone.default_size)
    latents = backbone.initial_latents(5, size)

    def probe(template):
        return (
            backbone.embed([template.format(p=PROMPT)]).tokens,
            backbone.content_weights([PROMPT], template=template),
        )

    backbone.restart(4, 1, size)
    with tapped(backbone, PROMPT) as taps:
        backbone.predict(latents, 1, text)
    recorder = AttentionRecorder(
        backbone.network,
        backbone.content_weights([PROMPT])[..., None],
        probe(QUALITY_POSITIVE),
        probe(QUALITY_NEGATIVE),
        latent_size=size,
        order=backbone.order,
    )
    recorder.record_cross = True
    if backbone.doubles_rows:
        recorder.rows = slice(1, 2)
    backbone.restart(4, 1, size)
    with recorder:
        backbone.predict(latents, 1, text)
    recorded = recorder.layer_maps("cross")
    read = {name: tap.readings["content"] for name, tap in taps.items() if tap.readings}
    assert set(read) == set(recorded)
    for name, maps in recorded.items():
        (columns,) = read[name]
        torch.testing.assert_close(columns.T, maps[0].mean(0).flatten(1), rtol=1e-3, atol=1e-6)
    spread = [tap.spread[0].float() for tap in taps.values() if tap.spread]
    assert len(spread) == (len(read) if backbone.order else len(taps) - len(read))
    for matrix in spread:
        torch.testing.assert_close(matrix.sum(-1), torch.ones(len(matrix)), rtol=0, atol=5e-3)
