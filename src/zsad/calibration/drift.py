"""Tests for drift: comparison of new scores with those of the calibration.

Two tests share the false alarm rate equally, so that together they raise a false alarm at most at that rate:

* Kolmogorov and Smirnov's two-sample test detects any change of the distribution of all new scores. Its p-value is
  exact up to a million pairs of scores, by counting lattice paths (Hodges, 1958).
* A conformal martingale (the Simple Jumper: Vovk et al., Retrain or not retrain, COPA 2021) reads the new scores one
  by one and finds from which on they differ. While they are exchangeable with the calibration's, the probability that
  it ever exceeds 1 / rate is at most rate (Ville's inequality).

A larger share of defective images is a change, too: the quantiles show whether all scores moved or the upper end alone.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsad.calibration.conformal import check_rate, check_scores, share_interval
from zsad.errors import CalibrationError

Floats = NDArray[np.float64]

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_EXACT_PAIRS = 1_000_000
_BETS = (-1.0, 0.0, 1.0)
_JUMP = 0.01


@dataclass(frozen=True, slots=True)
class Drift:
    """Results of the drift tests.

    Attributes:
        count: new images.
        normals: images of the calibration.
        alarm_rate: bound of the false alarm rate of both tests together.
        distance: largest difference of the two distribution functions, in [0, 1].
        ks_p: p-value of that difference.
        evidence: largest value of the martingale; from 1 / (alarm_rate / 2) on it is an alarm.
        since: number (from 1) of the image at which the martingale raised an alarm; None if it did not.
        quantiles: (share, quantile of the calibration, quantile of the new scores).
        above: new images above the image threshold.
        above_interval: interval of their share at 95 % confidence.
    """

    count: int
    normals: int
    alarm_rate: float
    distance: float
    ks_p: float
    evidence: float
    since: int | None
    quantiles: tuple[tuple[float, float, float], ...]
    above: int
    above_interval: tuple[float, float]

    @property
    def ks_alarm(self) -> bool:
        """True if the Kolmogorov-Smirnov test raises an alarm."""
        return self.ks_p <= self.alarm_rate / 2

    @property
    def drifted(self) -> bool:
        """True if either test raises an alarm."""
        return self.ks_alarm or self.since is not None

    @property
    def kind(self) -> str:
        """Description of the change, derived from the quantiles."""
        before = {share: old for share, old, _ in self.quantiles}
        spread = max(before[0.9] - before[0.1], 1e-12)
        moved = {share: (new - old) / spread for share, old, new in self.quantiles}
        if abs(moved[0.5]) >= 0.25:
            return f"all images score {'higher' if moved[0.5] > 0 else 'lower'}: light, camera, lens or product changed"
        if moved[0.99] >= 0.25 or moved[0.9] >= 0.25:
            return "the highest scores are higher while most images score as before: more anomalous images"
        return "the distribution has another shape, its middle has not moved"


def compare(
    calibrated: ArrayLike, new: Sequence[float], *, threshold: float, alarm_rate: float = 0.01, seed: int = 0
) -> Drift:
    """Run both tests; return them with quantiles and the share above the threshold.

    Args:
        calibrated: (n,) scores of the calibration.
        new: (m,) scores in the order in which the images came.
        threshold: of image scores.
        alarm_rate: bound of the false alarm rate of both tests together, in (0, 1).
        seed: of the draws that break ties between equal scores in the martingale.

    Raises:
        CalibrationError: no scores, NaN, or an impossible rate.
    """
    check_rate(alarm_rate, name="alarm rate")
    old = check_scores(calibrated, what="calibrated scores")
    recent = check_scores(new, what="new scores")
    distance, ks_p = ks_test(old, recent)
    path = martingale(old, new, seed=seed)
    alarms = np.flatnonzero(path >= math.log(2 / alarm_rate))
    above = int((recent > threshold).sum())
    return Drift(
        count=recent.size,
        normals=old.size,
        alarm_rate=alarm_rate,
        distance=distance,
        ks_p=ks_p,
        evidence=float(np.exp(min(float(path.max()), 700.0))),
        since=int(alarms[0]) + 1 if alarms.size else None,
        quantiles=tuple(
            (share, float(np.quantile(old, share)), float(np.quantile(recent, share))) for share in QUANTILES
        ),
        above=above,
        above_interval=share_interval(above, recent.size),
    )


def ks_test(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Return the two-sample Kolmogorov-Smirnov distance and its two-sided p-value, which is conservative under ties.

    Args:
        first: (n,) scores.
        second: (m,) scores.

    Returns:
        Distance in [0, 1], and the p-value: exact for n * m up to a million, asymptotic beyond.

    Raises:
        CalibrationError: no scores, or NaN.
    """
    one, other = check_scores(first), check_scores(second)
    values = np.concatenate([one, other])
    # Counts instead of shares make the distance an integer over n * m, without rounding.
    below_one = np.searchsorted(one, values, side="right").astype(np.int64)
    below_other = np.searchsorted(other, values, side="right").astype(np.int64)
    steps = int(np.abs(below_one * other.size - below_other * one.size).max())
    distance = steps / (one.size * other.size)
    if one.size * other.size <= _EXACT_PAIRS:
        return distance, _exact_ks(one.size, other.size, steps)
    size = math.sqrt(one.size * other.size / (one.size + other.size))
    return distance, _kolmogorov(size * distance)


