"""Pixel metrics that grow map by map, in constant memory, with certified bounds.

`PixelMetrics` keeps histograms of the scores: of normal and of anomalous pixels, with and without weights. All of
them count in whole numbers, so states add, over batches, processes and classes, and in any order give
the same numbers to the last digit. Binning never swaps two scores, it only ties some; how much that can move a
metric is known, and comes with the result as a bound. `zsad.metrics.exact` keeps every pixel instead.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsad.errors import MetricError
from zsad.metrics.aupimo import RATE_BOUNDS, log_area
from zsad.metrics.bounds import (
    ROUNDING,
    aupimo_bound,
    aupro_bound,
    auroc_bound,
    average_precision,
    average_precision_bound,
    f1_max_bound,
    widened,
)
from zsad.metrics.components import Regions
from zsad.metrics.exact import (
    MetricValue,
    PixelResult,
    check_measure,
)
from zsad.metrics.functional import Curve, as_pair, check_limit, check_two_axes, nan_error
from zsad.metrics.pro import (
    ANOMALYCLIP_THRESHOLDS,
    MVTEC3D_THRESHOLDS,
    Bound,
    Estimates,
    Levels,
    anomalyclip_pro,
    equidistant,
    mvtec3d_pro,
    quantile_ranks,
)

# float32 tells neighbouring bins of [0, 1) apart up to here.
MOST_BINS = 2**22
# A region's or an image's weight in whole numbers; and how many of them their sum in int64 holds.
UNIT = 2**44
MOST_REGIONS = 2**18

# Written anew by every update, and shared: fresh pages for each map would cost as much as the histogram.
_scratch = threading.local()


class PixelMetrics:
    """AUROC, AP, F1-max, AUPRO and more of any number of maps in constant memory.

    Args:
        bins: histogram bins; more make the bounds narrower.
        value_range: (low, high) of the maps; scores outside are clamped and counted.
        limit: the largest false positive rate of AUPRO, in (0, 1].

    Raises:
        MetricError: an impossible setting.
    """

    def __init__(
        self, *, bins: int = 2**16, value_range: tuple[float, float] = (0.0, 1.0), limit: float = 0.3
    ) -> None:
        check_limit(limit)
        if not 1 <= bins <= MOST_BINS:
            raise MetricError(f"bins is {bins}, expected 1 to {MOST_BINS}; the default is {2**16}")
        low, high = (float(np.float32(value)) for value in value_range)
        if not (math.isfinite(low) and math.isfinite(high) and low < high and high - low > 1e-30):
            raise MetricError(f"value_range is {value_range}, expected finite (low, high) with low < high")
        self.bins = bins
        self.value_range = (low, high)
        self.limit = limit
        # Pixels by bin: of maps without any anomalous pixel, all those of the others, and anomalous ones; these once
        # more by UNIT / (pixels of their region) and by UNIT / (anomalous pixels of their map).
        self.clean, self.mixed, self.anomalous, self.weight, self.share = np.zeros((5, bins), dtype=np.int64)
        self.regions = 0
        self.clamped = 0
        self.maps = 0
        self.anomalous_maps = 0
        self.extremes = (math.inf, -math.inf)
        self.double = False

    def update(self, score_map: ArrayLike, mask: ArrayLike) -> None:
        """Add one map (H, W), without NaN, and its mask (H, W), 0 or 1; MetricError for anything else."""
        scores, foreground = as_pair(score_map, mask)
        check_two_axes(scores)
        if scores.size == 0:
            self.maps += 1
            return
        low, high = scores.min(), scores.max()
        if np.isnan(low):
            raise nan_error(scores)
        regions = Regions.find(foreground)
        self._check_room(regions.count)
        bins = self._bin(scores.ravel(), outside=self._count_outside(scores, low, high))
        counts = np.bincount(bins, minlength=self.bins + 1)
        counts[-2] += counts[-1]
        if regions.count == 0:
            self.clean += counts[:-1]
        else:
            self.mixed += counts[:-1]
            self._add_anomalous(np.minimum(bins[regions.positions], self.bins - 1), regions)
        self.maps += 1
        self.extremes = min(self.extremes[0], float(low)), max(self.extremes[1], float(high))
        self.double |= scores.dtype == np.float64

    @property
    def normal(self) -> NDArray[np.int64]:
        """Normal pixels (bins,) by bin."""
        normal: NDArray[np.int64] = self.clean + self.mixed - self.anomalous
        return normal

    @property
    def clean_pixels(self) -> int:
        """Pixels of maps without any anomalous one."""
        return int(self.clean.sum())

    def merge(self, other: PixelMetrics) -> PixelMetrics:
        """Add the state of `other` to this one and return it. MetricError when their settings differ."""
        mine, theirs = self._settings(), other._settings()
        if mine != theirs:
            raise MetricError(
                f"cannot merge pixel metrics of (bins, range, limit) {mine} and {theirs}; use equal ones"
            )
        self._check_room(other.regions)
        for name in _HISTOGRAMS:
            histogram = getattr(self, name)
            histogram += getattr(other, name)
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        low, high = zip(self.extremes, other.extremes, strict=True)
        self.extremes = min(low), max(high)
        self.double |= other.double
        return self

    def compute(self) -> PixelResult:
        """AUROC, AP, F1-max and AUPRO of all maps so far and their bounds; callable at any time."""
        curve = self.curve()
        bounds = {
            "auroc": widened(auroc_bound(curve)),
            "ap": widened(average_precision_bound(curve)),
            "f1_max": widened(f1_max_bound(curve)),
            "aupro": self._widened(aupro_bound(curve, limit=self.limit)),
        }
        return PixelResult(
            auroc=curve.auroc(),
            ap=average_precision(curve),
            f1_max=curve.f1_max(),
            aupro=curve.aupro(self.limit),
            bounds=bounds,
            normal_pixels=curve.normal,
            anomalous_pixels=int(self.anomalous.sum()),
            regions=self.regions,
            clamped=self.clamped,
        )

    def measure(self, name: str, *, limit: float | None = None) -> MetricValue:
        """Return one metric of `PIXEL_MEASURES`, up to a false positive rate `limit` other than the state's own.

        AUPIMO is the mean over anomalous images between the usual rates; a large normal image counts by its pixels.

        Raises:
            MetricError: an unknown measure, an impossible limit, or one for a measure without.
        """
        limit = check_measure(name, limit, default=self.limit)
        if name == "aupimo":
            return self._aupimo()
        if self.regions == 0 or not self.normal.any():
            return MetricValue(math.nan, math.nan, math.nan)
        if name == "aupro":
            curve = self.curve()
            value, bound = curve.aupro(limit), aupro_bound(curve, limit=limit)
        elif name == "pro_anomalyclip":
            value, bound = anomalyclip_pro(self._equidistant_levels(), limit=limit)
        else:
            value, bound = mvtec3d_pro(self._quantile_levels(), limit=limit)
        return MetricValue(value, *self._widened(bound))

    def curve(self) -> Curve:
        """The ranking of the pixels so far, all of a bin tied."""
        return self._curve(self.normal, self.weight, regions=self.regions)

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """The state as plain arrays, for `numpy.savez` or safetensors; `from_state` reads it."""
        counts = [*(getattr(self, name) for name in _COUNTS), int(self.double)]
        return {
            **{name: getattr(self, name).copy() for name in _HISTOGRAMS},
            "settings": np.array([*self.value_range, self.limit]),
            "extremes": np.array(self.extremes),
            "counts": np.array(counts, dtype=np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, ArrayLike]) -> PixelMetrics:
        """The metrics whose `state_dict` this was. MetricError when it is none."""
        expected = (*_HISTOGRAMS, "settings", "extremes", "counts")
        if missing := [name for name in expected if name not in state]:
            raise MetricError(f"state lacks {', '.join(missing)}; pass what state_dict() returned")
        arrays = {name: np.asarray(state[name]) for name in expected}
        settings, extremes, counts = (arrays[name] for name in ("settings", "extremes", "counts"))
        histograms = [arrays[name] for name in _HISTOGRAMS]
        if histograms[0].ndim != 1 or any(other.shape != histograms[0].shape for other in histograms):
            shapes = ", ".join(str(histogram.shape) for histogram in histograms)
            raise MetricError(f"histograms of shapes {shapes}, expected one length; the state is damaged")
        if settings.shape != (3,) or extremes.shape != (2,) or counts.shape != (len(_COUNTS) + 1,):
            raise MetricError("settings, extremes and counts need 3, 2 and 5 numbers; the state is damaged")
        low, high, limit = (float(value) for value in settings)
        metrics = cls(bins=histograms[0].size, value_range=(low, high), limit=limit)
        for name, histogram in zip(_HISTOGRAMS, histograms, strict=True):
            if histogram.dtype.kind not in "iu" or histogram.min() < 0:
                raise MetricError(f"{name} is no histogram of whole numbers from 0 on; the state is damaged")
            getattr(metrics, name)[:] = histogram
        for name, count in zip(_COUNTS, counts, strict=False):
            setattr(metrics, name, int(count))
        metrics.extremes, metrics.double = (float(extremes[0]), float(extremes[1])), bool(counts[-1])
        metrics._check_sums()
        return metrics

    def _settings(self) -> tuple[int, tuple[float, float], float]:
        return self.bins, self.value_range, self.limit

    def _check_room(self, regions: int) -> None:
        if self.regions + regions > MOST_REGIONS:
            raise MetricError(
                f"more than {MOST_REGIONS} regions in one class; are the masks noise? metrics='exact' takes them"
            )

    def _check_sums(self) -> None:
        """MetricError unless the weights sum to what was counted, up to their rounding."""
        pixels = int(self.anomalous.sum())
        for name, count in (("weight", self.regions), ("share", self.anomalous_maps)):
            if count < 0 or abs(int(getattr(self, name).sum()) - count * UNIT) > pixels:
                raise MetricError(f"{name} does not sum to {count}; the state is damaged")
        if min(self.maps, self.clamped) < 0 or (self.anomalous > self.mixed).any():
            raise MetricError("counts below 0 or more anomalous pixels than pixels; the state is damaged")

    def _add_anomalous(self, bins: NDArray[np.intp], regions: Regions) -> None:
        """Add the foreground of a map, of which `bins` (m,), to the anomalous pixels."""
        # In place: the few anomalous pixels do not deserve histograms of their own.
        np.add.at(self.anomalous, bins, 1)
        np.add.at(self.weight, bins, regions.spread(np.rint(UNIT / regions.areas).astype(np.int64)))
        np.add.at(self.share, bins, round(UNIT / bins.size))
        self.regions += regions.count
        self.anomalous_maps += 1

    def _count_outside(self, scores: NDArray[np.floating], lowest: float, highest: float) -> bool:
        """Count the scores out of the range; True where there are any."""
        low, high = self.value_range
        with np.errstate(over="ignore"):
            if np.float32(lowest) >= low and np.float32(highest) <= high:
                return False
            values = scores.astype(np.float32, copy=False)
        self.clamped += int(np.count_nonzero(values < low) + np.count_nonzero(values > high))
        return True

    def _bin(self, scores: NDArray[np.floating], *, outside: bool) -> NDArray[np.intp]:
        """Return the bin of every score (n,), the upper end of the range being one of its own, in a scratch array.

        Each step is monotone, so that a higher score is never in a lower bin. `outside` says that some scores are
        out of the range; they count at its ends.
        """
        low, high = self.value_range
        with np.errstate(over="ignore"):
            values: NDArray[np.floating] = scores.astype(np.float32, copy=False)
        if outside:
            values = np.clip(values, np.float32(low), np.float32(high))
        scaled, bins = _scratch_of(values.size)
        if low != 0.0:
            values = np.subtract(values, np.float32(low), out=scaled)
        np.multiply(values, np.float32(self.bins / (high - low)), out=scaled)
        np.copyto(bins, scaled, casting="unsafe")
        return bins

    def _curve(self, normal: NDArray[np.int64], weight: NDArray[np.int64], *, regions: int) -> Curve:
        """Return the ranking of anomalous pixels of `weight` (bins,), summing to `regions`, among `normal` (bins,)."""
        filled = np.flatnonzero(self.anomalous)[::-1]
        below = np.cumsum(normal)
        total = int(below[-1])
        return Curve(
            anomalous=self.anomalous[filled].astype(np.float64),
            weight=weight[filled].astype(np.float64) * (regions / max(int(weight.sum()), 1)),
            above=(total - below[filled]).astype(np.float64),
            tied=normal[filled].astype(np.float64),
            normal=total,
            regions=regions,
        )

    def _widened(self, bound: Bound) -> Bound:
        """Return the bound, wider by what float64 loses and by the rounding of the weights to whole numbers."""
        pixels = int(self.anomalous.sum()) / max(self.regions, self.anomalous_maps, 1)
        return widened(bound, ROUNDING + pixels / UNIT)

    def _aupimo(self) -> MetricValue:
        curve = self._curve(self.clean, self.share, regions=1)
        bound = aupimo_bound(curve, bounds=RATE_BOUNDS)
        if math.isnan(bound[0]):
            return MetricValue(math.nan, *bound)
        above, beside = curve.above / curve.normal, (curve.above + curve.tied) / curve.normal
        value = float(curve.weight @ log_area(above, beside, bounds=RATE_BOUNDS))
        pixels = int(self.anomalous.sum()) / self.anomalous_maps
        return MetricValue(min(value, 1.0), *widened(bound, ROUNDING + pixels / UNIT))

    def equidistant_bins(self) -> NDArray[np.intp]:
        """Return the bins (K,), rising, of AnomalyCLIP's thresholds."""
        return np.minimum(self._bin(self._equidistant(), outside=True), self.bins - 1)

    def _equidistant(self) -> NDArray[np.floating]:
        kind = np.float64 if self.double else np.float32
        return equidistant(*(kind(end) for end in self.extremes), thresholds=ANOMALYCLIP_THRESHOLDS)

    def _equidistant_levels(self) -> Levels:
        """AnomalyCLIP's thresholds; scores of the bin that holds one may lie on either side of it."""
        levels, bins = self._equidistant(), self.equidistant_bins()
        low, high = self.value_range
        position = (levels.astype(np.float64) - low) * (self.bins / (high - low)) - bins
        return self._levels(bins, np.clip(position, 0.0, 1.0))

    def _quantile_levels(self) -> Levels:
        """MVTec 3D-AD's thresholds: their rates are known, their bins as well, their places in the bins are not."""
        normal = self.normal
        below = np.cumsum(normal)
        ranks = quantile_ranks(int(below[-1]), thresholds=MVTEC3D_THRESHOLDS)
        bins = np.searchsorted(below, ranks, side="right")
        tied = normal[bins]
        levels = self._levels(bins, (ranks + 0.5 - (below[bins] - tied)) / tied)
        return replace(levels, rates=(1.0 - (ranks + 1) / below[-1],) * 3)

    def _levels(self, bins: NDArray[np.intp], position: NDArray[np.float64]) -> Levels:
        """Return the levels of thresholds in `bins` (K,), of each of which the share `position` (K,) may lie below."""

        def shares_above(counts: NDArray[np.int64]) -> Estimates:
            below, tied, whole = np.cumsum(counts)[bins], counts[bins], max(int(counts.sum()), 1)
            guess, low, high = (1.0 - (below - tied * (1.0 - at)) / whole for at in (position, 1.0, 0.0))
            return guess, low, high

        return Levels(rates=shares_above(self.normal), overlaps=shares_above(self.weight))


_HISTOGRAMS = ("clean", "mixed", "anomalous", "weight", "share")
_COUNTS = ("regions", "clamped", "maps", "anomalous_maps")


def _scratch_of(size: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return two arrays (size,) that live until the same thread asks again."""
    arrays: tuple[NDArray[np.float32], NDArray[np.intp]] | None = getattr(_scratch, "arrays", None)
    if arrays is None or arrays[0].size != size:
        arrays = _scratch.arrays = np.empty(size, np.float32), np.empty(size, np.intp)
    return arrays
