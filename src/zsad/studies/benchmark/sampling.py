"""Scores and pixels beside the cells of a benchmark, resampled so that all methods see the same draws of images."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zsad.files import read_arrays
from zsad.studies.benchmark.bootstrap import RESAMPLES, Sampled, sample_class
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.pixel_counts import ClassPixels, read_pixels, sample_pixels

_AGREEMENT = 1e-6  # of a cell's metrics with those of the scores beside it

ScoresByClass = dict[str, dict[str, tuple[int, float]]]  # label and score of each image, by class


@dataclass(frozen=True, slots=True)
class ImageTable:
    """The images of a cell: `image` and `class_name` (N,) str, `label` (N,) int8, `score` (N,) float64."""

    image: NDArray[np.str_]
    class_name: NDArray[np.str_]
    label: NDArray[np.int8]
    score: NDArray[np.float64]

    @classmethod
    def read(cls, work: Path, cell: CellResult) -> ImageTable | None:
        """Read that of a finished cell, without unknown labels and scores that are NaN; None without one."""
        if cell.state != "done" or cell.files.scores is None:
            return None
        arrays = read_arrays(work / cell.files.scores) or {}
        columns = [arrays[name] for name in ("image", "class_name", "label", "score") if name in arrays]
        if len(columns) < 4 or len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
            return None
        image, class_name = (column.astype(str) for column in columns[:2])
        label, score = columns[2].astype(np.int8), columns[3].astype(np.float64)
        known = np.isin(label, (0, 1)) & ~np.isnan(score)
        return cls(image[known], class_name[known], label[known], score[known])

    def by_class(self) -> ScoresByClass:
        """Return label and score of each image, by class."""
        classes: ScoresByClass = {}
        for image, class_name, label, score in zip(
            self.image.tolist(),
            self.class_name.tolist(),
            self.label.tolist(),
            self.score.tolist(),
            strict=True,
        ):
            classes.setdefault(class_name, {})[image] = (label, score)
        return classes


@dataclass(frozen=True, slots=True)
class TargetSamples:
    """The resampled metrics of one method on one target.

    `classes` by class and metric; `macro` by metric, the mean over the classes.
    """

    classes: Mapping[str, Mapping[str, Sampled]]
    macro: Mapping[str, Sampled]


def sample_target(
    cells: Mapping[str, Mapping[int | None, CellResult]],
    *,
    work: Path,
    target: str,
    resamples: int = RESAMPLES,
) -> tuple[dict[str, TargetSamples], int]:
    """Return the resampled metrics of all methods on one target, over the images that all of them have scored.

    Pixel metrics are over the images that all of those have counted that have counted any.

    Args:
        cells: the finished ones of the target, by method and seed.
        work: the folder of the benchmark.
        target: its name; with the class's it decides the draws, which so are alike for all methods.
        resamples: how many.

    Returns:
        By method, those without scores left out; and how many images some method has not scored.
    """
    tables = {method: _read(work, seeds) for method, seeds in cells.items()}
    tables = {method: seeds for method, seeds in tables.items() if seeds}
    every = [table for seeds in tables.values() for table in seeds.values()]
    collected: dict[str, dict[str, dict[str, Sampled]]] = {method: {} for method in tables}
    left_out = 0
    for name in sorted({name for table in every for name in table}):
        parts = [set(table.get(name, {})) for table in every]
        images = sorted(set.intersection(*parts))
        left_out += len(set.union(*parts)) - len(images)
        for method, seeds in tables.items() if images else ():
            first = next(iter(seeds.values()))[name]
            sampled = sample_class(
                np.array([[table[name][image][1] for image in images] for table in seeds.values()]),
                np.array([first[image][0] for image in images], np.int8),
                seeds=list(seeds),
                generator=np.random.default_rng([_digest(target), _digest(name)]),
                resamples=resamples,
            )
            if sampled is not None:
                collected[method][name] = sampled
    for method, name, sampled in _sample_pixels(cells, work=work, target=target, resamples=resamples):
        collected.setdefault(method, {}).setdefault(name, {}).update(sampled)
    samples = {}
    for method, classes in collected.items():
        macro = _macro(list(classes.values()), cells[method], complete=not left_out) if classes else {}
        if macro:
            samples[method] = TargetSamples(classes, macro)
    return samples, left_out


def _sample_pixels(
    cells: Mapping[str, Mapping[int | None, CellResult]], *, work: Path, target: str, resamples: int
) -> Iterator[tuple[str, str, dict[str, Sampled]]]:
    """Yield method, class and resampled pixel metrics, of the methods whose every seed has its pixels counted."""
    tables = {
        method: {
            seed: read_pixels(work / cell.files.pixels) if cell.files.pixels else {}
            for seed, cell in seeds.items()
        }
        for method, seeds in cells.items()
    }
    names = sorted({name for seeds in tables.values() for table in seeds.values() for name in table})
    for name in names:
        counted = {
            method: {seed: table[name] for seed, table in seeds.items()}
            for method, seeds in tables.items()
            if seeds and all(name in table for table in seeds.values())
        }
        every = [pixels for seeds in counted.values() for pixels in seeds.values()]
        clean, marked = (_common(every, kind) for kind in ("clean", "marked"))
        for method, seeds in counted.items() if marked else ():
            exact = [_metrics_of(cells[method][seed], name) for seed in seeds]
            yield (
                method,
                name,
                sample_pixels(
                    list(seeds.values()),
                    exact,
                    seeds=list(seeds),
                    clean=clean,
                    marked=marked,
                    generator=np.random.default_rng([_digest(target), _digest(name), 1]),
                    resamples=resamples,
                ),
            )


def _common(every: Sequence[ClassPixels], kind: str) -> list[str]:
    """Return the images that all have, sorted."""
    return sorted(set.intersection(*(set(getattr(pixels, kind).tolist()) for pixels in every)))


def _metrics_of(cell: CellResult, class_name: str) -> Mapping[str, float | None]:
    return next((row.metrics for row in cell.rows if row.name == class_name), {})


def _read(work: Path, cells: Mapping[int | None, CellResult]) -> dict[int | None, ScoresByClass]:
    """Read the scores of a method by seed, those without any left out."""
    tables = {seed: ImageTable.read(work, cell) for seed, cell in cells.items()}
    return {
        seed: table.by_class() for seed, table in tables.items() if table is not None and table.image.size
    }


def _macro(
    classes: Sequence[Mapping[str, Sampled]], cells: Mapping[int | None, CellResult], *, complete: bool
) -> dict[str, Sampled]:
    """Return means over classes; where all images are there, only those that agree with the cells' metrics."""
    macro = {}
    for metric in dict.fromkeys(name for each in classes for name in each):
        mean = Sampled.mean([each[metric] for each in classes if metric in each])
        cell_means = [cells[seed].mean(metric) for seed in mean.seeds]
        if not complete or all(
            value is not None and abs(value - ours) <= _AGREEMENT
            for value, ours in zip(cell_means, mean.values.tolist(), strict=True)
        ):
            macro[metric] = mean
    return macro


def _digest(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
