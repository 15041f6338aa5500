"""Has what the camera sees changed since the calibration? Tests of new scores against the calibration's.

Two tests share the false alarm rate in equal parts, so that together they raise a false alarm at most at that rate:

* Kolmogorov and Smirnov's two-sample test sees any change of the distribution in all new images together. Its
  p-value is exact up to a million pairs of scores, by counting lattice paths (Hodges, 1958).
* A conformal martingale (the Simple Jumper: Vovk et al., Retrain or not retrain, COPA 2021) reads the new images one
  by one and says from which on they differ. While they are exchangeable with the calibration's, it exceeds 1 / rate
  at any time at most with probability rate (Ville's inequality).

What is compared are images as they come. If more of them are defective than at calibration, that is a change, too:
the quantiles tell whether all images moved or the upper end alone. Nothing here but NumPy.
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
    """What new scores say of drift.

    Attributes:
        count: new images.
        normals: images of the calibration.
        alarm_rate: at which both tests together raise a false alarm at most.
        distance: largest difference of the two distribution functions, in [0, 1].
        ks_p: p-value of that difference.
        evidence: largest value of the martingale; 1 / (alarm_rate / 2) is an alarm.
        since: number, from 1, of the image at which the martingale raised the alarm; None: it did not.
        quantiles: (share, calibration's, new ones').
        above: new images above the image threshold.
        above_interval: of their share, at 95 % confidence.
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
        """Whether the distributions differ by more than chance."""
        return self.ks_p <= self.alarm_rate / 2

    @property
    def drifted(self) -> bool:
        """Whether either test raises the alarm."""
        return self.ks_alarm or self.since is not None

    @property
    def kind(self) -> str:
        """What has changed, in words, judged by the quantiles."""
        before, after = (
            {share: row[place] for row in self.quantiles for share in (row[0],)} for place in (1, 2)
        )
        spread = max(before[0.9] - before[0.1], 1e-12)
        moved = {share: (after[share] - before[share]) / spread for share in before}
        if abs(moved[0.5]) >= 0.25:
            return f"all images score {'higher' if moved[0.5] > 0 else 'lower'}: light, camera, lens or product changed"
        if moved[0.99] >= 0.25 or moved[0.9] >= 0.25:
            return "the highest scores are higher while most images score as before: more anomalous images"
        return "the distribution has another shape, its middle has not moved"


def compare(
    calibrated: ArrayLike, new: Sequence[float], *, threshold: float, alarm_rate: float = 0.01, seed: int = 0
) -> Drift:
    """Both tests, quantiles and the share above the threshold.

    Args:
        calibrated: (n,) scores of the calibration.
        new: (m,) scores in the order in which the images came.
        threshold: of image scores.
        alarm_rate: of false alarms of both tests together, in (0, 1).
        seed: of the draws that break ties between equal scores in the martingale.

    Raises:
        CalibrationError: no scores, NaN, or an impossible rate.
    """
    check_rate(alarm_rate, name="alarm rate")
    old = check_scores(calibrated, what="calibrated scores")
    recent = check_scores(new, what="new scores")
    distance, chance = ks_test(old, recent)
    path = martingale(old, new, seed=seed)
    alarms = np.flatnonzero(path >= math.log(2 / alarm_rate))
    above = int((recent > threshold).sum())
    return Drift(
        count=recent.size,
        normals=old.size,
        alarm_rate=alarm_rate,
        distance=distance,
        ks_p=chance,
        evidence=float(np.exp(min(float(path.max()), 700.0))),
        since=int(alarms[0]) + 1 if alarms.size else None,
        quantiles=tuple(
            (share, float(np.quantile(old, share)), float(np.quantile(recent, share))) for share in QUANTILES
        ),
        above=above,
        above_interval=share_interval(above, recent.size),
    )


def ks_test(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Two-sided two-sample Kolmogorov-Smirnov distance and its p-value, which ties make larger, never smaller.

    Args:
        first: (n,) scores.
        second: (m,) scores.

    Returns:
        Distance in [0, 1], and the p-value: exact for n * m up to a million, asymptotic beyond.

    Raises:
        CalibrationError: no scores, or NaN.
    """
    one, other = check_scores(first), check_scores(second)
    places = np.concatenate([one, other])
    # Counts rather than shares: the distance is then a whole number over n * m, without rounding.
    below_one = np.searchsorted(one, places, side="right").astype(np.int64)
    below_other = np.searchsorted(other, places, side="right").astype(np.int64)
    steps = int(np.abs(below_one * other.size - below_other * one.size).max())
    distance = steps / (one.size * other.size)
    if one.size * other.size <= _EXACT_PAIRS:
        return distance, _exact_ks(one.size, other.size, steps)
    size = math.sqrt(one.size * other.size / (one.size + other.size))
    return distance, _kolmogorov(size * distance)


def _exact_ks(first: int, second: int, steps: int) -> float:
    """P(distance >= steps / (first * second)): one minus the share of lattice paths that stay closer.

    `stays[i]` is the probability that a random path to (i, k - i) never was as far; one diagonal k after another.
    """
    if steps == 0:
        return 1.0
    place = np.arange(first + 1)
    stays = np.zeros(first + 1)
    stays[0] = 1.0
    for diagonal in range(1, first + second + 1):
        other = diagonal - place
        arriving = stays * np.maximum(other, 0) / diagonal
        arriving[1:] += stays[:-1] * place[1:] / diagonal
        far = np.abs(place * second - other * first) >= steps
        stays = np.where(far | (other < 0) | (other > second), 0.0, arriving)
    return float(min(1.0, max(0.0, 1.0 - stays[first])))


def _kolmogorov(value: float) -> float:
    """P(K >= value) of Kolmogorov's distribution; the series converges at once from 0.2 on, below it is 1."""
    if value < 0.2:
        return 1.0
    terms = np.arange(1, 101)
    series = 2 * ((-1.0) ** (terms - 1) * np.exp(-2 * (terms * value) ** 2)).sum()
    return float(min(1.0, max(0.0, series)))


def martingale(calibrated: ArrayLike, new: Sequence[float], *, seed: int = 0) -> Floats:
    """Logarithm of the Simple Jumper martingale after each new score, (m,).

    Each new score gets its p-value among the calibration's and all new ones before it, itself included; under
    exchangeability these are independent and uniform.

    Args:
        calibrated: (n,) scores.
        new: (m,) scores in the order in which the images came.
        seed: of the draws that break ties.
    """
    seen: list[float] = check_scores(calibrated).tolist()
    draws = np.random.default_rng(seed).random(len(new))
    bets = np.asarray(_BETS)
    capital = np.full(bets.size, 1 / bets.size)
    logarithm, path = 0.0, np.empty(len(new))
    for step, (score, draw) in enumerate(zip(new, draws, strict=True)):
        insort(seen, score)
        left, right = bisect_left(seen, score), bisect_right(seen, score)
        chance = (len(seen) - right + draw * (right - left)) / len(seen)
        total = capital.sum()
        capital = ((1 - _JUMP) * capital + _JUMP / bets.size * total) * (1 + bets * (chance - 0.5))
        grown = float(capital.sum())
        logarithm += math.log(grown)
        capital /= grown  # the capital itself over- or underflows
        path[step] = logarithm
    return path


def check_match(known: str | None, run: str | None, *, what: str) -> None:
    """CalibrationError where a run was made otherwise than the calibration."""
    if known != run:
        raise CalibrationError(
            f"the results are of another {what} ({run or 'none'}) than the calibration ({known or 'none'}); "
            "predict again with --calibration, or calibrate again"
        )
