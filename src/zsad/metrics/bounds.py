"""Certain bounds on the error of binned metrics, from a `Curve` whose groups are bins.

Scores of one bin may lie in any order. AUROC, AP and AUPRO are between their values for all normal pixels of a bin
first and for all anomalous ones first.
"""

from __future__ import annotations

import math

import numpy as np

from zsad.metrics.aupimo import RateBounds, log_area
from zsad.metrics.functional import Curve
from zsad.metrics.pro import UNDEFINED, Bound

# What float64 sums over the pixels of a large data set can be off by; every bound is widened by it.
ROUNDING = 1e-10


def auroc_bound(curve: Curve) -> Bound:
    """Return the bound: within a bin all normal pixels first (low), or all anomalous ones first (high)."""
    if not curve.defined:
        return UNDEFINED
    share = curve.anomalous / curve.anomalous.sum()
    above = float(share @ curve.above) / curve.normal
    return 1.0 - above - float(share @ curve.tied) / curve.normal, 1.0 - above


def aupro_bound(curve: Curve, *, limit: float) -> Bound:
    """Return the bound: the whole weight of a bin is gained at its right end (low) or at its left one (high)."""
    if not curve.defined or curve.regions == 0:
        return UNDEFINED
    scale = curve.regions * limit
    late = np.maximum(limit - (curve.above + curve.tied) / curve.normal, 0.0)
    early = np.maximum(limit - curve.above / curve.normal, 0.0)
    return float(curve.weight @ late) / scale, float(curve.weight @ early) / scale


def aupimo_bound(curve: Curve, *, bounds: RateBounds) -> Bound:
    """Return the bound on mean AUPIMO, weights by image: a bin is found at its right end (low) or its left (high)."""
    if curve.normal == 0 or curve.weight.size == 0:
        return UNDEFINED
    sides = []
    for rate in ((curve.above + curve.tied) / curve.normal, curve.above / curve.normal):
        sides.append(float(curve.weight @ log_area(rate, rate, bounds=bounds)))
    return sides[0], sides[1]


def average_precision(curve: Curve) -> float:
    """Return AP with the pixels of a bin evenly mixed, as scores without ties nearly are: precision in mid-bin."""
    if not curve.defined:
        return math.nan
    hits = np.cumsum(curve.anomalous) - curve.anomalous / 2
    return float(curve.anomalous @ (hits / (hits + curve.above + curve.tied / 2)) / curve.anomalous.sum())


def average_precision_bound(curve: Curve) -> Bound:
    """Return the bound. Low: normal pixels first, anomalous ones one by one. High: anomalous ones first, all tied.

    With t hits and c normal pixels before, the i-th anomalous pixel has precision (t + i) / (t + i + c); the
    sum over the n of the bin is at least the integral n - c log(1 + n / (t + c)), as precision grows with i.
    """
    if not curve.defined:
        return UNDEFINED
    total = curve.anomalous.sum()
    after = np.cumsum(curve.anomalous)
    before = after - curve.anomalous
    false = curve.above + curve.tied
    ahead = before + false
    safe = np.where(ahead > 0, ahead, 1.0)
    low = curve.anomalous - np.where(ahead > 0, false * np.log1p(curve.anomalous / safe), 0.0)
    high = curve.anomalous * after / (after + curve.above)
    return float(low.sum() / total), float(high.sum() / total)


def f1_max_bound(curve: Curve) -> Bound:
    """Return the bound. Low: thresholds between bins, which exist. High: within a bin anomalous pixels first."""
    if not curve.defined:
        return UNDEFINED
    hits = np.cumsum(curve.anomalous)
    return curve.f1_max(), float((2 * hits / (hits + curve.above + hits[-1])).max())


def widened(bound: Bound, by: float = ROUNDING) -> Bound:
    """Return the bound with `by` more on either side, within [0, 1]."""
    low, high = float(bound[0]), float(bound[1])
    if math.isnan(low):
        return UNDEFINED
    return max(low - by, 0.0), min(high + by, 1.0)
