"""Distribution-free guarantees: thresholds as order statistics, exact bounds, p-values.

Given the scores s_1 <= ... <= s_n of n normal images and a new normal image exchangeable with them:

* the p-value of its score s, (1 + #{s_i >= s}) / (n + 1), is at most a with probability at most a (Vovk et al.,
  Algorithmic Learning in a Random World, 2005, chapter 2);
* the rate of scores above s_k is itself random. For continuous scores it is distributed as Beta(n + 1 - k, k), with
  ties it is smaller; so it stays below a with probability P(Bin(n, a) >= n + 1 - k), whatever the distribution of
  the scores (Wilks, 1941: tolerance limits).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsad.errors import CalibrationError

Floats = NDArray[np.float64]
_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class UpperLimit:
    """An upper limit for new scores, computed from calibration scores.

    Attributes:
        value: scores above it are alarms.
        rate: bound of the false alarm rate at the given confidence.
        met: false if there were too few scores for the target, which `rate` then exceeds.
    """

    value: float
    rate: float
    met: bool


def check_scores(scores: ArrayLike, *, what: str = "scores") -> Floats:
    """Return scores (n,) as sorted float64; CalibrationError if there are none or some are not finite."""
    values = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if values.size == 0:
        raise CalibrationError(
            f"there are no {what} to calibrate with, expected at least 1: name more images"
        )
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise CalibrationError(
            f"{count} of {values.size} {what} are not finite, expected none; check the model's output"
        )
    return values


def check_rate(rate: float, *, name: str) -> None:
    """Raise CalibrationError unless 0 < rate < 1."""
    if not 0 < rate < 1:
        raise CalibrationError(f"{name} is {rate:g}, expected a share above 0 and below 1, such as 0.01")


def check_confidence(confidence: float) -> None:
    """Raise CalibrationError unless 0 <= confidence < 1."""
    if not 0 <= confidence < 1:
        raise CalibrationError(
            f"confidence is {confidence:g}, expected 0 (a promise on average) or more, and less than 1; usual is 0.95"
        )


def upper_limit(scores: ArrayLike, *, target: float, confidence: float) -> UpperLimit:
    """Return the lowest order statistic that new scores exceed at most at the rate `target`, with `confidence`.

    With too few scores for the target it is the highest score.

    Args:
        scores: (n,) of normal images, any order.
        target: false alarm rate, in (0, 1).
        confidence: in [0, 1), that the rate holds for this calibration; 0 guarantees it on average over calibrations
            (split conformal prediction).

    Raises:
        CalibrationError: no scores, NaN, or a number out of range.

    Example:
        >>> upper_limit(range(1, 101), target=0.05, confidence=0).value
        96.0
        >>> upper_limit(range(1, 101), target=0.05, confidence=0.95).value
        99.0
    """
    check_rate(target, name="target rate")
    check_confidence(confidence)
    values = check_scores(scores)
    count = values.size
    above = _allowed_above(count, target, confidence)
    met = above >= 1
    above = max(above, 1)
    rate = target if met else promised_rate(count, confidence, above=above)
    return UpperLimit(float(values[count - above]), rate, met)


def _allowed_above(count: int, target: float, confidence: float) -> int:
    """Return the largest m = n + 1 - k for which the k-th order statistic meets the target; 0 if none does."""
    if confidence == 0:
        # A product such as 0.07 * 100 may fall short of a whole number by rounding.
        return min(count, math.floor(target * (count + 1) * (1 + 1e-12)))
    below = binomial_cdf(count, target)
    # P(Bin(n, a) >= m) = 1 - cdf(m - 1) must reach the confidence.
    return int(np.searchsorted(below, 1 - confidence + 1e-15, side="right"))


def promised_rate(count: int, confidence: float, *, above: int = 1) -> float:
    """Return the smallest false alarm rate that `count` scores guarantee with the `above`-th highest as the limit.

    Example:
        >>> round(promised_rate(40, 0.95), 4)
        0.0722
    """
    check_confidence(confidence)
    if confidence == 0:
        return above / (count + 1)
    return _solve(lambda rate: 1 - _cdf_at(count, above - 1, rate) >= confidence)


def scores_needed(target: float, confidence: float) -> int:
    """Return the smallest number n of normal scores with 1 - (1 - target)^n >= confidence.

    Example:
        >>> scores_needed(0.01, 0.95), scores_needed(0.01, 0)
        (299, 99)
    """
    check_rate(target, name="target rate")
    check_confidence(confidence)
    if confidence == 0:
        return max(1, math.ceil(1 / target - 1 - 1e-9))
    return max(1, math.ceil(math.log(1 - confidence) / math.log1p(-target) - 1e-9))


def p_value(scores: Floats, score: float) -> float:
    """Return the conformal p-value (1 + #{scores >= score}) / (n + 1).

    Args:
        scores: (n,), sorted upwards.
        score: of the new image.

    Raises:
        CalibrationError: the score is NaN.

    Example:
        >>> p_value(np.array([0.1, 0.2, 0.3]), 0.2)
        0.75
    """
    if math.isnan(score):
        raise CalibrationError("the score is NaN, expected a number; check the model's output")
    reaching = scores.size - int(np.searchsorted(scores, score, side="left"))
    return (1 + reaching) / (scores.size + 1)


def binomial_cdf(count: int, rate: float) -> Floats:
    """Return P(Bin(count, rate) <= j) for j = 0..count, each to about 1e-12.

    Args:
        count: n, at least 0.
        rate: in (0, 1).
    """
    steps = np.arange(1, count + 1, dtype=np.float64)
    # log C(n, j) as a running sum: log of (n - j + 1) / j.
    ways = np.concatenate(([0.0], np.cumsum(np.log((count - steps + 1) / steps))))
    successes = np.arange(count + 1)
    logs = ways + successes * math.log(rate) + (count - successes) * math.log1p(-rate)
    cumulated: Floats = np.minimum(np.cumsum(np.exp(logs)), 1.0)
    return cumulated


def _cdf_at(count: int, successes: int, rate: float) -> float:
    if rate <= 0:
        return 1.0
    if rate >= 1:
        return 1.0 if successes >= count else 0.0
    return float(binomial_cdf(count, rate)[successes])


def share_interval(successes: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of a share (Clopper and Pearson, 1934), exact and never too narrow.

    Args:
        successes: in [0, count].
        count: at least 1.
        confidence: in (0, 1).

    Example:
        >>> low, high = share_interval(0, 40)
        >>> (low, round(high, 4))
        (0.0, 0.0881)
    """
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else _solve(lambda rate: 1 - _cdf_at(count, successes - 1, rate) >= tail)
    high = 1.0 if successes == count else _solve(lambda rate: _cdf_at(count, successes, rate) <= tail)
    return low, high


def _solve(reached: Callable[[float], bool]) -> float:
    """Return the smallest rate that fulfils a monotone condition, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
