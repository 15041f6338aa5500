"""Means over data sets for each choice of auxiliary sets: macro over classes, then over sets, all counting the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from zsad.metrics.table import COLUMNS
from zsad.studies.benchmark.cell_results import CellResult


@dataclass(frozen=True, slots=True)
class DirectionMean:
    """A method's means over the targets of one direction, in [0, 1].

    Attributes:
        trained_on: the auxiliary sets that make the direction.
        label: of the method; one without training stands in every direction.
        by_seed: for each metric its mean for each seed; what no target defines is left out.
        sets: for each metric the targets that entered it, in every seed.
        missing: targets of the direction without a result for some seed.
        seen: targets that enter no mean, as the weights were trained on data of them.
    """

    trained_on: tuple[str, ...]
    label: str
    by_seed: dict[str, dict[str, float]]
    sets: dict[str, tuple[str, ...]]
    missing: tuple[str, ...]
    seen: tuple[str, ...] = ()

    def mean(self, column: str) -> float | None:
        """Return the mean over the seeds; None where undefined."""
        values = self.by_seed.get(column, {}).values()
        return fmean(values) if values else None

    def deviation(self, column: str) -> float | None:
        """Return the sample's deviation over the seeds; None of fewer than two."""
        values = list(self.by_seed.get(column, {}).values())
        return stdev(values) if len(values) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "trained_on": list(self.trained_on),
            "label": self.label,
            "mean": {column: self.mean(column) for column in COLUMNS},
            "deviation": {column: self.deviation(column) for column in COLUMNS},
            "by_seed": self.by_seed,
            "sets": {column: list(names) for column, names in self.sets.items()},
            "missing": list(self.missing),
            "seen": list(self.seen),
        }


def direction_means(cells: Iterable[CellResult]) -> list[DirectionMean]:
    """Return the means of all methods in all directions.

    A direction is a choice of auxiliary sets with the targets measured on what they taught. A metric's mean is over the
    targets that define it for every seed, so that seeds compare; those without a result, and those that the weights
    have seen, are named instead.
    """
    known = list(cells)
    trained = [cell for cell in known if _learns(cell)]
    directions = {cell.trained_on: dict[str, None]() for cell in trained} or {(): dict[str, None]()}
    for cell in trained or known:
        directions[cell.trained_on if trained else ()].setdefault(cell.target)
    means = []
    for direction, targets in directions.items():
        for label in dict.fromkeys(cell.label for cell in known):
            measured = [
                cell
                for cell in known
                if cell.label == label
                and cell.target in targets
                and (not _learns(cell) or cell.trained_on == direction)
            ]
            if measured:
                means.append(_mean(direction, label, measured, list(targets)))
    return means


def _learns(cell: CellResult) -> bool:
    """Return True if a cell's weights were trained here: then its label comes with the sets of every direction."""
    return bool(cell.trained_on) and cell.label == cell.method


def _mean(
    direction: tuple[str, ...], label: str, cells: Sequence[CellResult], targets: Sequence[str]
) -> DirectionMean:
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    values = {(cell.target, cell.seed): cell for cell in cells if cell.state == "done"}
    seen = {cell.target for cell in values.values() if cell.seen}
    entering = [target for target in targets if target not in seen]
    by_seed: dict[str, dict[str, float]] = {}
    sets: dict[str, tuple[str, ...]] = {}
    for column in COLUMNS:
        table = {
            target: [
                values[target, seed].mean(column) if (target, seed) in values else None for seed in seeds
            ]
            for target in entering
        }
        defined = tuple(target for target, row in table.items() if all(value is not None for value in row))
        sets[column] = defined
        if defined:
            by_seed[column] = {
                "" if seed is None else str(seed): math.fsum(
                    table[target][index] or 0.0 for target in defined
                )
                / len(defined)
                for index, seed in enumerate(seeds)
            }
    missing = tuple(target for target in targets if any((target, seed) not in values for seed in seeds))
    return DirectionMean(
        direction, label, by_seed, sets, missing, tuple(target for target in targets if target in seen)
    )
