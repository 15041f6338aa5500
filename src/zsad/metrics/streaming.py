"""Metrics that grow image by image: pixel metrics in constant memory with certified bounds, and image scores.

`PixelMetrics` keeps three histograms of the scores: normal pixels, anomalous pixels, region weights. So its
states add, over batches, processes and classes. Binning never swaps two scores, it only ties some; how much
that can move a metric is known, and comes with the result as a bound. `ExactPixelMetrics` keeps every pixel.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsad.errors import MetricError
from zsad.metrics.functional import Curve, MapScores, check_limit, check_map, check_scores
from zsad.metrics.regions import bounding_box, region_weights

# float32 tells neighbouring bins of [0, 1) apart up to here.
MOST_BINS = 2**22
# What float64 sums over the pixels of a large data set can be off by; every bound is widened by it.
ROUNDING = 1e-10

Bound = tuple[float, float]
UNDEFINED: Bound = (math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class PixelResult:
    """Pixel metrics in [0, 1] (NaN: undefined), each with a bound (low, high) that holds the exact value.

    `clamped` counts pixels outside the value range: they share the outermost bins, which the bounds include.
    """

    auroc: float
    ap: float
    f1_max: float
    aupro: float
    bounds: dict[str, Bound]
    normal_pixels: int
    anomalous_pixels: int
    regions: int
    clamped: int

    def error(self, name: str) -> float:
        """The most by which the metric `name` ("auroc", "ap", "f1_max", "aupro") can be off."""
        value, (low, high) = float(getattr(self, name)), self.bounds[name]
        return max(value - low, high - value)


class PixelMetrics:
    """AUROC, AP, F1-max and AUPRO of any number of maps in constant memory.

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
        self.normal: NDArray[np.int64] = np.zeros(bins, dtype=np.int64)
        self.anomalous: NDArray[np.int64] = np.zeros(bins, dtype=np.int64)
        self.weight: NDArray[np.float64] = np.zeros(bins, dtype=np.float64)
        self.regions = 0
        self.clamped = 0
        self.maps = 0
        # Written anew by every update: fresh pages for each map would cost as much as the histogram.
        self._scratch: tuple[NDArray[np.float32], NDArray[np.intp]] | None = None

    def update(self, score_map: ArrayLike, mask: ArrayLike) -> None:
        """Add one map (H, W), without NaN, and its mask (H, W), 0 or 1; MetricError for anything else."""
        scores, foreground = check_map(score_map, mask)
        bins = self._bin(scores)
        counts = np.bincount(bins.ravel(), minlength=self.bins + 1)
        self.normal += counts[:-1]
        self.normal[-1] += counts[-1]
        box = bounding_box(foreground)
        if box is not None:
            inside = np.minimum(bins[box][foreground[box]], self.bins - 1)
            weights, regions = region_weights(foreground[box])
            # In place: the few anomalous pixels do not deserve histograms of their own.
            np.add.at(self.anomalous, inside, 1)
            np.subtract.at(self.normal, inside, 1)
            np.add.at(self.weight, inside, weights)
            self.regions += regions
        self.maps += 1

    def merge(self, other: PixelMetrics) -> PixelMetrics:
        """Add the state of `other` to this one and return it. MetricError when their settings differ."""
        mine, theirs = self._settings(), other._settings()
        if mine != theirs:
            raise MetricError(
                f"cannot merge pixel metrics of (bins, range, limit) {mine} and {theirs}; use equal ones"
            )
        self.normal += other.normal
        self.anomalous += other.anomalous
        self.weight += other.weight
        self.regions += other.regions
        self.clamped += other.clamped
        self.maps += other.maps
        return self

    def compute(self) -> PixelResult:
        """The metrics of all maps so far and their bounds; callable at any time."""
        curve = self.curve()
        bounds = {
            "auroc": _auroc_bound(curve),
            "ap": _average_precision_bound(curve),
            "f1_max": _f1_max_bound(curve),
            "aupro": _aupro_bound(curve, limit=self.limit),
        }
        return PixelResult(
            auroc=curve.auroc(),
            ap=_average_precision(curve),
            f1_max=curve.f1_max(),
            aupro=curve.aupro(self.limit),
            bounds={name: _widened(bound) for name, bound in bounds.items()},
            normal_pixels=curve.normal,
            anomalous_pixels=int(self.anomalous.sum()),
            regions=self.regions,
            clamped=self.clamped,
        )

    def curve(self) -> Curve:
        """The ranking of the pixels so far, all of a bin tied."""
        filled = np.flatnonzero(self.anomalous)[::-1]
        below = np.cumsum(self.normal)
        total = int(below[-1])
        return Curve(
            anomalous=self.anomalous[filled].astype(np.float64),
            weight=self.weight[filled],
            above=(total - below[filled]).astype(np.float64),
            tied=self.normal[filled].astype(np.float64),
            normal=total,
            regions=self.regions,
        )

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """The state as plain arrays, for `numpy.savez` or safetensors; `from_state` reads it."""
        return {
            "normal": self.normal.copy(),
            "anomalous": self.anomalous.copy(),
            "weight": self.weight.copy(),
            "settings": np.array([*self.value_range, self.limit]),
            "counts": np.array([self.regions, self.clamped, self.maps], dtype=np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, ArrayLike]) -> PixelMetrics:
        """The metrics whose `state_dict` this was. MetricError when it is none."""
        expected = ("normal", "anomalous", "weight", "settings", "counts")
        if missing := [name for name in expected if name not in state]:
            raise MetricError(f"state lacks {', '.join(missing)}; pass what state_dict() returned")
        normal, anomalous, weight, settings, counts = (np.asarray(state[name]) for name in expected)
        if normal.ndim != 1 or not normal.shape == anomalous.shape == weight.shape:
            shapes = f"{normal.shape}, {anomalous.shape}, {weight.shape}"
            raise MetricError(f"histograms of shapes {shapes}, expected one length; the state is damaged")
        if settings.shape != (3,) or counts.shape != (3,):
            raise MetricError("settings and counts need 3 numbers each; the state is damaged")
        regions, clamped, maps = (int(count) for count in counts)
        if min(normal.min(), anomalous.min(), weight.min(), regions, clamped, maps) < 0 or not math.isclose(
            float(weight.sum()), regions, rel_tol=1e-9, abs_tol=1e-9
        ):
            raise MetricError(f"counts below 0 or weights that do not sum to {regions}; the state is damaged")
        low, high, limit = (float(value) for value in settings)
        metrics = cls(bins=normal.size, value_range=(low, high), limit=limit)
        metrics.normal += normal
        metrics.anomalous += anomalous
        metrics.weight += weight
        metrics.regions, metrics.clamped, metrics.maps = regions, clamped, maps
        return metrics

    def _settings(self) -> tuple[int, tuple[float, float], float]:
        return self.bins, self.value_range, self.limit

    def _bin(self, scores: NDArray[np.floating]) -> NDArray[np.intp]:
        """Bin of every score (H, W), the upper end of the range being one of its own, in a scratch array.

        Each step is monotone, so that a higher score is never in a lower bin.
        """
        low, high = self.value_range
        with np.errstate(over="ignore"):
            values: NDArray[np.floating] = scores.astype(np.float32, copy=False)
        outside = values.size > 0 and (values.min() < low or values.max() > high)
        if outside:
            self.clamped += int(np.count_nonzero(values < low) + np.count_nonzero(values > high))
            values = np.clip(values, np.float32(low), np.float32(high))
        if self._scratch is None or self._scratch[0].shape != values.shape:
            self._scratch = np.empty(values.shape, np.float32), np.empty(values.shape, np.intp)
        scaled, bins = self._scratch
        if low != 0.0:
            values = np.subtract(values, np.float32(low), out=scaled)
        np.multiply(values, np.float32(self.bins / (high - low)), out=scaled)
        np.copyto(bins, scaled, casting="unsafe")
        return bins


