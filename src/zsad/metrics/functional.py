"""Exact metrics of scores and maps, in NumPy: AUROC, AP, F1-max, AUPRO and AnomalyCLIP's PRO.

All of them follow from one reduction, the `Curve`: for every distinct score of an anomalous item, how many
anomalous items have it, and how many normal ones lie above it or tie with it. A tie moves as one step, as in
scikit-learn. What is undefined (one label only, no region, no input) is NaN, never 0.

AUPRO needs no loop over thresholds: with weight 1 / (pixels of its region) on each anomalous pixel, the mean
overlap at a threshold is a weighted share, and the area left of the limit is a sum over anomalous pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsad.errors import MetricError
from zsad.metrics.regions import bounding_box, region_weights

Floats = NDArray[np.floating]
Maps = NDArray[Any] | Sequence[ArrayLike]


@dataclass(frozen=True, slots=True)
class Curve:
    """A ranking seen from its anomalous items: G groups of equal score, from the highest score down.

    `anomalous` (G,) anomalous items in the group, at least 1; `weight` (G,) the sum of their weights;
    `above` (G,) normal items with a higher score; `tied` (G,) normal items with the same score;
    `normal` the number of all normal items; `regions` the number of all regions.
    """

    anomalous: NDArray[np.float64]
    weight: NDArray[np.float64]
    above: NDArray[np.float64]
    tied: NDArray[np.float64]
    normal: int
    regions: int

    @property
    def defined(self) -> bool:
        """Whether there are both normal and anomalous items."""
        return self.normal > 0 and self.anomalous.size > 0

    @classmethod
    def from_scores(
        cls, normal: Floats, anomalous: Floats, weight: Floats | None = None, *, regions: int = 0
    ) -> Curve:
        """Curve of normal (n,) scores, sorted upwards, and anomalous (m,) ones, in any order.

        `weight` (m,) belongs to the anomalous scores and is 1 when not given.
        """
        order = np.argsort(anomalous)
        ranked = anomalous[order]
        weights = np.ones(ranked.size) if weight is None else weight[order]
        first = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1]))) if ranked.size else order
        scores = ranked[first]
        not_above = np.searchsorted(normal, scores, side="right")
        below = np.searchsorted(normal, scores, side="left")
        summed = np.add.reduceat(weights, first, dtype=np.float64) if ranked.size else np.zeros(0)
        return cls(
            anomalous=np.diff(first, append=ranked.size)[::-1].astype(np.float64),
            weight=summed[::-1],
            above=(normal.size - not_above)[::-1].astype(np.float64),
            tied=(not_above - below)[::-1].astype(np.float64),
            normal=int(normal.size),
            regions=regions,
        )

    def auroc(self) -> float:
        """Share of (anomalous, normal) pairs in the right order, ties counting one half."""
        if not self.defined:
            return math.nan
        beaten = 1.0 - (self.above + self.tied / 2) / self.normal
        return float(self.anomalous @ beaten / self.anomalous.sum())

    def average_precision(self) -> float:
        """Precision at each threshold, averaged over the recall it gains."""
        if not self.defined:
            return math.nan
        hits = np.cumsum(self.anomalous)
        return float(self.anomalous @ (hits / (hits + self.above + self.tied)) / hits[-1])

    def f1_max(self) -> float:
        """The largest F1 over all thresholds; only those at an anomalous score can be the best."""
        if not self.defined:
            return math.nan
        hits = np.cumsum(self.anomalous)
        return float((2 * hits / (hits + self.above + self.tied + hits[-1])).max())

    def aupro(self, limit: float) -> float:
        """Area under mean region overlap against false positive rate up to `limit`, divided by `limit`.

        A group lifts the curve linearly while the rate goes from `start` to `stop`, and the limit may cut the
        ramp: `share` of it is left, below which lies a trapezoid.
        """
        if not self.defined or self.regions == 0:
            return math.nan
        start = self.above / self.normal
        stop = start + self.tied / self.normal
        share = np.clip((limit * self.normal - self.above) / np.maximum(self.tied, 1.0), 0.0, 1.0)
        share[self.tied == 0] = 1.0
        area = share * (np.maximum(limit - start, 0.0) + np.maximum(limit - stop, 0.0)) / 2
        # The weights of a region sum to 1 up to rounding only.
        return min(float(self.weight @ area / (self.regions * limit)), 1.0)


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve. Equals scikit-learn's `roc_auc_score`.

    Args:
        scores: any shape, higher is more anomalous, no NaN.
        labels: the same shape, 0 (normal) or 1 (anomalous).

    Returns:
        In [0, 1]; NaN when one of the labels is missing.

    Raises:
        MetricError: NaN in the scores, other labels than 0 and 1, or differing shapes.
    """
    return _curve(scores, labels).auroc()


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Average precision, not interpolated. Equals scikit-learn's `average_precision_score`.

    Arguments, errors and NaN as in `auroc`.
    """
    return _curve(scores, labels).average_precision()


def f1_max(scores: ArrayLike, labels: ArrayLike) -> float:
    """The largest F1 of all thresholds (score >= threshold is anomalous).

    Arguments, errors and NaN as in `auroc`.
    """
    return _curve(scores, labels).f1_max()


def aupro(maps: Maps, masks: Maps, *, limit: float = 0.3) -> float:
    """Area under the per-region overlap curve, exact: every score is a threshold, interpolated at the limit.

    Args:
        maps: (B, H, W), or a sequence of (H, W) of any sizes, higher is more anomalous, no NaN.
        masks: the same shapes, 0 or 1; regions are 8-connected, normal pixels of all maps count.
        limit: largest false positive rate, in (0, 1].

    Returns:
        The area divided by the limit, in [0, 1]; NaN without a region or without a normal pixel.

    Raises:
        MetricError: NaN in a map, other mask values than 0 and 1, differing shapes, or an impossible limit.

    Source: Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 5.
    """
    check_limit(limit)
    return MapScores.collect(maps, masks).curve().aupro(limit)


def pro_anomalyclip(maps: Maps, masks: Maps, *, limit: float = 0.3, thresholds: int = 200) -> float:
    """The PRO of AnomalyCLIP's tables and of most papers after it; several thousandths off `aupro`.

    Equidistant thresholds between the smallest and the largest value of all maps, no interpolation at the
    limit, and the kept false positive rates stretched to [0, 1]. So it changes with the scale of the maps.
    Arguments and errors as in `aupro`; `thresholds` is the number of steps.

    Returns:
        The area, in [0, 1]; NaN when fewer than two distinct false positive rates stay below the limit.
    """
    check_limit(limit)
    return MapScores.collect(maps, masks).pro_anomalyclip(limit=limit, thresholds=thresholds)


@dataclass(frozen=True, slots=True)
class MapScores:
    """The pixels of one or more maps.

    `normal` (n,) scores; `anomalous` (m,) scores and their `weight` (m,); `regions` the number of regions.
    """

    normal: Floats
    anomalous: Floats
    weight: NDArray[np.float64]
    regions: int

    @classmethod
    def split(cls, score_map: ArrayLike, mask: ArrayLike) -> MapScores:
        """The pixels of one map (H, W) and its mask (H, W)."""
        scores, foreground = check_map(score_map, mask)
        box = bounding_box(foreground)
        if box is None:
            return cls(scores.ravel(), scores[:0, 0], np.zeros(0), 0)
        weight, regions = region_weights(foreground[box])
        return cls(scores[~foreground], scores[box][foreground[box]], weight, regions)

    @classmethod
    def join(cls, parts: Iterable[MapScores]) -> MapScores:
        """All parts as one, the normal scores sorted upwards."""
        given = list(parts)
        if not given:
            return cls(np.zeros(0), np.zeros(0), np.zeros(0), 0)
        normal = np.concatenate([part.normal for part in given])
        normal.sort()
        return cls(
            normal=normal,
            anomalous=np.concatenate([part.anomalous for part in given]),
            weight=np.concatenate([part.weight for part in given]),
            regions=sum(part.regions for part in given),
        )

    @classmethod
    def collect(cls, maps: Maps, masks: Maps) -> MapScores:
        """The pixels of all maps, the normal scores sorted upwards."""
        return cls.join(cls.split(score_map, mask) for score_map, mask in _pairs(maps, masks))

    def curve(self) -> Curve:
        """The ranking of the pixels; needs sorted normal scores, as from `join`."""
        return Curve.from_scores(self.normal, self.anomalous, self.weight, regions=self.regions)

    def pro_anomalyclip(self, *, limit: float = 0.3, thresholds: int = 200) -> float:
        """See the function of this name; needs sorted normal scores, as from `join`."""
        if thresholds < 1:
            raise MetricError(f"thresholds is {thresholds}, expected at least 1; the papers use 200")
        if self.regions == 0 or self.normal.size == 0:
            return math.nan
        order = np.argsort(self.anomalous)
        ranked = self.anomalous[order]
        low, high = min(self.normal[0], ranked[0]), max(self.normal[-1], ranked[-1])
        if not (np.isfinite(low) and np.isfinite(high)):
            raise MetricError(f"maps reach from {low} to {high}, expected finite values; clip them first")
        step = (high - low) / thresholds
        if not step > 0:
            return math.nan
        levels = np.arange(low, high, step)
        rates = 1.0 - np.searchsorted(self.normal, levels, side="right") / self.normal.size
        # Weight of the pixels from each rank on: the summed overlap of all regions at a threshold just below.
        remaining = np.concatenate((np.cumsum(self.weight[order][::-1])[::-1], [0.0]))
        overlaps = remaining[np.searchsorted(ranked, levels, side="right")] / self.regions
        kept = rates < limit
        if np.unique(rates[kept]).size < 2:
            return math.nan
        axis = rates[kept] - rates[kept].min()
        heights = overlaps[kept]
        return float((axis[:-1] - axis[1:]) @ (heights[:-1] + heights[1:]) / (2 * axis.max()))


def check_limit(limit: float) -> None:
    """Raise MetricError unless `limit` is a false positive rate in (0, 1]."""
    if not 0.0 < limit <= 1.0:
        raise MetricError(f"limit is {limit}, expected a false positive rate in (0, 1]; the usual one is 0.3")


def check_map(score_map: ArrayLike, mask: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """One map (H, W) as floats and its mask (H, W) as bool; MetricError when they are no such pair."""
    scores, foreground = check_scores(score_map, mask)
    if scores.ndim != 2:
        raise MetricError(f"map has shape {scores.shape}, expected (H, W); pass one map at a time")
    return scores, foreground


def check_scores(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores as floats and labels as bool, of equal shapes.

    Raises MetricError on NaN, on labels other than 0 and 1, and on differing shapes.
    """
    values, truth = np.asarray(scores), np.asarray(labels)
    if values.shape != truth.shape:
        raise MetricError(
            f"scores have shape {values.shape} and labels {truth.shape}; pass one label for each score"
        )
    if values.dtype.kind not in "biuf":
        raise MetricError(f"scores are of type {values.dtype}, expected real numbers; make them float32")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
    # The smallest value is NaN when any is: one pass, no temporary array.
    if values.size and np.isnan(values.min()):
        missing = np.isnan(values).sum()
        raise MetricError(
            f"{missing} of {values.size} scores are NaN, expected none; check the model's output"
        )
    if truth.dtype != np.bool_:
        if truth.dtype.kind not in "iuf" or not ((truth == 0) | (truth == 1)).all():
            shown = ", ".join(str(value) for value in np.unique(truth)[:5])
            raise MetricError(f"labels hold {shown}, expected only 0 and 1; binarise them with `> 0`")
        truth = truth == 1
    return values, truth


def _curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    values, truth = check_scores(scores, labels)
    normal = values[~truth]
    normal.sort()
    return Curve.from_scores(normal, values[truth])


def _pairs(maps: Maps, masks: Maps) -> Iterator[tuple[ArrayLike, ArrayLike]]:
    """Maps and masks one by one; MetricError when their numbers differ or a single map was passed."""
    for name, stack in (("maps", maps), ("masks", masks)):
        if isinstance(stack, np.ndarray) and stack.ndim != 3:
            raise MetricError(f"{name} have shape {stack.shape}, expected (B, H, W); add an axis for one map")
    if len(maps) != len(masks):
        raise MetricError(f"{len(maps)} maps and {len(masks)} masks; pass one mask for each map")
    return zip(maps, masks, strict=True)
