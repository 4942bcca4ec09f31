"""Drawings know which words are about which of their cells, and attention can be told."""

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, _get_qkv_projections

from lotts.shapes import build_flux
from lotts.shapes.draw import draw
from lotts.shapes.grounding import Grounding, owners_of, words_of
from lotts.shapes.scenes import MAX_OBJECTS, QUALITY_PREFIX, caption, parse, sample_scene
from lotts.shapes.train_denoiser import WEIGHTS


@pytest.fixture(scope="module")
def tokenizer():
    return build_flux.load_t5_tokenizer(WEIGHTS / "flux" / "tokenizer_2")


@pytest.mark.parametrize("cells", [8, 16])
def test_a_cell_belongs_to_what_covers_it(cells):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, 4)
        drawing = draw(scene, rng)
        owners = owners_of(drawing, cells)
        assert owners.shape == (cells, cells)
        for number, (item, spot) in enumerate(zip(scene.items, drawing.placed, strict=True), 1):
            if item.shape != "ring":  # whose middle is ground
                assert owners[int(spot.y * cells / 128), int(spot.x * cells / 128)] == number
        empty = ~drawing.objects.any(0).reshape(cells, 128 // cells, cells, -1).any((1, 3))
        assert empty.any()
        assert not owners[empty].any()


@pytest.mark.parametrize("template", ["{}", *QUALITY_PREFIX.values()])
def test_the_words_of_an_object_are_those_that_name_it(tokenizer, template):
    rng = np.random.default_rng(3)
    texts = [template.format(caption(sample_scene(rng, 2 + i % 15), rng)) for i in range(60)] + [""]
    read = tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)
    words = words_of(texts, read.offset_mapping)
    assert words.shape == (61, 1 + MAX_OBJECTS, read.input_ids.shape[1])
    assert not words[-1].any()
    assert not words[:, 0].any()
    for text, ids, found in zip(texts[:-1], read.input_ids, words, strict=False):
        items = parse(text).items
        for number, item in enumerate(items, 1):
            said = tokenizer.decode(ids[found[number]]).split()
            assert said[-2:] == [item.colour, item.shape]
            assert len(said) == 2 or said[0] in ("small", "tiny", "large", "big")
        assert not found[len(items) + 1 :].any()


class _Told(FluxAttnProcessor):
    """Attention as ever, with the full joint probabilities beside it."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        q, k, _, text_q, text_k, _ = (
            x.unflatten(-1, (-1, attn.head_dim))
            for x in _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        )
        q = torch.cat([attn.norm_added_q(text_q), attn.norm_q(q)], 1)
        k = torch.cat([attn.norm_added_k(text_k), attn.norm_k(k)], 1)
        cos, sin = (x[None, :, None].double() for x in image_rotary_emb)

        def turned(x):
            even, odd = x.double().unflatten(-1, (-1, 2)).unbind(-1)
            return x.double() * cos + torch.stack([-odd, even], -1).flatten(-2) * sin

        scores = torch.einsum("bihd,bjhd->bhij", turned(q), turned(k)) / attn.head_dim**0.5
        self.seen.append(scores.softmax(-1)[:, :, text_k.shape[1] :, : text_k.shape[1]])
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


def _call(model, batch, text, side, seed=0):
    g = torch.Generator().manual_seed(seed)
    places = build_flux.places(side, torch.device("cpu"))
    return places, {
        "hidden_states": torch.randn(batch, side * side, 16, generator=g),
        "timestep": torch.rand(batch, generator=g),
        "pooled_projections": torch.randn(batch, 128, generator=g),
        "encoder_hidden_states": torch.randn(batch, text, 128, generator=g),
        "txt_ids": torch.zeros(text, 3),
        "img_ids": places,
    }


def test_the_error_is_that_of_the_blocks_own_attention():
    torch.manual_seed(0)
    model, batch, text, side = build_flux.transformer(), 3, 7, 4
    for parameter in model.parameters():  # blocks begin as identities: give them something to do
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    words = torch.zeros(batch, 1 + MAX_OBJECTS, text, dtype=torch.bool)
    words[0, 1, 0:2] = words[0, 2, 4:7] = words[1, 1, 3] = True  # and no words at all in row 2
    owners = torch.randint(0, 3, (batch, side * side), generator=torch.Generator().manual_seed(1))
    owners[1].clamp_(max=1)
    places, arguments = _call(model, batch, text, side)
    with Grounding(model) as grounding:
        model(**arguments)
    got = grounding.error(places, owners, words)

    seen: list[torch.Tensor] = []
    for block in model.transformer_blocks:
        block.attn.set_processor(_Told(seen))
    model(**arguments)
    expected = []
    for joint in seen:
        share = (joint / joint.sum(-1, keepdim=True)).mean(1)
        for b in range(batch):
            for i in range(side * side):
                if owners[b, i] and words[b, owners[b, i]].any():
                    expected.append(-share[b, i, words[b, owners[b, i]]].sum().log())
    assert float(got.detach()) == pytest.approx(float(torch.stack(expected).mean().detach()), rel=1e-4)


def test_attention_does_what_it_is_told_and_the_hooks_go():
    torch.manual_seed(0)
    model, text, side = build_flux.transformer(), 6, 4
    places, arguments = _call(model, 2, text, side)
    words = torch.zeros(2, 1 + MAX_OBJECTS, text, dtype=torch.bool)
    words[:, 1, 1] = words[:, 2, 4] = True
    owners = (1 + (torch.arange(side * side) % side >= side // 2).long()).expand(2, -1)  # left and right halves
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(25):
        with Grounding(model) as grounding:
            model(**arguments)
        error = grounding.error(places, owners, words)
        error.backward()
        optimiser.step()
        optimiser.zero_grad()
        errors.append(float(error.detach()))
    assert errors[0] > 1.2
    assert errors[-1] < 0.4
    assert not any(module._forward_hooks for module in model.modules())


def test_dropped_captions_ask_nothing():
    model = build_flux.transformer()
    places, arguments = _call(model, 2, 5, 4)
    with Grounding(model) as grounding:
        model(**arguments)
    words = torch.zeros(2, 1 + MAX_OBJECTS, 5, dtype=torch.bool)
    assert not grounding.error(places, torch.ones(2, 16, dtype=torch.long), words).any()