def _exact_ks(first: int, second: int, steps: int) -> float:
    """Return P(distance >= steps / (first * second)): one minus the share of lattice paths that stay closer.

    `stays[i]` is the probability that a random path to (i, k - i) has stayed closer, updated one diagonal k at a time.
    """
    if steps == 0:
        return 1.0
    index = np.arange(first + 1)
    stays = np.zeros(first + 1)
    stays[0] = 1.0
    for diagonal in range(1, first + second + 1):
        other = diagonal - index
        arriving = stays * np.maximum(other, 0) / diagonal
        arriving[1:] += stays[:-1] * index[1:] / diagonal
        far = np.abs(index * second - other * first) >= steps
        stays = np.where(far | (other < 0) | (other > second), 0.0, arriving)
    return float(min(1.0, max(0.0, 1.0 - stays[first])))


def _kolmogorov(value: float) -> float:
    """Return P(K >= value) of Kolmogorov's distribution; it is 1 below 0.2, where the series converges slowly."""
    if value < 0.2:
        return 1.0
    terms = np.arange(1, 101)
    series = 2 * ((-1.0) ** (terms - 1) * np.exp(-2 * (terms * value) ** 2)).sum()
    return float(min(1.0, max(0.0, series)))


def martingale(calibrated: ArrayLike, new: Sequence[float], *, seed: int = 0) -> Floats:
    """Return the logarithm of the Simple Jumper martingale after each new score, (m,).

    The p-value of each new score is its rank among the calibration's scores and all new ones so far; under
    exchangeability these are independent and uniform.

    Args:
        calibrated: (n,) scores.
        new: (m,) scores in the order in which the images came.
        seed: of the draws that break ties.
    """
    ranked: list[float] = check_scores(calibrated).tolist()
    draws = np.random.default_rng(seed).random(len(new))
    bets = np.asarray(_BETS)
    capital = np.full(bets.size, 1 / bets.size)
    logarithm, path = 0.0, np.empty(len(new))
    for step, (score, draw) in enumerate(zip(new, draws, strict=True)):
        insort(ranked, score)
        left, right = bisect_left(ranked, score), bisect_right(ranked, score)
        p = (len(ranked) - right + draw * (right - left)) / len(ranked)
        total = capital.sum()
        capital = ((1 - _JUMP) * capital + _JUMP / bets.size * total) * (1 + bets * (p - 0.5))
        growth = float(capital.sum())
        logarithm += math.log(growth)
        capital /= growth  # the capital itself would over- or underflow
        path[step] = logarithm
    return path


def check_match(known: str | None, run: str | None, *, what: str) -> None:
    """Raise CalibrationError if a run was made with another `what` than the calibration."""
    if known != run:
        raise CalibrationError(
            f"the results are of another {what} ({run or 'none'}) than the calibration ({known or 'none'}); "
            "predict again with --calibration, or calibrate again"
        )
