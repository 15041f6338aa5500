"""PRO at a few thresholds, as the published evaluations take it: AnomalyCLIP's 200, MVTec 3D-AD's 100.

Both walk over growing thresholds and need two numbers at each: the false positive rate and the mean overlap of
the regions. From all scores these are exact; from histograms each is known to lie in a narrow interval, and so
does the area, because it grows or falls with every one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsad.errors import MetricError

Bound = tuple[float, float]
Values = NDArray[np.float64]
Estimates = tuple[Values, Values, Values]
UNDEFINED: Bound = (math.nan, math.nan)

ANOMALYCLIP_THRESHOLDS = 200
MVTEC3D_THRESHOLDS = 100


@dataclass(frozen=True, slots=True)
class Levels:
    """False positive rate and mean region overlap, each (K,) and falling, at K growing thresholds.

    The best guess of each stands beside the lowest and the highest value that it may have; where all scores
    are known the three are one.
    """

    rates: Estimates
    overlaps: Estimates

    @classmethod
    def exact(cls, rates: Values, overlaps: Values) -> Levels:
        """Levels without doubt."""
        return cls((rates,) * 3, (overlaps,) * 3)


def check_thresholds(thresholds: int) -> None:
    """Raise MetricError unless there are thresholds at all."""
    if thresholds < 1:
        raise MetricError(f"thresholds is {thresholds}, expected at least 1; the papers use 200 or 100")


def equidistant(low: np.floating, high: np.floating, *, thresholds: int) -> NDArray[np.floating]:
    """AnomalyCLIP's thresholds, from `low` up in equal steps; none when all scores are equal.

    By rounding there may be one more than `thresholds`, as in the published code. The type stays the scores'.
    """
    check_thresholds(thresholds)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise MetricError(f"maps reach from {low} to {high}, expected finite values; clip them first")
    step = (high - low) / thresholds
    levels: NDArray[np.floating] = np.arange(low, high, step) if step > 0 else np.zeros(0)
    return levels


def quantile_ranks(count: int, *, thresholds: int) -> NDArray[np.intp]:
    """Ranks (K,) of MVTec 3D-AD's thresholds among `count` normal scores, sorted upwards."""
    check_thresholds(thresholds)
    return np.linspace(0, count - 1, num=thresholds, dtype=np.intp)


def anomalyclip_pro(levels: Levels, *, limit: float) -> tuple[float, Bound]:
    """The area as AnomalyCLIP takes it, and a bound on it.

    Rates below `limit` are kept and stretched to [0, 1]; NaN when fewer than two distinct ones are left.
    """
    value = _stretched_area(levels.rates[0], levels.overlaps[0], limit=limit)
    (_, low, high), (_, under, over) = levels.rates, levels.overlaps
    if np.array_equal(low, high) and np.array_equal(under, over):
        return value, (value, value)
    # The first kept threshold is one of these; which one, is in doubt only where an interval holds the limit.
    earliest, latest = int(np.argmax(low < limit)), int(np.argmax(high < limit))
    if not (high < limit).any() or math.isnan(value):
        return value, (0.0, 1.0)
    sides = [
        _stretched_bound((low[k:], np.minimum(high[k:], limit)), (under[k:], over[k:]))
        for k in range(earliest, latest + 1)
    ]
    below, above = min(side[0] for side in sides), max(side[1] for side in sides)
    return min(max(value, below), above), (below, above)


def mvtec3d_pro(levels: Levels, *, limit: float) -> tuple[float, Bound]:
    """The area as MVTec 3D-AD takes it, interpolated at the limit; grows with every overlap, rates are known."""
    value, low, high = (_area_up_to(levels.rates[0], overlap, limit=limit) for overlap in levels.overlaps)
    return value, (low, high)


def up_to(x: Values, y: Values, *, limit: float) -> tuple[Values, Values]:
    """Return the part of a curve with growing x up to x = `limit`, its last point interpolated there."""
    inside = x <= limit
    if x[inside][-1] == limit:
        return x[inside], y[inside]
    return np.append(x[inside], limit), np.append(y[inside], np.interp(limit, x, y))


def _stretched_area(rates: Values, overlaps: Values, *, limit: float) -> float:
    kept = rates < limit
    if np.unique(rates[kept]).size < 2:
        return math.nan
    axis = rates[kept] - rates[kept].min()
    heights = overlaps[kept]
    return float((axis[:-1] - axis[1:]) @ (heights[:-1] + heights[1:]) / (2 * axis.max()))


def _stretched_bound(rates: tuple[Values, Values], overlaps: tuple[Values, Values]) -> Bound:
    """Bound on the mean height of the curve between the first and the last of the kept points.

    The mean grows with every height, with the first rate (more of the highest stretch) and with the last one
    (less of the lowest stretch); it falls with every rate between, as a later rise gives less.
    """
    sides = []
    for inner, outer, heights in ((1, 0, overlaps[0]), (0, 1, overlaps[1])):
        axis = rates[inner].copy()
        axis[0], axis[-1] = rates[outer][0], rates[outer][-1]
        span = axis[0] - axis[-1]
        if axis.size < 2 or not span > 0:
            return 0.0, 1.0
        sides.append(float((axis[:-1] - axis[1:]) @ (heights[:-1] + heights[1:]) / (2 * span)))
    return max(sides[0], 0.0), min(sides[1], 1.0)


def _area_up_to(rates: Values, overlaps: Values, *, limit: float) -> float:
    """Sum trapezoids over the rates (K,), falling, from 0 up to `limit`, divided by it; at rate 1 all is found."""
    x, y = up_to(np.append(rates[::-1], 1.0), np.append(overlaps[::-1], 1.0), limit=limit)
    return float(np.diff(x) @ (y[1:] + y[:-1]) / (2 * limit))
