"""Metrics that keep what they are given: every pixel of the maps, every score of the images; no bins, no bounds."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from zsad.errors import MetricError
from zsad.metrics.aupimo import image_scores
from zsad.metrics.functional import Curve, MapScores, check_limit, check_scores
from zsad.metrics.pro import Bound

# Measures of pixels beside AUROC, AP, F1-max and AUPRO up to the state's limit.
PIXEL_MEASURES = ("aupro", "pro_anomalyclip", "aupro_mvtec3d", "aupimo")


class MetricValue(NamedTuple):
    """A metric in [0, 1] or NaN, and the bound that holds its exact value."""

    value: float
    low: float
    high: float


def check_measure(name: str, limit: float | None, *, default: float) -> float:
    """Return the limit, by default that of the state; MetricError for an unknown measure or an impossible limit."""
    if name not in PIXEL_MEASURES:
        raise MetricError(f"measure is {name!r}, expected one of {', '.join(PIXEL_MEASURES)}")
    if limit is None:
        return default
    if name == "aupimo":
        raise MetricError(f"aupimo has no limit, got {limit}; leave it out")
    check_limit(limit)
    return limit


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

    def metric(self, name: str) -> MetricValue:
        """Return a metric by its name, "auroc", "ap", "f1_max" or "aupro", with its bound."""
        return MetricValue(getattr(self, name), *self.bounds[name])

    def error(self, name: str) -> float:
        """Return the most by which the metric `name` can be off."""
        value, low, high = self.metric(name)
        return max(value - low, high - value)


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
        self._parts.append(part if part.regions else replace(part, clean=part.clean.copy()))
        self.maps += 1

    @property
    def clean_pixels(self) -> int:
        """Pixels of maps without any anomalous one."""
        return sum(part.clean.size for part in self._parts)

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
            normal_pixels=curve.normal,
            anomalous_pixels=pixels.anomalous.size,
            regions=pixels.regions,
            clamped=0,
        )

    def measure(self, name: str, *, limit: float | None = None) -> MetricValue:
        """Return one metric of `PIXEL_MEASURES`, up to a false positive rate `limit` other than the state's own."""
        pixels, limit = self._joined(), check_measure(name, limit, default=self.limit)
        if name == "aupro":
            value = pixels.curve().aupro(limit)
        elif name == "pro_anomalyclip":
            value = pixels.pro_anomalyclip(limit=limit)
        elif name == "aupro_mvtec3d":
            value = pixels.aupro_mvtec3d(limit=limit)
        else:
            scores = image_scores(pixels)
            value = float(np.nanmean(scores)) if np.isfinite(scores).any() else math.nan
        return MetricValue(value, value, value)

    def curve(self) -> Curve:
        """The ranking of the pixels so far."""
        return self._joined().curve()

    def _joined(self) -> MapScores:
        """Return all pixels as one sorted part, which replaces the parts so that a second call is cheap."""
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
