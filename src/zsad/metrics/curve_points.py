"""Points of the ROC, PR and PRO curves, few enough to draw, out of what an evaluation keeps anyway.

Between two points a curve is a straight line, as the areas of `zsad.metrics.functional` take it. Of more points
than asked for those are kept that follow each other along the curve in equal steps, so that steep parts lose
none: the area under 256 of them is the area of all to some thousandths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zsad.errors import MetricError
from zsad.metrics.exact import ExactPixelMetrics, ImageScores
from zsad.metrics.functional import Curve
from zsad.metrics.pro import up_to
from zsad.metrics.streaming import PixelMetrics

Line = tuple[NDArray[np.float64], NDArray[np.float64]]


def _empty() -> Line:
    return np.zeros(0), np.zeros(0)


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves as (x, y), each (n,) float64 in [0, 1] with x growing; empty arrays where undefined.

    `roc` is (false positive rate, true positive rate), `pr` (recall, precision), and `pro` (false positive
    rate, mean region overlap) from 0 up to the limit of the state.
    """

    roc: Line = field(default_factory=_empty)
    pr: Line = field(default_factory=_empty)
    pro: Line = field(default_factory=_empty)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return the same under "roc_x", "roc_y", "pr_x", "pr_y", "pro_x" and "pro_y", for `numpy.savez`."""
        lines = {"roc": self.roc, "pr": self.pr, "pro": self.pro}
        return {f"{name}_{axis}": line[k] for name, line in lines.items() for k, axis in enumerate("xy")}


def curves(state: PixelMetrics | ExactPixelMetrics | ImageScores | None, *, points: int = 256) -> Curves:
    """Return the curves of pixels or of image scores so far; of None, as of a class without masks, empty ones.

    Args:
        state: as in `ClassScores.pixels` or `ClassScores.images`; it stays as it is. Images have no PRO.
        points: the most points a curve may have, at least 2.

    Raises:
        MetricError: fewer than 2 points.

    Example:
        >>> scores = ImageScores()
        >>> for score, label in ((0.1, 0), (0.4, 0), (0.3, 1), (0.9, 1)):
        ...     scores.add(score, label)
        >>> [axis.tolist() for axis in curves(scores).roc]
        [[0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0]]
    """
    if points < 2:
        raise MetricError(f"points is {points}, expected at least 2; 256 draw well")
    if state is None or not (curve := state.curve()).defined:
        return Curves()
    roc = _thinned(*_staircase(curve, curve.anomalous, total=curve.anomalous.sum()), points=points)
    pr = _thinned(*_precision(curve), points=points)
    if isinstance(state, ImageScores) or curve.regions == 0:
        return Curves(roc=roc, pr=pr)
    pro = up_to(*_staircase(curve, curve.weight, total=curve.regions), limit=state.limit)
    return Curves(roc=roc, pr=pr, pro=_thinned(*pro, points=points))


def _staircase(curve: Curve, gain: NDArray[np.float64], *, total: float) -> Line:
    """Corners of a curve over the false positive rate that each group lifts by `gain` (G,) of `total`."""
    # The weights of a region sum to 1 up to rounding only.
    after = np.minimum(np.cumsum(gain) / total, 1.0)
    x, y = np.zeros(2 * gain.size + 2), np.zeros(2 * gain.size + 2)
    # A group is reached at the height of those before it; its ties with normal items make its step a ramp.
    x[1:-1:2], x[2:-1:2] = curve.above / curve.normal, (curve.above + curve.tied) / curve.normal
    y[3:-1:2], y[2:-1:2] = after[:-1], after
    x[-1] = y[-1] = 1.0
    return _without_repeats(x, y)


def _precision(curve: Curve) -> Line:
    """Precision at each recall; at recall 0 that of the highest threshold, as there is none above it."""
    hits = np.cumsum(curve.anomalous)
    recall, precision = hits / hits[-1], hits / (hits + curve.above + curve.tied)
    return np.concatenate(([0.0], recall)), np.concatenate((precision[:1], precision))


def _without_repeats(x: NDArray[np.float64], y: NDArray[np.float64]) -> Line:
    new = np.append(True, (np.diff(x) != 0) | (np.diff(y) != 0))
    return x[new], y[new]


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64], *, points: int) -> Line:
    """At most `points` of the points, the first and the last among them, in equal steps along the curve."""
    if x.size <= points:
        return x, y
    span = float(x[-1] - x[0])
    steps = np.abs(np.diff(x)) / (span if span > 0 else math.inf) + np.abs(np.diff(y))
    along = np.append(0.0, np.cumsum(steps))
    chosen = np.unique(np.searchsorted(along, np.linspace(0.0, along[-1], points)).clip(max=x.size - 1))
    chosen[-1] = x.size - 1
    return x[chosen], y[chosen]
