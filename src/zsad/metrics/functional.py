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
from zsad.metrics.components import Regions
from zsad.metrics.pro import (
    ANOMALYCLIP_THRESHOLDS,
    MVTEC3D_THRESHOLDS,
    Levels,
    anomalyclip_pro,
    equidistant,
    mvtec3d_pro,
    quantile_ranks,
)

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
        """True where there are both normal and anomalous items."""
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

    Source: Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 5; equals the evaluation that
    comes with the data set (`aupro_mvtec`).
    """
    check_limit(limit)
    return MapScores.collect(maps, masks).curve().aupro(limit)


def pro_anomalyclip(
    maps: Maps, masks: Maps, *, limit: float = 0.3, thresholds: int = ANOMALYCLIP_THRESHOLDS
) -> float:
    """The PRO of AnomalyCLIP's tables and of most papers after it; several thousandths off `aupro`.

    Equidistant thresholds between the smallest and the largest value of all maps, no interpolation at the
    limit, and the kept false positive rates stretched to [0, 1]. So it changes with the scale of the maps.
    Arguments and errors as in `aupro`; `thresholds` is the number of steps.

    Returns:
        The area, in [0, 1]; NaN when fewer than two distinct false positive rates stay below the limit.
    """
    check_limit(limit)
    return MapScores.collect(maps, masks).pro_anomalyclip(limit=limit, thresholds=thresholds)


def aupro_mvtec(maps: Maps, masks: Maps, *, limit: float = 0.3, thresholds: int | None = None) -> float:
    """AU-PRO as MVTec's official evaluations compute it. Arguments, errors and NaN as in `aupro`.

    That of MVTec AD and its successor takes every score as a threshold, which is `aupro`. That of MVTec 3D-AD takes
    `thresholds` of the sorted normal scores at equal distances, 100 by default there; it is lower.
    """
    check_limit(limit)
    pixels = MapScores.collect(maps, masks)
    if thresholds is None:
        return pixels.curve().aupro(limit)
    return pixels.aupro_mvtec3d(limit=limit, thresholds=thresholds)


@dataclass(frozen=True, slots=True)
class MapScores:
    """The pixels of one or more maps.

    `clean` (n,) scores of maps without any anomalous pixel, `mixed` (k,) normal scores of the others;
    `anomalous` (m,) scores, their `weight` (m,) and the number of their `image` (m,); `images` the number of maps;
    `regions` the number of regions.
    """

    clean: Floats
    mixed: Floats
    anomalous: Floats
    weight: NDArray[np.float64]
    image: NDArray[np.int32]
    images: int
    regions: int

    @classmethod
    def split(cls, score_map: ArrayLike, mask: ArrayLike) -> MapScores:
        """Return the pixels of one map (H, W) and its mask (H, W)."""
        scores, foreground = check_map(score_map, mask)
        regions, flat = Regions.find(foreground), scores.ravel()
        if regions.count == 0:
            return cls(flat, flat[:0], flat[:0], np.zeros(0), np.zeros(0, np.int32), 1, 0)
        weight = regions.spread(1.0 / regions.areas)
        image = np.zeros(weight.size, dtype=np.int32)
        return cls(flat[:0], scores[~foreground], flat[regions.positions], weight, image, 1, regions.count)

    @classmethod
    def join(cls, parts: Iterable[MapScores]) -> MapScores:
        """Join all parts, the clean and the mixed scores sorted upwards."""
        given = list(parts)
        if not given:
            nothing = np.zeros(0)
            return cls(nothing, nothing, nothing, nothing, np.zeros(0, np.int32), 0, 0)
        before = np.cumsum([0] + [part.images for part in given])
        return cls(
            clean=_sorted([part.clean for part in given]),
            mixed=_sorted([part.mixed for part in given]),
            anomalous=np.concatenate([part.anomalous for part in given]),
            weight=np.concatenate([part.weight for part in given]),
            image=np.concatenate([p.image + np.int32(n) for p, n in zip(given, before, strict=False)]),
            images=int(before[-1]),
            regions=sum(part.regions for part in given),
        )

    @classmethod
    def collect(cls, maps: Maps, masks: Maps) -> MapScores:
        """Return the pixels of all maps, joined."""
        return cls.join(cls.split(score_map, mask) for score_map, mask in _pairs(maps, masks))

    def normal(self) -> Floats:
        """Return all normal scores, sorted upwards; needs `join`."""
        joined = np.concatenate((self.clean, self.mixed))
        joined.sort(kind="stable")  # the kind that merges two sorted halves in linear time
        return joined

    def curve(self) -> Curve:
        """The ranking of the pixels; needs `join`."""
        return Curve.from_scores(self.normal(), self.anomalous, self.weight, regions=self.regions)

    def pro_anomalyclip(self, *, limit: float = 0.3, thresholds: int = ANOMALYCLIP_THRESHOLDS) -> float:
        """Return the area, as the function of this name does; needs `join`."""
        normal = self.normal()
        if self.regions == 0 or normal.size == 0:
            return math.nan
        low, high = min(normal[0], self.anomalous.min()), max(normal[-1], self.anomalous.max())
        levels = equidistant(low, high, thresholds=thresholds)
        rates = 1.0 - np.searchsorted(normal, levels, side="right") / normal.size
        return anomalyclip_pro(Levels.exact(rates, self._overlaps(levels)), limit=limit)[0]

    def aupro_mvtec3d(self, *, limit: float = 0.3, thresholds: int = MVTEC3D_THRESHOLDS) -> float:
        """Return the area, as `aupro_mvtec` does; needs `join`."""
        normal = self.normal()
        if self.regions == 0 or normal.size == 0:
            return math.nan
        ranks = quantile_ranks(normal.size, thresholds=thresholds)
        rates = 1.0 - (ranks + 1) / normal.size
        return mvtec3d_pro(Levels.exact(rates, self._overlaps(normal[ranks])), limit=limit)[0]

    def _overlaps(self, levels: Floats) -> NDArray[np.float64]:
        """Return the mean overlap (K,) of the regions with the pixels above each of the levels (K,)."""
        order = np.argsort(self.anomalous)
        # Weight of the pixels from each rank on: the summed overlap of all regions at a threshold just below.
        remaining = np.concatenate((np.cumsum(self.weight[order][::-1])[::-1], [0.0]))
        above = np.searchsorted(self.anomalous[order], levels, side="right")
        overlaps: NDArray[np.float64] = np.minimum(remaining[above] / self.regions, 1.0)
        return overlaps


def check_limit(limit: float) -> None:
    """Raise MetricError unless `limit` is a false positive rate in (0, 1]."""
    if not 0.0 < limit <= 1.0:
        raise MetricError(f"limit is {limit}, expected a false positive rate in (0, 1]; the usual one is 0.3")


def check_map(score_map: ArrayLike, mask: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Return one map (H, W) as floats and its mask (H, W) as bool; MetricError when they are no such pair."""
    scores, foreground = check_scores(score_map, mask)
    check_two_axes(scores)
    return scores, foreground


