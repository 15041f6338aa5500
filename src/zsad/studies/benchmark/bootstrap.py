"""Uncertainty of a number: deviation over seeds, and bootstrap intervals over images.

Images are resampled within their class and label, so that every resample has as many normal and anomalous images
as the data set, and all methods are measured on the same resamples. Nothing is trained or scored again: a resample
is a count for each image, and thousands of them go through one ranking of the scores at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, stdev

import numpy as np
from numpy.typing import NDArray

from zsad.errors import MetricError

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max")
RESAMPLES, LEVEL = 2000, 0.95
MOST_ELEMENTS = 2_000_000  # of one array while resampling
MOST_LEFT_OUT = 1000  # images of a class; beyond, the acceleration is too small to matter
ROUNDING = 1e-12

Float64 = NDArray[np.float64]
Counts = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval that holds the true value with the stated probability."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds: `deviation` is the sample's, NaN below two seeds; undefined ones are only counted."""

    mean: float
    deviation: float
    count: int
    undefined: int = 0

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """Summarise values; None and NaN are undefined."""
        given = list(values)
        defined = [value for value in given if value is not None and not math.isnan(value)]
        mean = math.fsum(defined) / len(defined) if defined else math.nan
        deviation = stdev(defined) if len(defined) > 1 else math.nan
        return cls(mean, deviation, len(defined), len(given) - len(defined))


@dataclass(frozen=True, slots=True)
class Sampled:
    """A metric with its resamples, for each of S seeds; several of them have a mean that is one again.

    Attributes:
        seeds: of the S trainings.
        values: (S,) the metric itself.
        drawn: (S, R) its value in each resample; the R resamples are the same for all seeds and methods.
        squared: sum of the squared influences of the images on the mean over seeds, for the acceleration.
        cubed: sum of their cubes.
        images: how many images there are.
    """

    seeds: tuple[int | None, ...]
    values: Float64
    drawn: Float64
    squared: float
    cubed: float
    images: int

    @classmethod
    def of(
        cls,
        seeds: Sequence[int | None],
        values: Float64,
        drawn: Float64,
        left_out: Sequence[Float64],
        sizes: Sequence[int],
    ) -> Sampled:
        """Return a metric of one class.

        Args:
            seeds: S of them.
            values: (S,) of all images.
            drawn: (S, R) of the resamples.
            left_out: S times (N,), with one image left out.
            sizes: of the samples that the N images were drawn from, one behind the other.
        """
        squared, cubed = _influence(np.mean(left_out, axis=0), sizes)
        return cls(tuple(seeds), values, drawn, squared, cubed, sum(sizes))

    @classmethod
    def mean(cls, parts: Sequence[Sampled]) -> Sampled:
        """Average classes, or data sets, over the seeds that all of them have, each counting the same.

        Raises:
            MetricError: no parts, or no seed in common.
        """
        seeds = (
            [seed for seed in parts[0].seeds if all(seed in part.seeds for part in parts)] if parts else []
        )
        if not seeds:
            raise MetricError(f"{len(parts)} parts have no seed in common; measure each with the same seeds")
        rows = [[part.seeds.index(seed) for seed in seeds] for part in parts]
        count = len(parts)
        return cls(
            tuple(seeds),
            np.mean([part.values[row] for part, row in zip(parts, rows, strict=True)], axis=0),
            np.mean([part.drawn[row] for part, row in zip(parts, rows, strict=True)], axis=0),
            sum(part.squared for part in parts) / count**2,
            sum(part.cubed for part in parts) / count**3,
            sum(part.images for part in parts),
        )

    def interval(self, *, level: float = LEVEL) -> Interval | None:
        """Return the interval of the mean over seeds for another choice of images: bias-corrected and accelerated.

        None where every resample gives the same value, as with a perfect ranking: then the images at hand cannot
        tell how far the next ones would be off.

        Source: Efron, Better Bootstrap Confidence Intervals, JASA 1987.
        """
        drawn, value = self.drawn.mean(axis=0), float(self.values.mean())
        if np.isnan(drawn).any() or float(np.ptp(drawn)) < ROUNDING:
            return None
        below = float(((drawn < value - ROUNDING).mean() + (drawn <= value + ROUNDING).mean()) / 2)
        shares = [(1 - level) / 2, (1 + level) / 2]
        if 0 < below < 1:
            normal = NormalDist()
            bias = normal.inv_cdf(below)
            acceleration = self.cubed / (6 * self.squared**1.5) if self.squared > 0 else 0.0
            for index, share in enumerate(shares):
                moved = bias + normal.inv_cdf(share)
                shares[index] = normal.cdf(bias + moved / max(1 - acceleration * moved, 1e-3))
        low, high = np.quantile(drawn, shares)
        return Interval(min(float(low), value), max(float(high), value))

    def with_seed_noise(self, generator: np.random.Generator) -> Float64:
        """Return resamples (R,) of the mean over seeds, in each of which the seeds are drawn anew, too.

        Drawing S of S seeds gives too small a variance by the factor (S - 1) / S, which is made good.
        """
        middle: Float64 = self.drawn.mean(axis=0)
        count = len(self.seeds)
        if count < 2:
            return middle
        picks = generator.integers(0, count, size=(count, self.drawn.shape[1]))
        picked = np.take_along_axis(self.drawn, picks, axis=0).mean(axis=0)
        stretched: Float64 = middle + math.sqrt(count / (count - 1)) * (picked - middle)
        return stretched


