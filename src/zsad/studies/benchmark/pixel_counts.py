"""Uncertainty of pixel metrics: each image's pixels are counted in a few groups of scores, which draws add up.

The groups are made for each class out of its fine histogram, so that none holds much of its normal or of its anomalous
pixels. Metrics of such groups are off by little, and by about the same in every draw: what they are off by with all
images is known and taken away from the draws, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsad.datasets.manifest import DataSet
from zsad.files import read_arrays
from zsad.metrics.classes import ClassScores, Pro
from zsad.metrics.streaming import UNIT, PixelMetrics
from zsad.runs.metric_cache import MASKS_FILE, MaskCache
from zsad.runs.remeasure import ScoredRun
from zsad.studies.benchmark.bootstrap import (
    MOST_ELEMENTS,
    MOST_LEFT_OUT,
    RESAMPLES,
    Float64,
    Sampled,
    draw_counts,
)

PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_pro")
GROUPS = 256
LIMIT = 0.3  # of PRO, as a benchmark measures it
_ARRAYS = ("clean", "marked", "clean_normal", "normal", "anomalous", "weight", "levels")
_WHOLE_CURVE = np.empty(0, np.intp)


@dataclass(frozen=True, slots=True)
class ClassPixels:
    """The pixels of a class's images by G groups of scores, from the highest down.

    Attributes:
        clean: (n,) names of the images without anomalous pixels.
        marked: (m,) names of the others.
        clean_normal: (n, G) pixels of the clean ones.
        normal: (m, G) normal pixels of the marked ones.
        anomalous: (m, G) anomalous pixels.
        weight: (m, G) the same, each pixel by 1 / (pixels of its region).
        levels: (K,) groups that lie above each threshold of AnomalyCLIP's PRO, falling; empty: PRO takes the curve.
    """

    clean: NDArray[np.str_]
    marked: NDArray[np.str_]
    clean_normal: NDArray[Any]
    normal: NDArray[Any]
    anomalous: NDArray[Any]
    weight: NDArray[Any]
    levels: NDArray[Any]

    @classmethod
    def of(
        cls,
        images: Iterable[tuple[str, PixelMetrics]],
        starts: NDArray[np.intp],
        thresholds: NDArray[np.intp],
    ) -> ClassPixels:
        """Count images, each given by its name and its own histogram, by groups that start at bins `starts` (G,).

        Each of the `thresholds` (K,), bins that rise, is one of the starts.
        """
        clean: list[tuple[str, Float64]] = []
        marked: list[tuple[str, Float64]] = []
        for name, state in images:
            parts = (state.normal, state.anomalous, state.weight / UNIT)
            counted = np.stack([np.add.reduceat(part.astype(float), starts)[::-1] for part in parts])
            (marked if state.regions else clean).append((name, counted))
        names = [np.array([name for name, _ in group], dtype=str) for group in (clean, marked)]
        without, with_defects = (
            np.array([counted for _, counted in group]).reshape(-1, 3, starts.size)
            for group in (clean, marked)
        )
        return cls(
            names[0],
            names[1],
            clean_normal=without[:, 0].astype(np.uint32),
            normal=with_defects[:, 0].astype(np.uint32),
            anomalous=with_defects[:, 1].astype(np.uint32),
            weight=with_defects[:, 2].astype(np.float32),
            levels=(starts.size - np.searchsorted(starts, thresholds)).astype(np.uint16),
        )

    def taken(self, clean: Sequence[str], marked: Sequence[str]) -> ClassPixels:
        """Return some of the images, in the order given."""
        rows = {name: row for row, name in enumerate(self.clean.tolist())}
        marked_rows = {name: row for row, name in enumerate(self.marked.tolist())}
        first, second = [rows[name] for name in clean], [marked_rows[name] for name in marked]
        return ClassPixels(
            self.clean[first],
            self.marked[second],
            self.clean_normal[first],
            self.normal[second],
            self.anomalous[second],
            self.weight[second],
            self.levels,
        )

    def once(self) -> dict[str, float]:
        """Return the metrics of all images, each taken once."""
        normal = self.clean_normal.sum(axis=0, dtype=float) + self.normal.sum(axis=0, dtype=float)
        sums = (part.sum(axis=0, dtype=float)[None] for part in (self.anomalous, self.weight))
        return {name: float(values[0]) for name, values in self._metrics(normal[None], *sums).items()}

    def drawn(self, clean: NDArray[np.uint16], marked: NDArray[np.uint16]) -> dict[str, Float64]:
        """Return metrics (R,) of draws with each clean image `clean` (n, R) and each other `marked` (m, R) times."""
        resamples = marked.shape[1]
        metrics = {name: np.empty(resamples) for name in PIXEL_METRICS}
        images = [
            part.astype(float) for part in (self.clean_normal, self.normal, self.anomalous, self.weight)
        ]
        step = max(1, MOST_ELEMENTS // max(len(self.clean) + len(self.marked), self.weight.shape[1]))
        for start in range(0, resamples, step):
            part = slice(start, start + step)
            times = marked[:, part].T.astype(float)
            normal = clean[:, part].T.astype(float) @ images[0] + times @ images[1]
            for name, values in self._metrics(normal, times @ images[2], times @ images[3]).items():
                metrics[name][part] = values
        return metrics

    def without_each(self) -> dict[str, Float64]:
        """Return metrics (n + m,) with one image left out, clean ones first; all alike where there are very many."""
        total = len(self.clean) + len(self.marked)
        if total > MOST_LEFT_OUT:
            return dict.fromkeys(PIXEL_METRICS, np.zeros(total))
        none = np.zeros(self.clean_normal.shape)
        normal, anomalous, weight = (
            np.concatenate(parts).astype(float)
            for parts in (
                (self.clean_normal, self.normal),
                (none, self.anomalous),
                (none, self.weight),
            )
        )
        return self._metrics(*(part.sum(axis=0) - part for part in (normal, anomalous, weight)))

    def _metrics(self, normal: Float64, anomalous: Float64, weight: Float64) -> dict[str, Float64]:
        return grouped_metrics(normal, anomalous, weight, levels=self.levels)

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays for `numpy.savez`, with the class's name before each."""
        return {f"{name}/{part}": getattr(self, part) for part in _ARRAYS}