def check_two_axes(scores: Floats) -> None:
    """Raise MetricError unless `scores` are one map (H, W)."""
    if scores.ndim != 2:
        raise MetricError(f"map has shape {scores.shape}, expected (H, W); pass one map at a time")


def check_scores(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Return scores as floats and labels as bool, of equal shapes.

    Raises MetricError on NaN, on labels other than 0 and 1, and on differing shapes.
    """
    values, truth = as_pair(scores, labels)
    # The smallest value is NaN when any is: one pass, no temporary array.
    if values.size and np.isnan(values.min()):
        raise nan_error(values)
    return values, truth


def nan_error(values: Floats) -> MetricError:
    """Return the error for scores with NaN among them."""
    missing = np.isnan(values).sum()
    return MetricError(f"{missing} of {values.size} scores are NaN, expected none; check the model's output")


def as_pair(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Return what `check_scores` does, without the check for NaN."""
    values, truth = np.asarray(scores), np.asarray(labels)
    if values.shape != truth.shape:
        raise MetricError(
            f"scores have shape {values.shape} and labels {truth.shape}; pass one label for each score"
        )
    if values.dtype.kind not in "biuf":
        raise MetricError(f"scores are of type {values.dtype}, expected real numbers; make them float32")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
    if truth.dtype != np.bool_:
        if truth.dtype.kind not in "iuf" or not ((truth == 0) | (truth == 1)).all():
            values_found = ", ".join(str(value) for value in np.unique(truth)[:5])
            raise MetricError(f"labels hold {values_found}, expected only 0 and 1; binarise them with `> 0`")
        truth = truth == 1
    return values, truth


def _sorted(parts: Sequence[Floats]) -> Floats:
    joined = np.concatenate(parts)
    joined.sort()  # in place: parts may be most of the memory
    return joined


def _curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    values, truth = check_scores(scores, labels)
    normal = values[~truth]
    normal.sort()
    return Curve.from_scores(normal, values[truth])


def _pairs(maps: Maps, masks: Maps) -> Iterator[tuple[ArrayLike, ArrayLike]]:
    """Pair maps and masks; MetricError when their numbers differ or a single map was passed."""
    for name, stack in (("maps", maps), ("masks", masks)):
        if isinstance(stack, np.ndarray) and stack.ndim != 3:
            raise MetricError(f"{name} have shape {stack.shape}, expected (B, H, W); add an axis for one map")
    if len(maps) != len(masks):
        raise MetricError(f"{len(maps)} maps and {len(masks)} masks; pass one mask for each map")
    return zip(maps, masks, strict=True)
