"""The results of a study beside the paper's: as tables for a terminal, Markdown, LaTeX, HTML, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zsad.clip.config import preset
from zsad.datasets.catalog import bundled
from zsad.metrics.table import column_titles
from zsad.studies.ablations import Row
from zsad.studies.ablations.study import Study
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.cell_runner import TrainingLog
from zsad.studies.benchmark.cells import Candidate, Cell
from zsad.studies.benchmark.paper_settings import PRO_NOTES, SettingDifference, describe, setting_differences
from zsad.studies.benchmark.papers import Recipe
from zsad.studies.benchmark.text_table import TableDocument, TextTable
from zsad.train.train_config import RUN_FIELDS

MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Value:
    """A metric in percent over seeds; `mean` is NaN where no seed has it, `deviation` where fewer than two have."""

    mean: float
    deviation: float
    by_seed: dict[str, float]

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.1f}" + ("" if math.isnan(self.deviation) else f" ± {self.deviation:.1f}")


class AblationResults:
    """The results of a study so far.

    Args:
        study: its variants and targets.

    Attributes:
        notes: remarks on the data, each once.
        broken: files that could not be used.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.paper = study, study.paper
        self.notes: list[str] = []
        self.broken = 0
        self._results: dict[Candidate, CellResult] = {}
        self._metrics: dict[Candidate, dict[str, dict[str, dict[str, float]]]] = {}  # by seed, target, column

    def add(self, cell: Cell, result: CellResult, log: TrainingLog) -> list[str]:
        """Put in a finished cell; returns the new lines about its data."""
        seed = "" if cell.seed is None else str(cell.seed)
        targets = self._metrics.setdefault(cell.candidate, {}).setdefault(seed, {})
        if not targets:
            self.broken += log.broken
        self._results.setdefault(cell.candidate, result)
        [row] = result.rows
        targets[cell.target.name] = {
            column: math.nan if value is None else value for column, value in row.metrics.items()
        }
        skipped = (f"skipped: {problem.reason}" for problem in result.problems if problem.path)
        measured = (line for line in result.notes if not line.startswith("training: "))
        lines = dict.fromkeys([*log.left_out, *skipped, *measured])
        new = [line for line in lines if line not in self.notes]
        self.notes += new
        self.broken += len(result.problems)
        return new

    @property
    def done(self) -> int:
        """Variants and seeds that are measured on all targets."""
        return sum(
            len(targets) == len(self.study.targets)
            for seeds in self._metrics.values()
            for targets in seeds.values()
        )

    @property
    def total(self) -> int:
        """Variants and seeds."""
        return len(self.study.plan.cells) // max(1, len(self.study.targets))

    @property
    def columns(self) -> list[str]:
        """The targets, and their mean where there are several."""
        names = list(self.study.targets)
        return [*names, MEAN] if len(names) > 1 else names

    @property
    def variants(self) -> Iterator[tuple[Row, Candidate]]:
        """The rows of the table with their candidates."""
        return zip(self.study.table.rows, self.study.candidates, strict=True)

    def ours(self, candidate: Candidate, column: str, metric: str) -> Value:
        """Return a metric of a variant on a target, or its mean over the targets where it is defined."""
        by_seed = {}
        for seed, targets in self._metrics.get(candidate, {}).items():
            if len(targets) < len(self.study.targets):
                continue
            chosen = targets.values() if column == MEAN and MEAN not in targets else [targets[column]]
            by_seed[seed] = 100 * _mean(metrics[metric] for metrics in chosen)
        defined = [value for value in by_seed.values() if not math.isnan(value)]
        deviation = statistics.stdev(defined) if len(defined) > 1 else math.nan
        return Value(_mean(defined), deviation, by_seed)

    def printed(self, row: Row, metric: str) -> dict[str, float]:
        """Return the paper's values in percent by data set, NaN where it prints none."""
        table = self.study.table
        position = table.metrics.index(metric)
        return {data: cells[position] for data, cells in zip(table.data, row.printed, strict=True)}

    def setup(self) -> str:
        """Say what our table and the paper's are made of."""
        study, paper = self.study, self.paper
        auxiliary = ", ".join(f"{data.name} ({len(data.samples)} images)" for data in study.auxiliary)
        seeds = ("seed " if len(study.seeds) == 1 else "seeds ") + ", ".join(map(str, study.seeds))
        sets = {name: bundled().get(name) for name in study.table.data if name != MEAN}
        theirs = [
            f"{name} (trained on {', '.join(paper.trained_on(entry.name if entry else name))})"
            for name, entry in sets.items()
        ]
        return (
            f"Ours: {study.backbone.name} at {study.image_size} px, trained on {auxiliary}, measured on "
            f"{', '.join(study.targets)}; {seeds}. "
            f"Paper: {paper.backbone} at {paper.image_size} px, measured on {', '.join(theirs)}. "
            f"Compare the rows of a column; ours and the paper's numbers do not compare."
        )

    def differences(self) -> dict[str, list[SettingDifference]]:
        """Return the settings that are not the paper's, by variant; those of all measured ones under ""."""
        taps = preset(self.paper.backbone).taps
        found = {}
        for row, candidate in self.variants:
            if (result := self._results.get(candidate)) is not None:
                recipe = self.paper.recipes.get(candidate.method, Recipe())
                settings = row.resolve(recipe.settings, taps=taps)
                found[row.label] = list(setting_differences(result, self.paper, settings=settings))
        own = [found[row.label] for row, _ in self.variants if row.label in found and row.method is None]
        shared = [each for each in own[0] if all(each in other for other in own)] if own else []
        apart = {label: [each for each in listed if each not in shared] for label, listed in found.items()}
        return {"": shared} | {label: listed for label, listed in apart.items() if listed}

    def head(self) -> list[str]:
        """Return the sentences above the tables."""
        study = self.study
        lines = [f"{self.paper.paper}, {study.table.source}.", self.setup()]
        if "pixel_pro" in study.table.metrics:
            lines.append(PRO_NOTES[self.paper.pro])
        for label, differences in self.differences().items():
            lines.append(describe(label or study.method, self.paper.paper, differences))
        if self.done < self.total:
            lines.append("Not all variants are finished; the same command goes on.")
        return lines

    def tables(self) -> Iterator[TextTable]:
        """Yield a table for each metric."""
        headings = ["variant", *self.columns, *(f"paper: {data}" for data in self.study.table.data)]
        titles = column_titles(self.paper.pro)
        for metric in self.study.table.metrics:
            table = TextTable(headings, title=f"{titles[metric]}, in percent", bold=True)
            for row, candidate in self.variants:
                ours = [str(self.ours(candidate, column, metric)) for column in self.columns]
                printed = self.printed(row, metric).values()
                theirs = ["-" if math.isnan(value) else f"{value:.1f}" for value in printed]
                table.rows.append([row.label, *ours, *theirs])
            yield table

    def document(self) -> TableDocument:
        """Return all of it for reading."""
        return TableDocument(self.study.table.title, self.head(), list(self.tables()), self.notes)

    def to_csv(self) -> str:
        """Return a line for each value, unrounded, undefined as an empty field."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["variant", "from", "data", "metric", "percent", "deviation", "seeds"])
        for row, candidate in self.variants:
            for metric in self.study.table.metrics:
                for column in self.columns:
                    value = self.ours(candidate, column, metric)
                    ours = [_number(value.mean), _number(value.deviation), len(value.by_seed)]
                    writer.writerow([row.label, "zsad", column, metric, *ours])
                for data, number in self.printed(row, metric).items():
                    writer.writerow([row.label, "paper", data, metric, _number(number), None, None])
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values, in percent, undefined as None."""
        study, metrics = self.study, self.study.table.metrics
        return {
            "complete": self.done == self.total,
            "method": study.method,
            "title": study.table.title,
            "paper": {"name": self.paper.paper, "table": study.table.source},
            "pro": self.paper.pro,
            "setup": self.setup(),
            "not_the_papers": {
                label or "all": [asdict(each) for each in listed]
                for label, listed in self.differences().items()
            },
            "backbone": {"name": study.backbone.name, "sha256": study.backbone.sha256},
            "settings": study.settings,
            "training": study.training.model_dump(mode="json", exclude={*RUN_FIELDS, "seed"}),
            "seeds": list(study.seeds),
            "trained_on": {data.name: data.fingerprint() for data in study.auxiliary},
            "measured_on": {name: data.fingerprint() for name, data in study.targets.items()},
            "rows": [
                {
                    "variant": row.label,
                    "method": candidate.method,
                    "config": candidate.config.model_dump(mode="json"),
                    "zsad": {
                        column: {metric: self._value(candidate, column, metric) for metric in metrics}
                        for column in self.columns
                    },
                    "paper": _by_data(
                        {metric: self.printed(row, metric) for metric in metrics}, study.table.data
                    ),
                }
                for row, candidate in self.variants
            ],
            "broken_files": self.broken,
            "notes": self.notes,
        }

    def _value(self, candidate: Candidate, column: str, metric: str) -> dict[str, Any]:
        value = self.ours(candidate, column, metric)
        return {
            "mean": _number(value.mean),
            "deviation": _number(value.deviation),
            "by_seed": {seed: _number(number) for seed, number in value.by_seed.items()},
        }


def _by_data(
    printed: Mapping[str, Mapping[str, float]], data: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    return {name: {metric: _number(values[name]) for metric, values in printed.items()} for name in data}


def _mean(values: Iterable[float]) -> float:
    """Return the mean of those that are defined; NaN where none is."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