def group_starts(
    whole: PixelMetrics, thresholds: NDArray[np.intp], *, groups: int = GROUPS
) -> NDArray[np.intp]:
    """Return the first bins (G,) of at most `groups` groups, each with its part of normal and of anomalous pixels.

    A group that holds one of the `thresholds` (K,) is cut there.
    """
    shares = [part / max(part.sum(), 1) for part in (whole.normal, whole.anomalous, whole.weight)]
    position = np.cumsum(np.sum(shares, axis=0))
    number = np.minimum(position * (groups / position[-1]), groups - 1).astype(np.intp)
    return np.union1d(np.append(0, np.flatnonzero(np.diff(number)) + 1), thresholds)


def grouped_metrics(
    normal: Float64, anomalous: Float64, weight: Float64, *, levels: NDArray[Any] = _WHOLE_CURVE
) -> dict[str, Float64]:
    """Return pixel metrics (R,) of R sets of pixels, all of a group tied; NaN where a kind of pixels is missing.

    Args:
        normal: (R, G) normal pixels by groups of scores, from the highest down.
        anomalous: (R, G) anomalous pixels.
        weight: (R, G) the same, each by 1 / (pixels of its region).
        levels: see `ClassPixels`.
    """
    false, hits, covered = (np.cumsum(part, axis=1) for part in (normal, anomalous, weight))
    negatives, positives, regions = (part[:, -1:] for part in (false, hits, covered))
    true, beside = (
        hits - anomalous / 2,
        false - normal / 2,
    )  # in the middle of a group, its pixels evenly mixed
    with np.errstate(invalid="ignore", divide="ignore"):
        metrics = {
            "pixel_auroc": 1 - (anomalous * beside).sum(1) / (positives * negatives)[:, 0],
            "pixel_ap": (anomalous * (true / np.maximum(true + beside, 1e-9))).sum(1) / positives[:, 0],
            "pixel_f1_max": (2 * hits / (hits + false + positives)).max(1),
            "pixel_pro": _pro(false / negatives, covered / regions, levels),
        }
    undefined = (positives == 0) | (negatives == 0)
    return {name: np.where(undefined[:, 0], np.nan, values) for name, values in metrics.items()}


def _pro(rates: Float64, overlaps: Float64, levels: NDArray[Any]) -> Float64:
    """Return the PRO (R,) of curves (R, G): the area of the whole curve, or AnomalyCLIP's at the levels."""
    if not levels.size:
        return _area(rates, overlaps)
    rates, overlaps = (values[:, levels[::-1].astype(np.intp) - 1] for values in (rates, overlaps))
    width = np.diff(rates, axis=1) * (rates[:, 1:] < LIMIT)
    stretched: Float64 = (width * (overlaps[:, 1:] + overlaps[:, :-1])).sum(axis=1) / (2 * width.sum(axis=1))
    return stretched