class ExactPixelMetrics:
    """The same metrics without bins: every pixel is kept, 4 bytes or more, so memory grows with the data.

    Args:
        limit: the largest false positive rate of AUPRO and PRO, in (0, 1].
    """

    def __init__(self, *, limit: float = 0.3) -> None:
        check_limit(limit)
        self.limit = limit
        self.maps = 0
        self._parts: list[MapScores] = []

    def update(self, score_map: ArrayLike, mask: ArrayLike) -> None:
        """Add one map (H, W), without NaN, and its mask (H, W), 0 or 1; MetricError for anything else."""
        part = MapScores.split(score_map, mask)
        # Without foreground the scores are a view of the caller's map, which may be written to later.
        self._parts.append(part if part.regions else MapScores(part.normal.copy(), *_rest(part)))
        self.maps += 1

    def merge(self, other: ExactPixelMetrics) -> ExactPixelMetrics:
        """Add the pixels of `other` to these and return them. MetricError when the limits differ."""
        if self.limit != other.limit:
            raise MetricError(f"cannot merge limits {self.limit} and {other.limit}; use equal ones")
        self._parts.extend(other._parts)
        self.maps += other.maps
        return self

    def compute(self) -> PixelResult:
        """The exact metrics of all maps so far; each bound is the value itself."""
        pixels = self._joined()
        curve = pixels.curve()
        values = {
            "auroc": curve.auroc(),
            "ap": curve.average_precision(),
            "f1_max": curve.f1_max(),
            "aupro": curve.aupro(self.limit),
        }
        return PixelResult(
            **values,
            bounds={name: (value, value) for name, value in values.items()},
            normal_pixels=pixels.normal.size,
            anomalous_pixels=pixels.anomalous.size,
            regions=pixels.regions,
            clamped=0,
        )

    def curve(self) -> Curve:
        """The ranking of the pixels so far."""
        return self._joined().curve()

    def pro_anomalyclip(self) -> float:
        """The PRO of AnomalyCLIP's tables, see `zsad.metrics.functional.pro_anomalyclip`."""
        return self._joined().pro_anomalyclip(limit=self.limit)

    def _joined(self) -> MapScores:
        """All pixels as one sorted part, which replaces the parts so that a second call is cheap."""
        self._parts = [MapScores.join(self._parts)]
        return self._parts[0]