def sample_class(
    scores: Float64,
    labels: NDArray[np.int8],
    *,
    seeds: Sequence[int | None],
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> dict[str, Sampled] | None:
    """Return image metrics of one class for several seeds of a method, with resamples over the images.

    Two methods are on the same resamples when the generators start alike.

    Args:
        scores: (S, N), a row for each seed, higher is more anomalous, no NaN.
        labels: (N,) 0 or 1.
        seeds: of the S rows.
        generator: draws the images.
        resamples: R, how many.

    Returns:
        By metric; None where a label is missing.

    Raises:
        MetricError: shapes that do not fit, NaN, or other labels.
    """
    if scores.ndim != 2 or scores.shape != (len(seeds), labels.size):
        raise MetricError(
            f"scores have shape {scores.shape}, expected ({len(seeds)}, {labels.size}): seeds by images"
        )
    if np.isnan(scores).any() or not np.isin(labels, (0, 1)).all():
        raise MetricError("scores hold NaN or labels others than 0 and 1; leave such images out")
    sizes = [int((labels == value).sum()) for value in (0, 1)]
    if min(sizes) == 0:
        return None
    rows = [(row[labels == 0], row[labels == 1]) for row in scores]
    normal, anomalous = (draw_counts(size, resamples, generator) for size in sizes)
    once = [np.ones((size, 1), np.uint16) for size in sizes]
    values = [counted_metrics(*row, once[0], once[1]) for row in rows]
    drawn = [counted_metrics(*row, normal, anomalous) for row in rows]
    left_out = [_without_each(*row) for row in rows]
    sampled = {}
    for metric in IMAGE_METRICS:
        sampled[metric] = Sampled.of(
            seeds,
            np.array([each[metric][0] for each in values]),
            np.stack([each[metric] for each in drawn]),
            [each[metric] for each in left_out],
            sizes,
        )
    return sampled


def draw_counts(size: int, resamples: int, generator: np.random.Generator) -> Counts:
    """Count how often each of `size` images is in each of `resamples` draws with replacement, (size, resamples)."""
    counts = np.empty((size, resamples), np.uint16)
    if size == 0:
        return counts
    step = max(1, MOST_ELEMENTS // size)
    for start in range(0, resamples, step):
        width = min(step, resamples - start)
        places = generator.integers(0, size, size=(size, width)) * width + np.arange(width)
        counted = np.bincount(places.ravel(), minlength=size * width)
        counts[:, start : start + width] = counted.reshape(size, width)
    return counts


def counted_metrics(
    normal: Float64, anomalous: Float64, normal_counts: Counts, anomalous_counts: Counts
) -> dict[str, Float64]:
    """Return AUROC, AP and F1-max of R multisets of the same images, as `zsad.metrics.functional` does of one.

    Args:
        normal: (n,) scores, n at least 1.
        anomalous: (m,) scores, m at least 1.
        normal_counts: (n, R) how often each normal image is in each multiset.
        anomalous_counts: (m, R) the same of the anomalous ones.

    Returns:
        (R,) by metric; NaN for a multiset in which a label is missing.
    """
    down, up = np.argsort(-anomalous, kind="stable"), np.argsort(-normal, kind="stable")
    ranked, ordered = -anomalous[down], -normal[up]
    first = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    above = np.searchsorted(ordered, ranked[first], side="left")
    reached = np.searchsorted(ordered, ranked[first], side="right")
    resamples = normal_counts.shape[1]
    metrics = {metric: np.empty(resamples) for metric in IMAGE_METRICS}
    step = max(1, MOST_ELEMENTS // (normal.size + anomalous.size))
    for start in range(0, resamples, step):
        part = slice(start, start + step)
        false = np.zeros((normal.size + 1, min(step, resamples - start)))
        np.cumsum(normal_counts[up, part], axis=0, out=false[1:])
        gained = np.add.reduceat(anomalous_counts[down, part], first, axis=0, dtype=np.float64)
        for metric, values in _ranked_metrics(gained, false, above, reached).items():
            metrics[metric][part] = values
    return metrics


def _ranked_metrics(
    gained: Float64, false: Float64, above: NDArray[np.intp], reached: NDArray[np.intp]
) -> dict[str, Float64]:
    """Return the metrics of multisets from their G groups of equal anomalous scores, from the highest down.

    `gained` (G, R) anomalous images in each group; `false` (n + 1, R) normal images among the highest ones;
    `above`, `reached` (G,) how many different normal images lie above a group, and above or with it.
    """
    hits = np.cumsum(gained, axis=0)
    total, normal = hits[-1], false[-1]
    over, within = false[above], false[reached]
    taken = hits + within
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = 1.0 - np.einsum("gr,gr->r", gained, over + within) / (2 * total * normal)
        precision = hits / np.maximum(taken, 1.0)
        average = np.einsum("gr,gr->r", gained, precision) / total
        best = (2 * hits / (taken + total)).max(axis=0)
    undefined = (total == 0) | (normal == 0)
    return {
        metric: np.where(undefined, np.nan, values)
        for metric, values in zip(IMAGE_METRICS, (auroc, average, best), strict=True)
    }


def _without_each(normal: Float64, anomalous: Float64) -> dict[str, Float64]:
    """Return the metrics (n + m,) with one image left out, normal ones first; all alike where there are very many."""
    sizes = (normal.size, anomalous.size)
    total = sum(sizes)
    if total > MOST_LEFT_OUT:
        return dict.fromkeys(IMAGE_METRICS, np.zeros(total))
    counts = np.ones((total, total), np.uint16) - np.eye(total, dtype=np.uint16)
    return counted_metrics(normal, anomalous, counts[: sizes[0]], counts[sizes[0] :])


def _influence(left_out: Float64, sizes: Sequence[int]) -> tuple[float, float]:
    """Return sums of squares and cubes of the images' influences, by the jackknife of several samples."""
    squared = cubed = 0.0
    for part in np.split(left_out, np.cumsum(sizes)[:-1]):
        if part.size > 1:
            influence = (part.size - 1) / part.size * (part.mean() - part)
            squared += float((influence**2).sum())
            cubed += float((influence**3).sum())
    return squared, cubed
