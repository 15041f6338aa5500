from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from zsad.calibration.drift import _kolmogorov, compare, ks_test, martingale
from zsad.errors import CalibrationError


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_ks_is_scipys_exact_one(first: int, second: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=first), rng.normal(0.5, size=second)
    distance, chance = ks_test(one, other)
    theirs = stats.ks_2samp(one, other, method="exact")
    assert distance == pytest.approx(theirs.statistic, abs=1e-12)
    assert chance == pytest.approx(theirs.pvalue, abs=1e-9)


def test_large_samples_take_kolmogorovs_distribution() -> None:
    for value in (0.1, 0.3, 0.8, 1.36, 3.0):
        assert _kolmogorov(value) == pytest.approx(stats.kstwobign.sf(value), abs=1e-9)
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=3000), rng.normal(0.05, size=3000)
    assert ks_test(one, other)[1] == pytest.approx(stats.ks_2samp(one, other).pvalue, abs=0.01)


def test_alarms_without_drift_are_rarer_than_stated() -> None:
    rng = np.random.default_rng(1)
    alarms = [
        compare(
            rng.normal(size=40), rng.normal(size=30).tolist(), threshold=2, alarm_rate=0.2, seed=run
        ).drifted
        for run in range(120)
    ]
    assert np.mean(alarms) <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / 120)


def test_ties_raise_no_alarm() -> None:
    drift = compare([0.5] * 30, [0.5] * 200, threshold=0.5, alarm_rate=0.05)
    assert not drift.drifted and drift.ks_p == 1.0 and drift.above == 0


@pytest.mark.parametrize(("shift", "word"), [(1.5, "higher"), (-1.5, "lower")])
def test_shift_in_either_direction_is_found_and_dated(shift: float, word: str) -> None:
    rng = np.random.default_rng(2)
    new = np.concatenate([rng.normal(size=100), rng.normal(shift, size=300)]).tolist()
    drift = compare(rng.normal(size=200), new, threshold=2.5)
    assert drift.drifted and drift.ks_alarm and f"all images score {word}" in drift.kind
    assert drift.since is not None and 100 < drift.since < 200
    assert drift.quantiles[2][0] == 0.5


def test_more_defects_are_told_from_a_shift() -> None:
    rng = np.random.default_rng(3)
    new = np.where(rng.random(400) < 0.2, rng.normal(6, 0.5, 400), rng.normal(size=400)).tolist()
    drift = compare(rng.normal(size=300), new, threshold=2.5)
    assert drift.drifted and "more anomalous images" in drift.kind
    assert drift.above_interval[0] < drift.above / drift.count < drift.above_interval[1]


def test_martingale_of_one_image_is_the_bet_on_its_rank() -> None:
    # Higher than all 4: p-value draw / 5; the mixed capital after one step is the mean of the three bets, which is 1.
    assert martingale([1.0, 2, 3, 4], [9.0])[0] == pytest.approx(0, abs=1e-12)
    path = martingale(np.arange(200.0), (500 + np.arange(60.0)).tolist())
    # Bets of 1 + (1/2 - p) on p-values below 1 / 200, jumping away at a rate of 0.01 and mixed with two others.
    assert 60 * math.log(1.49) - 3 < path[-1] < 60 * math.log(1.5)
    np.testing.assert_array_equal(path, martingale(np.arange(200.0), (500 + np.arange(60.0)).tolist()))


def test_no_numbers_are_refused() -> None:
    for new in ([], [math.nan]):
        with pytest.raises(CalibrationError, match="expected"):
            compare([0.1, 0.2], new, threshold=0.5)
    with pytest.raises(CalibrationError, match="alarm rate"):
        compare([0.1], [0.2], threshold=0.5, alarm_rate=0)
