"""Facts about defect maps and masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lotts.localize import LocalizeConfig, contrast, quality_mask, reweight, unit_range


@given(seed=st.integers(0, 10_000), ratio=st.floats(0.001, 1.0), height=st.integers(1, 9), width=st.integers(1, 9))
def test_masks_have_equal_area_and_hold_the_highest_cells(seed, ratio, height, width):
    maps = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    mask = quality_mask(maps, ratio)
    expected = max(1, round(ratio * height * width))
    assert mask.dtype == torch.bool
    assert mask.flatten(1).sum(1).tolist() == [expected] * 3
    for values, chosen in zip(maps, mask, strict=True):
        if not chosen.all():
            assert values[chosen].min() >= values[~chosen].max()


@given(seed=st.integers(0, 10_000), ratio=st.floats(0.001, 1.0), threshold=st.floats(0, 1.2))
def test_a_threshold_leaves_out_what_is_not_above_it(seed, ratio, threshold):
    maps = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(seed))
    mask = quality_mask(maps, ratio, threshold)
    assert torch.equal(mask, quality_mask(maps, ratio) & (maps > threshold))
    assert threshold < 1 or not mask.any()


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), "half"])
def test_a_threshold_is_a_number_from_0_up(threshold):
    with pytest.raises(ValueError, match="mask_threshold"):
        quality_mask(torch.zeros(1, 4, 4), 0.5, threshold)


def test_ties_go_to_the_earlier_cell():
    mask = quality_mask(torch.zeros(1, 2, 4), 0.5)
    assert mask.flatten().tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, float("nan"), "half", None])
def test_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        quality_mask(torch.zeros(1, 4, 4), ratio)


def test_contrast_is_positive_where_the_low_quality_prompt_attends_more():
    positive, negative = torch.tensor([[[0.2, 0.5]]]), torch.tensor([[[0.4, 0.25]]])
    for kind in ("difference", "log_ratio"):
        up = contrast(positive, negative, LocalizeConfig(contrast=kind))
        assert up[0, 0, 0] > 0 > up[0, 0, 1]
        assert torch.equal(contrast(positive, negative, LocalizeConfig(contrast=kind, sign=-1)), -up)


def test_log_ratio_of_nothing_is_finite():
    zero = torch.zeros(1, 2, 2)
    assert torch.equal(contrast(zero, zero, LocalizeConfig(contrast="log_ratio")), zero)


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_unit_range_ignores_scale_and_shift(seed, scale, shift):
    maps = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scaled = unit_range(maps * scale + shift)
    assert scaled.amin() == 0
    assert scaled.amax() == 1
    torch.testing.assert_close(scaled, unit_range(maps), atol=1e-9, rtol=0)


def test_a_constant_map_carries_nothing():
    assert unit_range(torch.full((1, 3, 3), 7.0)).eq(0).all()


def test_reweighting_follows_its_name():
    diff, original = torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[4.0, 2.0, 0.0]]])
    expected = {
        "product": [0.0, 0.25, 0.0],
        "sum": [0.5, 0.5, 0.5],
        "diff": [0.0, 0.5, 1.0],
        "orig": [1.0, 0.5, 0.0],
    }
    for name, values in expected.items():
        assert reweight(diff, original, LocalizeConfig(reweighting=name)).flatten().tolist() == values


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
def test_both_windows_hold_at_least_one_step_of_the_schedule(steps):
    config = LocalizeConfig()
    for name in ("cross_steps", "self_steps"):
        window = config.step_range(name, steps)
        assert len(window) >= 1
        assert window[0] >= 0
        assert window[-1] < steps
    assert config.step_range("cross_steps", steps)[0] <= config.step_range("self_steps", steps)[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"contrast": "ratio"},
        {"sign": 0},
        {"reweighting": "max"},
        {"cross_steps": (0.5, 0.5)},
        {"self_steps": (0.5, 1.5)},
        {"cross_steps": (0.9, 1.0), "self_steps": (0.5, 1.0)},
        {"words": ("blurred",)},
        {"words": ("high",)},  # which the negative quality prompt has not
        {"words": ("p",)},
    ],
)
def test_bad_configurations_say_what_was_expected(fields):
    with pytest.raises(ValueError, match="expected"):
        LocalizeConfig(**fields)


@pytest.mark.parametrize("template", ["A bad image.", "A {q} image of {p}."])
def test_a_quality_prompt_holds_the_prompt(template):
    with pytest.raises(ValueError, match=r"expected negative with \{p\} once"):
        LocalizeConfig(negative=template)


def test_words_are_a_tuple_and_not_a_string():
    with pytest.raises(TypeError, match=r"expected words as a tuple of strings, .* write \('high',\)"):
        LocalizeConfig(words="high")
