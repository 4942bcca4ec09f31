"""Facts about what a comparison consists of, and about its statistics."""

import numpy as np
import pytest

from lotts.compare.statistics import mean_and_error, sign_flip_test, sign_flip_tests
from lotts.compare.study import Study, Variant, literal, split
from lotts.compare.variants import FULL, ablations, default_of, default_sweep, sweeps
from lotts.prompts import Prompt


def study(**changes):
    known = {"prompts": [Prompt("a cat")], "variants": [Variant.parse("lotts")], "budgets": ["samples=2"], "seeds": 1}
    return Study(**known | {"model": "m", "verifier": "shapes"} | changes)


def keys(**changes):
    return [item.key for item in study(**changes).items()]


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 1.0, 1.0], 2 / 8),  # of 8 ways only all up and all down are as far
        ([1.0, 2.0, -3.0], 1.0),
        ([3.0, 1.0], 2 / 4),
        ([0.0, 0.0], 1.0),
        ([5.0], 1.0),
        ([2.0, 1.0, -1.0, 4.0], 6 / 16),  # all one way, or all but one of the ones
        ([0.1 + 0.2, -0.3, 0.0], 1.0),
    ],
)
def test_sign_flips_by_hand(differences, p):
    assert sign_flip_test(np.array(differences)) == pytest.approx(p)
    assert sign_flip_test(-np.array(differences)) == pytest.approx(p)


def test_many_sign_flips_are_drawn_and_agree_with_students_t():
    from scipy import stats

    rng = np.random.default_rng(3)
    for shift in (0.0, 0.1, 0.2):
        differences = rng.normal(shift, 1, 200)
        p = sign_flip_test(differences)
        assert p == sign_flip_test(differences)
        assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert sign_flip_test(np.ones(40)) == pytest.approx(1 / 10_001)


@pytest.mark.parametrize("prompts", [5, 40])
def test_many_sets_of_differences_are_each_tested_alone(prompts):
    sets = np.random.default_rng(1).normal(0.2, 1.0, (prompts, 7)).round(2)
    assert list(sign_flip_tests(sets)) == [sign_flip_test(one) for one in sets.T]
    assert np.isnan(sign_flip_tests(np.zeros((0, 2)))).all()


def test_means_and_errors():
    assert mean_and_error(np.array([1.0, 2.0, 3.0])) == (2.0, pytest.approx(1 / 3**0.5))
    mean, error = mean_and_error(np.array([4.0]))
    assert mean == 4.0
    assert np.isnan(error)


def test_methods_with_options_are_read():
    variant = Variant.parse("lotts(num_refinements=4, source=random, background='fixed')")
    assert variant.options == {"num_refinements": 4, "background": "fixed"}
    assert variant.source == "random"
    assert variant.name.startswith("lotts(num_ref")
    assert split("a,b(c=1,d=(2,3)), e") == ["a", "b(c=1,d=(2,3))", "e"]
    assert [literal(text) for text in ("1", "0.5", "True", "None", "max", "(1, 2)")] == [
        1,
        0.5,
        True,
        None,
        "max",
        (1, 2),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("luck", "expected a method out of resampling"),
        ("lotts(luck=1)", "expected options of lotts out of num_refinements"),
        ("lotts(4)", "expected options like"),
        ("lotts(source=magic)", "expected a map source"),
        ("lotts)", "expected a method like"),
        ("lotts(budget=9)", "expected a budget"),
        (
            "best_of_n(source=random)",
            "expected a source with a method that looks for defects, got 'random' for best_of_n",
        ),
    ],
)
def test_a_wrong_method_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Variant.parse(text)


def test_an_item_is_what_decides_its_outcome():
    (key,) = keys()
    assert keys(variants=[Variant("another name", "lotts", {"num_refinements": 2})]) == [key]  # the default
    assert keys(metrics=["checker"], reference="lotts", prompts=[Prompt("a cat", "cats")]) == [key]
    for changes in (
        {"variants": [Variant.parse("lotts(num_refinements=3)")]},
        {"variants": [Variant("lotts", "lotts", localize={"sign": -1})]},
        {"budgets": ["samples=3"]},
        {"model": "n"},
        {"verifier": "hpsv2"},
        {"settings": {"num_inference_steps": 3}},
        {"versions": {"model": "1"}},
        {"budgets": ["tokens=1032192"]},
        {"prompts": [Prompt("a dog")]},
    ):
        assert keys(**changes) != [key]
    assert len(set(keys(seeds=3, budgets=["samples=2", "nfe=90"]))) == 6
    # A budget of its own is the same run as one of the study's.
    assert keys(variants=[Variant.parse("lotts(budget=nfe=90)")]) == keys(budgets=["nfe=90"])
    assert len(set(keys(variants=[Variant.parse("lotts(budget=nfe=90)")], budgets=["samples=2", "nfe=90"]))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "expected prompts to compare"),
        ({"seeds": 0}, "expected seeds from 1"),
        ({"budgets": ["9"]}, "expected a budget like"),
        ({"budgets": ["nfe=9", "nfe=9.0"]}, "expected budgets that differ"),
        ({"metrics": ["shapes"]}, "it is the verifier that is searched with"),
        ({"reference": "best_of_n"}, "expected a reference out of lotts"),
        ({"variants": [Variant.parse("lotts")] * 2}, "expected variants that differ"),
        ({"threads": 0}, "expected threads to be a whole number from 1 up"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)


def test_ablations_change_one_thing_each():
    found = {variant.name: variant for variant in ablations("lotts_chain", {"num_candidates": 2}, known=True)}
    assert found["no mask"].options["mask_ratio"] == 1.0
    assert found["without CA'_orig"].localize == {"reweighting": "diff"}
    assert found["true mask"].source == "defects"
    assert found[FULL].options == {"num_candidates": 2}
    assert all(variant.options["num_candidates"] == 2 for variant in found.values())
    for method in ("best_of_n", "lotts_adaptive"):
        with pytest.raises(ValueError, match="expected a method"):
            ablations(method)
    with pytest.raises(ValueError, match="got a mask_threshold"):
        ablations("lotts", {"mask_threshold": 0.5})


def test_sweeps_vary_one_setting_and_share_the_default():
    values = default_sweep("lotts", 20)
    assert values == {"k": [1, 2, 8], "r": [0.2, 0.5, 0.8], "t0": [0, 4, 10, 16]}
    found = sweeps("lotts", values, 20)
    assert [variant.name for variant in found][:4] == ["k=1", "k=2", "k=8", "r=0.2"]
    assert len({str(variant.spec()) for variant in found}) == len(found) - 2  # k=2, r=0.5 and t0=10 are one
    assert default_sweep("lotts", 4)["t0"] == [0, 1]  # a masked step and two global ones come after
    assert default_of("lotts", found, 20) == "k=2"
    assert default_of("lotts", found[:1], 20) == ""
    assert "k" not in default_sweep("lotts_chain", 20)
    options = {"background": "fixed", "num_refinements": 4}
    changed = sweeps("lotts", {"k": [1, 4]}, 20, options, "random")
    assert [v.options["background"] for v in changed] == ["fixed"] * 2
    assert {v.source for v in changed} == {"random"}
    assert default_of("lotts", changed, 20, options, "random") == "k=4"
    with pytest.raises(ValueError, match="expected options of lotts"):
        sweeps("lotts", {"luck": [1]}, 20)
