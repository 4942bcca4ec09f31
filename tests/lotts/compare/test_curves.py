"""Scaling curves by hand: who leads at which row, and how that compares with the reference there."""

from math import isnan

from studying import PROMPTS, study

from lotts.compare.curves import curves_of

#: Rows and scores of what runs led with on their way, by variant and prompt; metrics are the negative of scores.
ONE = {"best_of_n": ([10, 20, 30], [1.0, 2.0, 5.0]), "lotts": ([15, 22], [1.5, 3.0])}
TWO = {"best_of_n": ([10, 20, 30], [0.0, 0.0, 4.0]), "lotts": ([12, 40], [1.0, 9.0])}


def record(rows, scores):
    points = [{"samples": i + 1, "nfe": row, "sample": i} for i, row in enumerate(rows)]
    red = {str(i): [-score] for i, score in enumerate(scores)}
    return {
        "points": points,
        "samples": [{"score": score} for score in scores],
        "metrics": {"red": red},
        "timings": {"at": [row / 10 for row in rows]},
    }


def points_of(variant, metric, axis="nfe", asked=None):
    asked = asked or study(seeds=1, budgets=["nfe=40"])
    done = [(item, record(*(ONE if item.prompt == PROMPTS[0] else TWO)[item.variant.method])) for item in asked.items()]
    return [p for p in curves_of(asked, done) if (p.variant, p.metric, p.axis) == (variant, metric, axis)]


def test_the_reference_has_a_curve_and_nothing_to_be_compared_with():
    points = points_of("best_of_n", "bright")
    assert [(p.x, p.mean) for p in points] == [(10, 0.5), (20, 1.0), (30, 4.5)]
    assert all(isnan(p.difference) and isnan(p.p) for p in points)


def test_a_curve_is_compared_with_the_reference_at_equal_rows():
    name = study().variants[1].name
    points = points_of(name, "bright")
    # From 15 on both runs have a picture; the reference then has 1 and 0, from 20 on 2 and 0, from 30 on 5 and 4.
    assert [(p.x, p.mean, p.difference) for p in points] == [
        (15, 1.25, 0.75),
        (22, 2.0, 1.0),
        (40, 6.0, 1.5),
    ]
    # Differences of the two prompts: 0.5 and 1, 1 and 1, -2 and 5, which no other signs bring nearer to 0.
    assert [p.p for p in points] == [0.5, 0.5, 1.0]
    assert [p.difference for p in points_of(name, "red")] == [-0.75, -1.0, -1.5]


def test_where_the_reference_has_not_begun_nothing_is_compared():
    swapped = study(seeds=1, budgets=["nfe=40"], variants=study().variants[::-1])
    points = points_of("best_of_n", "bright", asked=swapped)
    assert [p.x for p in points if isnan(p.difference)] == [10]
    assert [(p.x, p.difference) for p in points[1:]] == [(20, -0.25), (30, 2.5)]
