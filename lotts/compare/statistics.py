"""Means with errors, and the paired test that the tables rest on."""

from __future__ import annotations

import itertools
from math import nan, sqrt

import numpy as np

EXACT, DRAWS, SEED = 12, 10_000, 0


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of [n] values and its standard error, with n - 1; the error of a single value is NaN."""
    n = len(values)
    if not n:
        return nan, nan
    return float(np.mean(values)), float(np.std(values, ddof=1) / sqrt(n)) if n > 1 else nan


def sign_flip_test(differences: np.ndarray) -> float:
    """Two-sided p of paired differences [n] being symmetric around 0: Fisher's randomisation test of their mean.

    The share of all 2^n ways to turn signs around under which the mean lies at least as far from 0 as it does; of 10,000
    drawn ways, themselves included, from 13 differences on (so p is never below 1/10,001).
    """
    return float(sign_flip_tests(differences[:, None])[0])


def sign_flip_tests(differences: np.ndarray) -> np.ndarray:
    """The same of many sets of differences [n, sets], each tested alone; p [sets], NaN without any."""
    n, sets = differences.shape
    if not n:
        return np.full(sets, nan)
    if n <= EXACT:
        totals = np.abs(np.array(list(itertools.product((1.0, -1.0), repeat=n))) @ differences)
    else:
        rng = np.random.default_rng(SEED)
        # A hundred ways at a time: all of them would take gigabytes for tens of thousands of prompts.
        drawn = [(rng.integers(0, 2, (100, n)) * 2.0 - 1.0) @ differences for _ in range(DRAWS // 100)]
        totals = np.abs(np.concatenate([differences.sum(0, keepdims=True), *drawn]))
    # Sums that are equal on paper may differ in the last bit.
    return np.mean(totals >= totals[0] - 1e-12 * np.maximum(1.0, np.abs(differences).sum(0)), axis=0)
