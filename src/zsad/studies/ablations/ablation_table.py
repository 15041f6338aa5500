"""The results of a study beside the paper's: as tables for a terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zsad.metrics.table import COLUMNS, plain_table
from zsad.studies.ablations import Ablations
from zsad.studies.ablations.study import Metrics, Study, Variant, VariantCell
from zsad.train.train_config import RUN_FIELDS

if TYPE_CHECKING:
    from rich.table import Table as RichTable

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


class Results:
    """What a study has found so far.

    Args:
        study: of which.
        paper: what the table was printed in.
    """

    def __init__(self, study: Study, paper: Ablations) -> None:
        self.study, self.paper = study, paper
        self._found: dict[int, dict[str, dict[str, Metrics]]] = {}

    def add(self, cell: VariantCell, metrics: dict[str, Metrics]) -> None:
        """Puts in a finished cell: its metrics in [0, 1] by target."""
        seed = "" if cell.seed is None else str(cell.seed)
        self._found.setdefault(self._position(cell.variant), {})[seed] = metrics

    @property
    def complete(self) -> bool:
        """Whether every cell is in."""
        return sum(len(seeds) for seeds in self._found.values()) == len(self.study.cells())

    @property
    def columns(self) -> list[str]:
        """The targets, and their mean where there are several."""
        names = list(self.study.targets)
        return [*names, MEAN] if len(names) > 1 else names

    def _position(self, variant: Variant) -> int:
        return next(index for index, own in enumerate(self.study.variants) if own is variant)

    def ours(self, variant: Variant, column: str, metric: str) -> Value:
        """A metric of a variant on a target, or its mean over the targets where it is defined."""
        by_seed = {}
        for seed, targets in self._found.get(self._position(variant), {}).items():
            chosen = targets.values() if column == MEAN and MEAN not in targets else [targets[column]]
            by_seed[seed] = 100 * _mean(metrics[metric] for metrics in chosen)
        defined = [value for value in by_seed.values() if not math.isnan(value)]
        deviation = statistics.stdev(defined) if len(defined) > 1 else math.nan
        return Value(_mean(defined), deviation, by_seed)

    def printed(self, variant: Variant, metric: str) -> dict[str, float]:
        """The paper's values in percent by data set, NaN where it prints none."""
        table = self.study.table
        position = table.metrics.index(metric)
        return {data: cells[position] for data, cells in zip(table.data, variant.row.printed, strict=True)}

    def difference(self) -> str:
        """The sentence on what differs between ours and the paper's."""
        study, paper = self.study, self.paper
        auxiliary = ", ".join(f"{data.name} ({len(data.samples)} images)" for data in study.auxiliary)
        seeds = ("seed " if len(study.seeds) == 1 else "seeds ") + ", ".join(map(str, study.seeds))
        changes = {**study.settings, **self._training()}
        made = ", ".join([seeds, *(f"{name} = {value}" for name, value in changes.items())])
        theirs = ", ".join(name for name in study.table.data if name != MEAN)
        return (
            f"Ours: {study.backbone.name} at {study.image_size} px, trained on {auxiliary}, measured on "
            f"{', '.join(study.targets)}; {made}. "
            f"Paper: {paper.backbone} at {paper.image_size} px, trained on {paper.trained_on}, measured on {theirs}. "
            f"Compare the rows of a column; ours and the paper's numbers do not compare."
        )

    def _training(self) -> dict[str, Any]:
        """Settings of the training that are not the method's own."""
        from zsad.methods.registry import find
        from zsad.train.train_config import TrainConfig

        own = TrainConfig(**find(self.study.method).load().training_defaults)
        return {
            name: value
            for name, value in self.study.training
            if name not in (*RUN_FIELDS, "seed") and value != getattr(own, name)
        }

    def render(self) -> list[RichTable]:
        """A `rich` table for each metric."""
        from rich.text import Text

        tables = []
        for metric in self.study.table.metrics:
            headings, rows = self.cells(metric)
            title = Text(f"{COLUMNS[metric]}, in percent")
            table = plain_table(title=title, title_justify="left", title_style="bold")
            for index, heading in enumerate(headings):
                table.add_column(Text(heading), justify="right" if index else "left", overflow="fold")
            for row in rows:
                table.add_row(*map(Text, row))
            tables.append(table)
        return tables

    def cells(self, metric: str) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of the table of a metric, as text."""
        headings = ["variant", *self.columns, *(f"paper: {data}" for data in self.study.table.data)]
        rows = []
        for variant in self.study.variants:
            ours = [str(self.ours(variant, column, metric)) for column in self.columns]
            theirs = [
                "-" if math.isnan(value) else f"{value:.1f}"
                for value in self.printed(variant, metric).values()
            ]
            rows.append([variant.row.label, *ours, *theirs])
        return headings, rows

    def to_markdown(self) -> str:
        """All of it for reading."""
        table = self.study.table
        lines = [f"# {table.title}", "", f"{self.paper.paper}, {table.source}.", "", self.difference(), ""]
        if not self.complete:
            lines += ["Not all variants are finished; the same command goes on.", ""]
        for metric in table.metrics:
            headings, rows = self.cells(metric)
            rule = ["---", *["---:"] * (len(headings) - 1)]
            lines += [f"## {COLUMNS[metric]}, in percent", ""]
            lines += [_markdown_row(row) for row in (headings, rule, *rows)] + [""]
        if self.study.notes:
            lines += ["## Notes", "", *(f"- {_escaped(note)}" for note in self.study.notes), ""]
        return "\n".join(lines)

    def to_csv(self) -> str:
        """A line for each value, unrounded, undefined as an empty field."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["variant", "from", "data", "metric", "percent", "deviation", "seeds"])
        for variant in self.study.variants:
            for metric in self.study.table.metrics:
                for column in self.columns:
                    value = self.ours(variant, column, metric)
                    ours = [_number(value.mean), _number(value.deviation), len(value.by_seed)]
                    writer.writerow([variant.row.label, "zsad", column, metric, *ours])
                for data, number in self.printed(variant, metric).items():
                    writer.writerow([variant.row.label, "paper", data, metric, _number(number), None, None])
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values, in percent, undefined as None."""
        study, metrics = self.study, self.study.table.metrics
        return {
            "complete": self.complete,
            "method": study.method,
            "title": study.table.title,
            "paper": {"name": self.paper.paper, "table": study.table.source},
            "difference": self.difference(),
            "backbone": {"name": study.backbone.name, "sha256": study.backbone.sha256},
            "settings": study.settings,
            "training": study.training.model_dump(mode="json", exclude={*RUN_FIELDS, "seed"}),
            "seeds": list(study.seeds),
            "trained_on": {data.name: data.fingerprint() for data in study.auxiliary},
            "measured_on": {name: data.fingerprint() for name, data in study.targets.items()},
            "rows": [
                {
                    "variant": variant.row.label,
                    "method": variant.method,
                    "config": variant.config.model_dump(mode="json"),
                    "zsad": {
                        column: {metric: self._value(variant, column, metric) for metric in metrics}
                        for column in self.columns
                    },
                    "paper": _by_data(
                        {metric: self.printed(variant, metric) for metric in metrics}, study.table.data
                    ),
                }
                for variant in study.variants
            ],
            "broken_files": study.broken,
            "notes": study.notes,
        }

    def _value(self, variant: Variant, column: str, metric: str) -> dict[str, Any]:
        value = self.ours(variant, column, metric)
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
    """Of those that are defined; NaN where none is."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
