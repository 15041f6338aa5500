"""Summary of a benchmark for its report: means, deviations, intervals, standings, and the holes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from zsad.metrics.table import COLUMNS, column_titles
from zsad.studies.benchmark.bootstrap import RESAMPLES, Interval, Sampled, Spread
from zsad.studies.benchmark.cell_results import CellResult, common_pro
from zsad.studies.benchmark.method_rows import identity, letters_of, named
from zsad.studies.benchmark.paper_settings import SettingDifference, setting_differences
from zsad.studies.benchmark.papers import Paper, paper_of
from zsad.studies.benchmark.sampling import TargetSamples, sample_target
from zsad.studies.benchmark.significance import (
    MethodComparison,
    Standing,
    compare_classes,
    compare_images,
    compare_seeds,
    stand,
)

OVERALL = ""  # in place of a target: the mean over all of them
SEEN, FEWER, PARTIAL = "†", "‡", "§"
ELSEWHERE = "measured with other auxiliary sets"
_LEAST_CLASSES = 6  # with fewer, no choice of signs is rare enough to tell two methods apart
_LEAST_SEEDS = 4  # of each method; with fewer, no split of them is

Seeds = Mapping[int | None, CellResult]


@dataclass(frozen=True, slots=True)
class TableEntry:
    """An entry of a table.

    Attributes:
        spread: over the seeds, in [0, 1]; NaN in a hole.
        interval: for another choice of images; None where it is not known.
        parts: over how many classes or data sets the mean is, and of how many; (0, 0) for a single class.
        seen: the weights were trained on data of the target.
        bold: the value may be set in bold face.
        hole: why there is no value.
        partial: classes with broken files are left out of the mean.
    """

    spread: Spread
    interval: Interval | None = None
    parts: tuple[int, int] = (0, 0)
    seen: bool = False
    bold: bool = False
    hole: str = ""
    partial: bool = False

    @property
    def comparable(self) -> bool:
        """True if it is over everything that the others are over, none of it seen in training."""
        return not self.hole and not self.seen and self.parts[0] == self.parts[1]

    @property
    def marks(self) -> str:
        """The signs behind the number."""
        fewer = not self.hole and self.parts[0] < self.parts[1]
        left_out = self.partial and not self.hole
        return (SEEN if self.seen else "") + (FEWER if fewer else "") + (PARTIAL if left_out else "")

    def percent(self, *, digits: int = 1) -> str:
        """Return the mean in percent, a dash in a hole."""
        return "–" if self.hole else f"{100 * self.spread.mean:.{digits}f}"

    def deviation(self, *, digits: int = 1) -> str:
        """Return the deviation over seeds in percent; empty where there is none."""
        return "" if math.isnan(self.spread.deviation) else f"{100 * self.spread.deviation:.{digits}f}"


class Summary:
    """The cells of a benchmark by row, target and seed, and all that follows from them.

    Args:
        cells: all of them, finished and failed.
        work: the folder they lie in, for the scores beside them; None: without intervals over images.
        resamples: how many, for intervals and comparisons.

    Raises:
        DataError: the cells hold different PROs.
    """

    def __init__(
        self, cells: Sequence[CellResult], *, work: Path | None = None, resamples: int = RESAMPLES
    ) -> None:
        self.cells = list(cells)
        self.pro = common_pro(self.cells)
        self.titles = column_titles(self.pro)
        self._work, self._resamples = work, resamples
        self._found: dict[tuple[str, str], dict[int | None, CellResult]] = {}
        self._failed: dict[tuple[str, str], list[CellResult]] = {}
        self.duplicates: list[str] = []
        self.letters = letters_of(self.cells)
        rows = named(self.cells, self.letters)
        self.rows = {who.name: who for who in rows.values()}
        self.names = list(self.rows)
        self.targets = sorted({cell.target for cell in self.cells})
        self._trained_on: dict[tuple[str, str], list[tuple[str, ...]]] = {}
        for cell in self.cells:
            self._put(rows[identity(cell)].name, cell)
        self._standings: dict[tuple[str, str], Standing | None] = {}
        self._entries: dict[tuple[str, str, str], TableEntry] = {}
        self._by_class: dict[tuple[str, str, str], dict[str, float]] = {}

    def _put(self, name: str, cell: CellResult) -> None:
        key = (name, cell.target)
        self._trained_on.setdefault(key, []).append(cell.trained_on)
        if cell.state == "failed":
            self._failed.setdefault(key, []).append(cell)
        elif cell.seed in self._found.setdefault(key, {}):
            self.duplicates.append(f"{name} on {cell.target} with seed {cell.seed}")
        else:
            self._found[key][cell.seed] = cell

    def finished(self, name: str, target: str) -> Seeds:
        """Return the finished cells of a row on a target, by seed."""
        return self._found.get((name, target), {})

    def failed(self) -> list[tuple[str, CellResult]]:
        """Return the failed cells with the names of their rows."""
        return [(name, cell) for (name, _), cells in self._failed.items() for cell in cells]

    def differences(self, name: str) -> tuple[Paper | None, list[SettingDifference]]:
        """Return the paper of a row's method, None where none is known, and the settings that are not the paper's."""
        paper = paper_of(self.rows[name].method)
        cells = [cell for target in self.targets for cell in self.finished(name, target).values()]
        if paper is None:
            return None, []
        found = [difference for cell in cells for difference in setting_differences(cell, paper)]
        return paper, list({str(difference): difference for difference in found}.values())

    def hole(self, name: str, target: str) -> str:
        """Return the reason why a row has nothing on a target; empty where it has."""
        if self.finished(name, target):
            return ""
        failed = self._failed.get((name, target))
        if failed:
            return f"failed: {failed[0].reason}"
        return "not run" if self.asked(name, target) else ELSEWHERE

    def seen(self, name: str, target: str) -> bool:
        """Return True if the weights were trained on data of the target."""
        return any(cell.seen for cell in self.finished(name, target).values())

    def trained_on(self, name: str, target: str = OVERALL) -> tuple[str, ...]:
        """Return the auxiliary sets behind a row's results on a target, or on all of them."""
        targets = self.targets if target == OVERALL else [target]
        sets = [each for each_target in targets for each in self._trained_on.get((name, each_target), ())]
        return tuple(dict.fromkeys(" + ".join(names) for names in sets if names))

    def asked(self, name: str, target: str) -> bool:
        """Return True if a result of a row on a target is missed: not where its other auxiliary sets have it."""
        label = self.rows[name].label
        twins = [other for other, who in self.rows.items() if who.label == label and other != name]
        known = target == OVERALL or (name, target) in self._trained_on
        return known or not any((twin, target) in self._trained_on for twin in twins)

    def sets(self, name: str, target: str = OVERALL) -> str:
        """Return the auxiliary sets in few characters: those of many words as their letter."""
        return ", ".join(self.letters.get(text, text) for text in self.trained_on(name, target))

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that are defined for some class of some cell, in the order of the tables."""
        defined = {
            column
            for cell in self.cells
            for row in cell.rows
            for column, value in row.metrics.items()
            if value is not None
        }
        return [column for column in COLUMNS if column in defined]

    def classes(self, target: str) -> list[str]:
        """Return all classes of a target."""
        return sorted({row.name for cell in self.cells if cell.target == target for row in cell.rows})

    def counts(self, target: str, class_name: str | None = None) -> tuple[int, int]:
        """Return normal and anomalous images of a target or a class, the most that any method has measured."""
        pairs = [
            (
                sum(row.normal for row in cell.rows if class_name in (None, row.name)),
                sum(row.anomalous for row in cell.rows if class_name in (None, row.name)),
            )
            for cell in self.cells
            if cell.target == target
        ]
        return max(pairs, key=sum, default=(0, 0))

    @cached_property
    def _samples(self) -> dict[str, tuple[dict[str, TargetSamples], int]]:
        if self._work is None:
            return {target: ({}, 0) for target in self.targets}
        return {
            target: sample_target(
                {name: self.finished(name, target) for name in self.names},
                work=self._work,
                target=target,
                resamples=self._resamples,
            )
            for target in self.targets
        }

    @property
    def has_intervals(self) -> bool:
        """True if some method's scores are known image by image."""
        return any(samples for samples, _ in self._samples.values())

    def left_out(self, target: str) -> int:
        """Return how many images of a target are in no interval and no comparison, as some method lacks them."""
        return self._samples[target][1]

    def by_class(self, name: str, target: str, metric: str) -> dict[str, float]:
        """Return a metric of a row's classes, mean over seeds, where it is defined."""
        key = (name, target, metric)
        if key not in self._by_class:
            self._by_class[key] = self._class_means(name, target, metric)
        return self._by_class[key]

    def _class_means(self, name: str, target: str, metric: str) -> dict[str, float]:
        values: dict[str, list[float]] = {}
        for cell in self.finished(name, target).values():
            for row in cell.rows:
                if (value := row.metrics.get(metric)) is not None and not math.isnan(value):
                    values.setdefault(row.name, []).append(value)
        return {class_name: math.fsum(each) / len(each) for class_name, each in values.items()}

    def class_entry(self, name: str, target: str, class_name: str, metric: str) -> TableEntry:
        """Return a metric of one class."""
        seeds = self.finished(name, target)
        spread = Spread.of(
            row.metrics.get(metric) for cell in seeds.values() for row in cell.rows if row.name == class_name
        )
        hole = self.hole(name, target) or ("" if spread.count else "undefined")
        sampled = self._samples[target][0].get(name)
        metric_sample = sampled.classes.get(class_name, {}).get(metric) if sampled else None
        interval = metric_sample.interval() if metric_sample is not None and not hole else None
        return TableEntry(spread, interval, seen=self.seen(name, target), hole=hole)

    def entry(self, name: str, target: str, metric: str) -> TableEntry:
        """Return a metric of a row on a target, or with OVERALL its mean over the targets."""
        key = (name, target, metric)
        if key not in self._entries:
            self._entries[key] = self._entry(name, target, metric)
        return self._entries[key]

    def _entry(self, name: str, target: str, metric: str) -> TableEntry:
        standing = self.standing(target, metric)
        plain = self._plain(name, target, metric)
        bold = plain.comparable and standing is not None and name in standing.bold()
        bold = bold and not self._outdone(target, metric, plain.spread.mean)
        sampled = None if plain.hole else self._sampled(name, target, metric)
        interval = sampled.interval() if sampled is not None else None
        return replace(plain, interval=interval, bold=bold)

    def _outdone(self, target: str, metric: str, best: float) -> bool:
        """Return True if a mean over the targets of one direction is higher: bold face would pass it over."""
        if target != OVERALL:
            return False
        apart = [n for n in self.names if any(not self.asked(n, each) for each in self.targets)]
        return any(self._plain(name, target, metric).spread.mean > best for name in apart)

    def _plain(self, name: str, target: str, metric: str) -> TableEntry:
        """Return an entry without the comparison with the other rows."""
        if target == OVERALL:
            return self._overall(name, metric)
        reference = {part for other in self.names for part in self.by_class(other, target, metric)}
        values = self.by_class(name, target, metric)
        spread = Spread.of(cell.mean(metric) for cell in self.finished(name, target).values())
        hole = self.hole(name, target) or ("" if spread.count else "undefined")
        partial = any(
            cell.problems and len(cell.rows) > len(values) for cell in self.finished(name, target).values()
        )
        return TableEntry(
            spread, None, (len(values), len(reference)), self.seen(name, target), hole=hole, partial=partial
        )

    def measured(self, name: str, metric: str) -> list[str]:
        """Return the targets that enter a row's mean: measured, and not seen in training."""
        return [
            target
            for target in self.targets
            if self.by_class(name, target, metric) and not self.seen(name, target)
        ]

    def _overall(self, name: str, metric: str) -> TableEntry:
        measured = self.measured(name, metric)
        reference = {target for other in self.names for target in self.measured(other, metric)}
        if not measured:
            reasons = {self.hole(name, target) for target in self.targets} - {""}
            return TableEntry(Spread.of(()), hole=min(reasons, default="undefined"))
        means = {
            target: {
                seed: value
                for seed, cell in self.finished(name, target).items()
                if (value := cell.mean(metric)) is not None
            }
            for target in measured
        }
        common = [seed for seed in means[measured[0]] if all(seed in each for each in means.values())]
        if common:
            spread = Spread.of(math.fsum(means[t][seed] for t in measured) / len(measured) for seed in common)
        else:  # no seed is everywhere: the mean of the means, of no known deviation
            spread = Spread.of(
                [math.fsum(Spread.of(each.values()).mean for each in means.values()) / len(measured)]
            )
        return TableEntry(spread, None, (len(measured), len(reference)))

    def _sampled(self, name: str, target: str, metric: str) -> Sampled | None:
        """Return the resamples of a metric; None where some of the scores they need are missing."""
        targets = self.measured(name, metric) if target == OVERALL else [target]
        parts = [
            target_samples.macro[metric]
            for each in targets
            if (target_samples := self._samples[each][0].get(name)) is not None
            and metric in target_samples.macro
        ]
        if not parts or len(parts) < len(targets):
            return None
        if not set.intersection(*(set(part.seeds) for part in parts)):
            return None
        return Sampled.mean(parts)

    def standing(self, target: str, metric: str) -> Standing | None:
        """Return the best on a target, or on the mean, and its comparisons with the others."""
        key = (target, metric)
        if key not in self._standings:
            entries = {name: self._plain(name, target, metric) for name in self.names}
            means = {name: entry.spread.mean for name, entry in entries.items() if entry.comparable}
            self._standings[key] = stand(means, lambda a, b: self.compare(a, b, target, metric))
        return self._standings[key]

    def compare(self, first: str, second: str, target: str, metric: str) -> MethodComparison | None:
        """Compare two rows; None where nothing tells noise from difference.

        Over images where the scores of both are known, else over classes, else over seeds.
        """
        generator = np.random.default_rng(0)
        one, other = (self._sampled(name, target, metric) for name in (first, second))
        if one is not None and other is not None:
            return compare_images(one, other, generator=generator)
        differences, weights = self._differences(first, second, target, metric)
        if len(differences) >= _LEAST_CLASSES:
            return compare_classes(differences, weights, generator=generator)
        values = [self._by_seed(name, target, metric) for name in (first, second)]
        if min(map(len, values)) >= _LEAST_SEEDS:
            return compare_seeds(values[0], values[1], generator=generator)
        return None

    def _differences(
        self, first: str, second: str, target: str, metric: str
    ) -> tuple[list[float], list[float]]:
        """Return differences of the classes that both have, and each class's weight in the mean."""
        targets = self.targets if target == OVERALL else [target]
        pairs = [
            (self.by_class(first, each, metric), self.by_class(second, each, metric)) for each in targets
        ]
        shared = [(a, b, sorted(a.keys() & b.keys())) for a, b in pairs if a.keys() & b.keys()]
        differences = [a[name] - b[name] for a, b, names in shared for name in names]
        weights = [1 / (len(names) * len(shared)) for _, _, names in shared for _ in names]
        return differences, weights

    def _by_seed(self, name: str, target: str, metric: str) -> list[float]:
        if target == OVERALL:
            return []
        values = (cell.mean(metric) for cell in self.finished(name, target).values())
        return [value for value in values if value is not None]
