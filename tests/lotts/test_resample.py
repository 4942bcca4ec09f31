"""Facts about localised resampling on a tiny pipeline of the true classes."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from lotts.backbones import backbone_for
from lotts.resample import Trajectory, denoise, derive_seed, grow, refine, renoise
from lotts.resample_config import BACKGROUNDS, ResampleConfig

STEPS, SIZE = 6, (16, 16)


@pytest.fixture(params=[DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def any_pipe(tiny_pipe, request):
    tiny_pipe.scheduler = request.param.from_config(tiny_pipe.scheduler.config)
    return tiny_pipe


def candidates(backbone, seeds=(3,), **options):
    text = backbone.encode_prompt("a red cat", "", 3.0)
    with torch.no_grad():
        return text, denoise(backbone, text, list(seeds), SIZE, STEPS, **options)


def refined(backbone, text, base, masks, config, indices=None, **options):
    with torch.no_grad():
        return refine(backbone, text, base, masks, indices or list(range(len(base))), config, STEPS, **options)


def relative_difference(a, b):
    return float((a - b).abs().max() / b.abs().max())


def half_mask(rows=1):
    mask = torch.zeros(rows, *SIZE, dtype=torch.bool)
    mask[:, 4:12, 2:9] = True
    return mask


def test_candidates_are_the_stock_pipelines_pictures(any_pipe):
    # Ours first: what a schedule says must not be left over from the stock pipeline's call.
    _, (ours,) = candidates(backbone_for(any_pipe))
    stock = any_pipe(
        "a red cat",
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    assert torch.equal(ours.result[None], stock)
    assert len(ours.latents) == STEPS + 1


def test_deterministic_samplers_restart_exactly(tiny_pipe):
    for scheduler in (DDIMScheduler, EulerDiscreteScheduler):
        tiny_pipe.scheduler = scheduler.from_config(tiny_pipe.scheduler.config)
        backbone = backbone_for(tiny_pipe)
        text, (base,) = candidates(backbone)
        everything = torch.ones(1, *SIZE, dtype=torch.bool)
        nothing_new = ResampleConfig(noise_step=3, global_steps=3)
        # Nothing is masked away and nothing injected: with an empty mask the loop would only replay, so drive it by hand.
        backbone.restart(STEPS, 3, SIZE)
        latents = base.latents[3][None]
        with torch.no_grad():
            for step in range(3, STEPS):
                latents = backbone.step(backbone.predict(latents, step, text), step, latents, None)
        assert torch.equal(latents[0], base.result)
        assert refined(backbone, text, [base], ~everything, nothing_new)[0].latents[-1] is base.latents[-1]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_outside_the_mask_latents_are_the_background_until_global_integration(any_pipe, background):
    backbone = backbone_for(any_pipe)
    text, (base,) = candidates(backbone)
    config = ResampleConfig(noise_step=2, global_steps=2, background=background)
    mask = half_mask()
    (out,) = refined(backbone, text, [base], mask, config)
    outside, last_masked = ~mask[0], STEPS - config.global_steps
    for step in range(config.noise_step, last_masked + 1):
        if background == "replay":
            expected = base.latents[step]
        elif background == "clean":
            expected = base.result
        else:
            stream = step if background == "fresh" else 0
            expected = renoise(backbone, base.result[None], step, [derive_seed(3, background, 0)], stream)[0]
        assert torch.equal(out.latents[step][:, outside], expected[:, outside])
        assert not torch.equal(out.latents[step][:, mask[0]], expected[:, mask[0]])
    assert not torch.equal(out.result[:, outside], base.result[:, outside])


def test_without_global_integration_the_result_keeps_the_background(tiny_pipe):
    backbone = backbone_for(tiny_pipe)
    text, (base,) = candidates(backbone)
    mask = half_mask()
    (out,) = refined(backbone, text, [base], mask, ResampleConfig(noise_step=2, global_steps=0))
    assert torch.equal(out.result[:, ~mask[0]], base.result[:, ~mask[0]])
    assert not torch.equal(out.result[:, mask[0]], base.result[:, mask[0]])


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_mask_is_the_identity(any_pipe, background):
    backbone = backbone_for(any_pipe)
    text, (base,) = candidates(backbone)
    empty = torch.zeros(1, *SIZE, dtype=torch.bool)
    (out,) = refined(backbone, text, [base], empty, ResampleConfig(noise_step=1, background=background))
    assert torch.equal(out.result, base.result)


def test_numbers_depend_on_seed_and_refinement_alone(any_pipe):
    backbone = backbone_for(any_pipe)
    text, (base,) = candidates(backbone, seeds=(5,))
    config = ResampleConfig(noise_step=1, background="fresh")
    (first,) = refined(backbone, text, [base], half_mask(), config, [0])
    (again,) = refined(backbone, text, [base], half_mask(), config, [0])
    (second,) = refined(backbone, text, [base], half_mask(), config, [1])
    assert torch.equal(first.result, again.result)
    assert not torch.equal(first.result, second.result)


def test_batches_agree_with_single_samples_to_rounding(any_pipe):
    backbone = backbone_for(any_pipe)
    text, pair = candidates(backbone, seeds=(5, 9))
    _, (alone,) = candidates(backbone, seeds=(9,))
    assert relative_difference(pair[1].result, alone.result) < 1e-4
    config = ResampleConfig(noise_step=1)
    together = refined(backbone, text, [pair[0], alone], half_mask(2), config, [0, 1])
    (single,) = refined(backbone, text, [alone], half_mask(), config, [1])
    assert relative_difference(together[1].result, single.result) < 1e-4


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_fused_updates_are_the_schedulers_own_to_rounding(tiny_pipe, scheduler, monkeypatch):
    tiny_pipe.scheduler = scheduler.from_config(tiny_pipe.scheduler.config)
    backbone = backbone_for(tiny_pipe)
    text, (base,) = candidates(backbone)
    config = ResampleConfig(noise_step=1, background="fixed")
    (fused,) = refined(backbone, text, [base], half_mask(), config)
    monkeypatch.setattr(backbone, "linear_update", lambda step: None)
    (own,) = refined(backbone, text, [base], half_mask(), config)
    assert relative_difference(fused.result, own.result) < 1e-4


def test_samplers_that_are_not_linear_are_refined_too(tiny_pipe):
    tiny_pipe.scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config, clip_sample=True)
    backbone = backbone_for(tiny_pipe)
    text, (base,) = candidates(backbone)
    assert backbone.linear_update(0) is None
    mask = half_mask()
    (out,) = refined(backbone, text, [base], mask, ResampleConfig(noise_step=2, global_steps=0))
    assert torch.equal(out.result[:, ~mask[0]], base.result[:, ~mask[0]])
    assert not torch.equal(out.result[:, mask[0]], base.result[:, mask[0]])


def test_a_prediction_does_not_depend_on_the_steps_before_it(any_pipe):
    backbone = backbone_for(any_pipe)
    text, (base,) = candidates(backbone)
    latents = base.latents[2][None]
    with torch.no_grad():
        after_a_run = backbone.predict(latents, 2, text)
        backbone.restart(STEPS, 2, SIZE)
        assert torch.equal(backbone.predict(latents, 2, text), after_a_run)


def test_replay_needs_a_recorded_run(tiny_pipe):
    backbone = backbone_for(tiny_pipe)
    text, (base,) = candidates(backbone)
    foreign = Trajectory(1, [*[None] * STEPS, base.result])
    with pytest.raises(ValueError, match="fixed"):
        refined(backbone, text, [foreign], half_mask(), ResampleConfig(noise_step=1))


def test_the_callback_may_replace_latents(tiny_pipe):
    backbone = backbone_for(tiny_pipe)
    _, (out,) = candidates(
        backbone, on_step=lambda step, latents: torch.zeros_like(latents) if step == STEPS - 1 else None
    )
    assert out.result.eq(0).all()


@given(cells=st.integers(0, 4), row=st.integers(0, 8), column=st.integers(0, 8))
def test_growing_one_cell_gives_a_square(cells, row, column):
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, row, column] = True
    expected = torch.zeros_like(mask)
    expected[0, max(0, row - cells) : row + cells + 1, max(0, column - cells) : column + cells + 1] = True
    assert torch.equal(grow(mask, cells), expected)


def test_a_soft_ring_joins_cell_by_cell(tiny_pipe):
    backbone = backbone_for(tiny_pipe)
    text, (base,) = candidates(backbone)
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[:, 6:10, 6:10] = True
    (out,) = refined(backbone, text, [base], mask, ResampleConfig(noise_step=0, global_steps=0, soft_ring=2))
    changed = [(out.latents[i] != base.latents[i]).any(0) for i in range(STEPS + 1)]
    assert torch.equal(changed[0], mask[0])
    for earlier, later in itertools.pairwise(changed):
        assert (later | ~earlier).all()
    assert torch.equal(changed[-1], grow(mask, 2)[0])


def test_derived_seeds_are_63_bit_and_distinct():
    seeds = {derive_seed(s, purpose, k) for s in range(50) for purpose in ("inject", "step") for k in range(5)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"noise_step": -1}, "noise_step"),
        ({"noise_step": 2, "background": "blur"}, "replay"),
        ({"noise_step": 2, "global_steps": 1.5}, "global_steps"),
        ({"noise_step": 2, "dilate": -1}, "dilate"),
    ],
)
def test_bad_configurations_say_what_was_expected(fields, words):
    with pytest.raises(ValueError, match=words):
        ResampleConfig(**fields)


@pytest.mark.parametrize("fields", [{"noise_step": 6}, {"noise_step": 50}, {"noise_step": 5, "global_steps": 2}])
def test_a_noise_step_outside_the_schedule_is_refused(fields):
    with pytest.raises(ValueError, match="noise_step"):
        ResampleConfig(**fields).check_schedule(STEPS)


@pytest.mark.parametrize(("steps", "expected"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (50, 2)])
def test_by_default_global_integration_leaves_a_masked_step(steps, expected):
    config = ResampleConfig.of(steps)
    assert config.global_steps == expected
    config.check_masked(steps)
    with pytest.raises(ValueError, match=r"nothing would be refined inside the mask\. Leave global_steps out"):
        ResampleConfig.of(steps, None, steps - config.noise_step).check_masked(steps)