@dataclass(frozen=True, slots=True)
class ImageResult:
    """Image metrics in [0, 1] (NaN: undefined) and the numbers of normal and anomalous images."""

    auroc: float
    ap: float
    f1_max: float
    normal: int
    anomalous: int


@dataclass(slots=True)
class ImageScores:
    """Image scores with their labels; 9 bytes an image, metrics exact."""

    scores: array[float] = field(default_factory=lambda: array("d"))
    labels: array[int] = field(default_factory=lambda: array("b"))

    def add(self, score: float, label: int) -> None:
        """Add one image. MetricError when the score is NaN or the label neither 0 nor 1."""
        check_scores(score, label)
        self.scores.append(float(score))
        self.labels.append(int(label))

    def merge(self, other: ImageScores) -> ImageScores:
        """Add the images of `other` to these and return them."""
        self.scores.extend(other.scores)
        self.labels.extend(other.labels)
        return self

    def curve(self) -> Curve:
        """The ranking of the images so far."""
        scores, truth = np.array(self.scores), np.array(self.labels, dtype=bool)
        return Curve.from_scores(np.sort(scores[~truth]), scores[truth])

    def compute(self) -> ImageResult:
        """AUROC, AP and F1-max of all images so far."""
        curve = self.curve()
        return ImageResult(
            auroc=curve.auroc(),
            ap=curve.average_precision(),
            f1_max=curve.f1_max(),
            normal=curve.normal,
            anomalous=int(curve.anomalous.sum()),
        )


def _rest(part: MapScores) -> tuple[NDArray[np.floating], NDArray[np.float64], int]:
    return part.anomalous.copy(), part.weight, part.regions


def _auroc_bound(curve: Curve) -> Bound:
    """Within a bin: all normal pixels first (low), or all anomalous ones first (high)."""
    if not curve.defined:
        return UNDEFINED
    share = curve.anomalous / curve.anomalous.sum()
    above = float(share @ curve.above) / curve.normal
    return 1.0 - above - float(share @ curve.tied) / curve.normal, 1.0 - above


def _aupro_bound(curve: Curve, *, limit: float) -> Bound:
    """As for AUROC: the whole weight of a bin is gained at its right end (low) or at its left one (high)."""
    if not curve.defined or curve.regions == 0:
        return UNDEFINED
    scale = curve.regions * limit
    late = np.maximum(limit - (curve.above + curve.tied) / curve.normal, 0.0)
    early = np.maximum(limit - curve.above / curve.normal, 0.0)
    return float(curve.weight @ late) / scale, float(curve.weight @ early) / scale


def _average_precision(curve: Curve) -> float:
    """AP with the pixels of a bin evenly mixed, as scores without ties nearly are: precision in mid-bin."""
    if not curve.defined:
        return math.nan
    hits = np.cumsum(curve.anomalous) - curve.anomalous / 2
    return float(curve.anomalous @ (hits / (hits + curve.above + curve.tied / 2)) / curve.anomalous.sum())


def _average_precision_bound(curve: Curve) -> Bound:
    """Low: normal pixels first, anomalous ones one by one. High: anomalous ones first, all tied.

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


def _f1_max_bound(curve: Curve) -> Bound:
    """Low: thresholds between bins, which exist. High: anomalous pixels of a bin before its normal ones."""
    if not curve.defined:
        return UNDEFINED
    hits = np.cumsum(curve.anomalous)
    return curve.f1_max(), float((2 * hits / (hits + curve.above + hits[-1])).max())


def _widened(bound: Bound) -> Bound:
    low, high = float(bound[0]), float(bound[1])
    if math.isnan(low):
        return UNDEFINED
    return max(low - ROUNDING, 0.0), min(high + ROUNDING, 1.0)