def _area(rates: Float64, overlaps: Float64) -> Float64:
    """Return the area (R,) under lines from (0, 0) through (rates, overlaps) (R, G), up to the limit, of 1 at most."""
    before = np.pad(rates, ((0, 0), (1, 0)))[:, :-1]
    below = np.pad(overlaps, ((0, 0), (1, 0)))[:, :-1]
    width = np.minimum(rates, LIMIT) - np.minimum(before, LIMIT)
    share = np.divide(width, rates - before, out=np.zeros_like(width), where=rates > before)
    area: Float64 = (width * (below + (overlaps - below) * share / 2)).sum(axis=1) / LIMIT
    return area


def count_pixels(
    run: ScoredRun,
    data: DataSet,
    states: Iterable[ClassScores],
    *,
    pro: Pro,
    title: Callable[[str, str], str],
    name: Callable[[Path], str],
) -> Iterator[tuple[str, ClassPixels]]:
    """Yield title and pixels of each class of a benchmark's cell that has masks, out of its stored grids.

    The masks at the size of the maps are kept beside the grids, so that measuring again reads no picture.

    Args:
        run: the cell's, with its grids.
        data: what was measured.
        states: of the classes, with all of their images.
        pro: which PRO draws are to be taken of.
        title: of a class, from the names of its data set and its own.
        name: of an image, from its path.

    Raises:
        StorageError: the masks cannot be kept.
    """
    path = run.folder / MASKS_FILE
    masks, scored = MaskCache.of(path), run.by_class(data.samples, data)

    def images(state: ClassScores, limit: float) -> Iterator[tuple[str, PixelMetrics]]:
        for sample, row in scored.get((state.dataset, state.name), []):
            pixels = PixelMetrics(limit=limit)
            run.add(ClassScores(state.dataset, state.name, pixels=pixels), sample, row, masks)
            if pixels.maps:
                yield name(sample.image), pixels

    for state in states:
        whole = state.pixels
        if isinstance(whole, PixelMetrics) and whole.regions:
            thresholds = whole.equidistant_bins() if pro == "anomalyclip" else _WHOLE_CURVE
            starts = group_starts(whole, thresholds)
            pixels = ClassPixels.of(images(state, whole.limit), starts, thresholds)
            yield title(state.dataset, state.name), pixels
    masks.write(path)


def read_pixels(path: Path) -> dict[str, ClassPixels]:
    """Read the classes of a file of `ClassPixels.arrays`; none where it is missing or broken."""
    arrays = read_arrays(path) or {}
    names = {name.rpartition("/")[0] for name in arrays}
    older = {f"{name}/levels": _WHOLE_CURVE for name in names}  # files of 0.1.0
    parts = {name: [(older | arrays).get(f"{name}/{part}") for part in _ARRAYS] for name in names}
    return {
        name: ClassPixels(*[part for part in arrays_of_class if part is not None])
        for name, arrays_of_class in parts.items()
        if all(part is not None for part in arrays_of_class)
    }


def sample_pixels(
    counts: Sequence[ClassPixels],
    exact: Sequence[Mapping[str, float | None]],
    *,
    seeds: Sequence[int | None],
    clean: Sequence[str],
    marked: Sequence[str],
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> dict[str, Sampled]:
    """Return pixel metrics of one class for several seeds of a method, with resamples over the images.

    Two methods are on the same resamples when the generators start alike.

    Args:
        counts: of the S seeds.
        exact: the metrics of all images of each, as they were measured; those undefined for a seed are left out.
        seeds: which.
        clean: the images without anomalous pixels that are drawn from.
        marked: the others; at least one.
        generator: draws the images.
        resamples: R, how many.
    """
    sizes = [len(clean), len(marked)]
    times = [draw_counts(size, resamples, generator) for size in sizes]
    parts = [each.taken(clean, marked) for each in counts]
    whole, drawn_from = [each.once() for each in counts], [each.once() for each in parts]
    drawn = [each.drawn(*times) for each in parts]
    left_out = [each.without_each() for each in parts]
    sampled = {}
    for metric in PIXEL_METRICS:
        values = [row.get(metric) for row in exact]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            continue
        # What groups instead of scores change, taken of all images.
        off = np.array([value - each[metric] for value, each in zip(known, whole, strict=True)])
        sampled[metric] = Sampled.of(
            seeds,
            np.array([each[metric] for each in drawn_from]) + off,
            np.clip(np.stack([each[metric] for each in drawn]) + off[:, None], 0.0, 1.0),
            [each[metric] for each in left_out],
            sizes,
        )
    return sampled
