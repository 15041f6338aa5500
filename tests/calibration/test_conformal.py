"""Order statistics and their promises: against scipy, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from zsad.calibration.conformal import (
    binomial_cdf,
    p_value,
    promised_rate,
    scores_needed,
    share_interval,
    upper_limit,
)
from zsad.errors import CalibrationError

SCORES = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=60)
RATES = st.floats(0.001, 0.9)
CONFIDENCES = st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.999])


@pytest.mark.parametrize(("count", "rate"), [(1, 0.3), (17, 0.01), (400, 0.95), (50_000, 0.001)])
def test_binomial_sums_are_scipys(count: int, rate: float) -> None:
    places = np.arange(count + 1)
    np.testing.assert_allclose(binomial_cdf(count, rate), stats.binom.cdf(places, count, rate), atol=1e-11)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (0, 40), (3, 7), (40, 40), (13, 1000)])
def test_intervals_are_clopper_and_pearsons(hits: int, count: int) -> None:
    own = share_interval(hits, count, confidence=0.9)
    theirs = stats.binomtest(hits, count).proportion_ci(0.9, method="exact")
    assert own == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@settings(max_examples=80)
@given(SCORES, RATES, CONFIDENCES)
def test_limit_is_the_lowest_order_statistic_that_keeps_the_promise(
    scores: list[float], target: float, confidence: float
) -> None:
    limit = upper_limit(scores, target=target, confidence=confidence)
    values, count = sorted(scores), len(scores)

    def kept(k: int) -> bool:  # 1-based; for continuous scores the rate above s_k is Beta(n + 1 - k, k)
        if confidence == 0:
            return (count + 1 - k) / (count + 1) <= target + 1e-12
        return bool(stats.beta.cdf(target, count + 1 - k, k) >= confidence - 1e-9)

    good = [k for k in range(1, count + 1) if kept(k)]
    assert limit.met == bool(good)
    assert limit.value == values[min(good) - 1 if good else count - 1]
    if not good:
        rate = 1 / (count + 1) if confidence == 0 else stats.beta.ppf(confidence, 1, count)
        assert limit.rate == pytest.approx(rate, abs=1e-9) and limit.rate > target


@settings(max_examples=60)
@given(SCORES, st.tuples(RATES, RATES), CONFIDENCES)
def test_limit_falls_as_the_target_rises(
    scores: list[float], targets: tuple[float, float], confidence: float
) -> None:
    strict, loose = sorted(targets)
    high = upper_limit(scores, target=strict, confidence=confidence)
    low = upper_limit(scores, target=loose, confidence=confidence)
    assert low.value <= high.value and min(scores) <= low.value <= max(scores)
    surer = upper_limit(scores, target=loose, confidence=max(confidence, 0.97))
    assert surer.value >= low.value


@settings(max_examples=60)
@given(SCORES, st.floats(0, 1), RATES)
def test_p_value_agrees_with_the_limit_on_average(scores: list[float], score: float, target: float) -> None:
    chance = p_value(np.sort(scores), score)
    assert chance == (1 + sum(value >= score for value in scores)) / (len(scores) + 1)
    limit = upper_limit(scores, target=target, confidence=0)
    if limit.met and abs(target * (len(scores) + 1) % 1 - 0.5) < 0.499:
        assert (score > limit.value) == (chance <= target)


@pytest.mark.parametrize("tied", [False, True])
def test_false_alarm_rate_is_kept_at_the_confidence(tied: bool) -> None:
    """400 calibrations of 60 scores each: at least 90 % of them keep 8 %, and all of them 8 % on average."""
    rng = np.random.default_rng(5)
    draws, fresh = rng.normal(size=(400, 60)), rng.normal(size=20_000)
    if tied:
        draws, fresh = np.round(draws, 1), np.round(fresh, 1)
    rates = {}
    for confidence in (0.9, 0.0):
        limits = [upper_limit(row, target=0.08, confidence=confidence).value for row in draws]
        rates[confidence] = np.array([(fresh > limit).mean() for limit in limits])
    noise = 3 * math.sqrt(0.9 * 0.1 / 400)
    assert (rates[0.9] <= 0.08).mean() >= 0.9 - noise
    assert rates[0.0].mean() <= 0.08 + 0.005
    if not tied:  # and not by being far too careful
        assert rates[0.0].mean() >= 0.06 and (rates[0.9] <= 0.08).mean() <= 0.97


def test_how_many_are_needed_is_exactly_enough() -> None:
    for target in (0.3, 0.05, 0.01, 0.001):
        for confidence in (0.0, 0.5, 0.95, 0.99):
            needed = scores_needed(target, confidence)
            assert promised_rate(needed, confidence) <= target + 1e-12
            assert needed == 1 or promised_rate(needed - 1, confidence) > target
            assert upper_limit(np.arange(needed), target=target, confidence=confidence).met


def test_all_equal_and_two_scores() -> None:
    limit = upper_limit([0.4] * 30, target=0.1, confidence=0.9)
    assert limit.value == 0.4 and p_value(np.full(30, 0.4), 0.4) == 1.0
    limit = upper_limit([0.2, 0.7], target=0.01, confidence=0.95)
    assert (limit.value, limit.met) == (0.7, False)
    assert limit.rate == pytest.approx(1 - math.sqrt(0.05))


@pytest.mark.parametrize("scores", [[], [0.1, math.nan], [math.inf, 0.2]])
def test_nothing_and_no_numbers_are_refused(scores: list[float]) -> None:
    with pytest.raises(CalibrationError, match="expected"):
        upper_limit(scores, target=0.1, confidence=0.9)
    with pytest.raises(CalibrationError, match="NaN"):
        p_value(np.array([0.1]), math.nan)


@pytest.mark.parametrize(
    ("target", "confidence"), [(0, 0.9), (1, 0.9), (math.nan, 0.9), (0.1, 1), (0.1, -0.1)]
)
def test_impossible_wishes(target: float, confidence: float) -> None:
    with pytest.raises(CalibrationError, match="expected"):
        upper_limit([0.1], target=target, confidence=confidence)
