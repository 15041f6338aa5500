"""The table of an evaluation: a row for each class, means for each data set and over data sets, and notes."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

Kind = Literal["class", "mean", "micro", "overall"]

# Column of a row -> heading of the rendered table, in the order of the papers' tables.
COLUMNS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_pro": "PRO",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1-max",
}

# Names of classes and methods up to this length are never folded, however narrow the terminal.
SHORT = 12

# Heading of a further column, by the name in front of its limit.
FURTHER = {
    "pixel_aupro": "AUPRO",
    "pixel_pro_anomalyclip": "PRO (anomalyclip)",
    "pixel_aupro_mvtec3d": "AUPRO (mvtec3d)",
    "pixel_aupimo": "AUPIMO",
}


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One row: `metrics` by column in [0, 1] (NaN: undefined), `bounds` (low, high) where not exact.

    `kind` is "class", "mean" (over the classes of a data set), "micro" (its classes pooled as one) or "overall"
    (mean over data sets); the means say in `averaged` how many values entered each.
    """

    dataset: str
    name: str
    kind: Kind
    normal: int
    anomalous: int
    metrics: dict[str, float]
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    averaged: dict[str, int] = field(default_factory=dict)

    @classmethod
    def mean(cls, rows: Sequence[ResultRow], *, dataset: str, name: str, kind: Kind) -> ResultRow:
        """Return the unweighted mean of `rows`; undefined values are left out of it and of the count."""
        metrics, bounds, averaged = {}, {}, {}
        for column in dict.fromkeys([*COLUMNS, *(name for row in rows for name in row.metrics)]):
            defined = [row for row in rows if not math.isnan(row.metrics[column])]
            averaged[column] = len(defined)
            metrics[column] = _mean([row.metrics[column] for row in defined])
            if any(column in row.bounds for row in defined):
                sides = [row.bounds.get(column, (row.metrics[column],) * 2) for row in defined]
                bounds[column] = (_mean([low for low, _ in sides]), _mean([high for _, high in sides]))
        return cls(
            dataset=dataset,
            name=name,
            kind=kind,
            normal=sum(row.normal for row in rows),
            anomalous=sum(row.anomalous for row in rows),
            metrics=metrics,
            bounds=bounds,
            averaged=averaged,
        )

    def error(self, column: str) -> float:
        """Return the most by which the value of a column can be off; 0 where it is exact or undefined."""
        value, (low, high) = self.metrics[column], self.bounds.get(column, (math.nan, math.nan))
        return 0.0 if math.isnan(value) or math.isnan(low) else max(value - low, high - value)

    def to_dict(self) -> dict[str, object]:
        """Return the row as JSON values; undefined is None."""
        entry: dict[str, object] = {
            "dataset": self.dataset,
            "name": self.name,
            "kind": self.kind,
            "normal": self.normal,
            "anomalous": self.anomalous,
            "metrics": {column: _number(value) for column, value in self.metrics.items()},
        }
        if self.bounds:
            entry["bounds"] = {
                column: [_number(low), _number(high)] for column, (low, high) in self.bounds.items()
            }
        if self.averaged:
            entry["averaged"] = self.averaged
        return entry


@dataclass(slots=True)
class ResultTable:
    """The result of an evaluation: `rows` in order, `notes` on what is undefined or left out and why.

    `pro` names the PRO of the rows, "aupro" (whole curve), "anomalyclip" or "mvtec3d", up to `limit`.
    `unreadable` counts the images and masks that were left out because their files cannot be read. `seen` says
    what of the data the model was trained on; such a table is marked wherever it is printed.
    """

    rows: list[ResultRow]
    notes: list[str] = field(default_factory=list)
    pro: str = "aupro"
    limit: float = 0.3
    unreadable: int = 0
    seen: str = ""

    def row(self, name: str, *, dataset: str | None = None, kind: Kind = "class") -> ResultRow:
        """Return the row of a class, or with `kind` the row "mean", "pooled" or "overall"; KeyError without one."""
        for row in self.rows:
            if row.name == name and row.kind == kind and dataset in (None, row.dataset):
                return row
        raise KeyError(f"no {kind} row {name!r}" + ("" if dataset is None else f" in data set {dataset!r}"))

    def headings(self) -> dict[str, str]:
        """Return the columns of the rows and their headings, further columns last."""
        titles = column_titles(self.pro, limit=self.limit)
        for column in (name for row in self.rows for name in row.metrics if name not in COLUMNS):
            name, at, limit = column.partition("@")
            titles[column] = FURTHER[name] + (f" to {limit}" if at else "")
        return titles

    def to_json(self) -> str:
        """Return the table as a JSON document, values unrounded, undefined as null."""
        document = {
            "pro": {"name": self.pro, "limit": self.limit},
            "rows": [row.to_dict() for row in self.rows],
            "notes": self.notes,
        }
        if self.seen:
            document["seen"] = self.seen
        return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)

    def to_csv(self) -> str:
        """Return the rows as CSV with a header line, values unrounded, undefined as an empty field.

        Only the table of a model that has seen the data has the column `seen`.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = self.headings()
        mark = ["seen"] if self.seen else []
        writer.writerow(["dataset", "name", "kind", "normal", "anomalous", *columns, *mark])
        for row in self.rows:
            values = [_number(row.metrics[column]) for column in columns]
            seen = [self.seen] if self.seen else []
            writer.writerow([row.dataset, row.name, row.kind, row.normal, row.anomalous, *values, *seen])
        return text.getvalue()

    def render(self, *, digits: int = 1) -> Table:
        """Return the rows in percent as a `rich` table; undefined is a dash, a column all undefined is left out."""
        from rich.text import Text

        columns = {
            column: heading
            for column, heading in self.headings().items()
            if any(not math.isnan(row.metrics[column]) for row in self.rows)
        }
        # As plain text: a file name in a note may hold what looks like markup.
        caption = Text("\n".join(self.notes)) if self.notes else None
        title = Text(f"SEEN DATA, not zero-shot: the model {self.seen}") if self.seen else None
        table = plain_table(title=title, caption=caption, caption_justify="left")
        several = len({row.dataset for row in self.rows if row.kind != "overall"}) > 1
        if several:
            table.add_column("data set", overflow="fold")
        longest = max((len(row.name) for row in self.rows), default=0)
        table.add_column("class", overflow="fold", no_wrap=longest <= SHORT)
        table.add_column("images", justify="right", no_wrap=True)
        for heading in columns.values():
            table.add_column(heading, justify="right")
        previous = None
        for row in self.rows:
            if previous is not None and (row.kind == "overall" or row.dataset != previous.dataset):
                table.add_section()
            cells = [_percent(row.metrics[column], digits=digits) for column in columns]
            lead = [row.dataset, row.name] if several else [row.name]
            style = None if row.kind == "class" else "bold"
            table.add_row(*lead, f"{row.normal} + {row.anomalous}", *cells, style=style)
            previous = row
        return table


def column_titles(pro: str = "aupro", *, limit: float = 0.3) -> dict[str, str]:
    """Return the headings of `COLUMNS`; that of PRO says which it is, where not that of the whole curve up to 0.3."""
    extra = ("" if limit == 0.3 else f" to {limit:g}") + ("" if pro == "aupro" else f" ({pro})")
    return {**COLUMNS, "pixel_pro": COLUMNS["pixel_pro"] + extra}


def plain_table(**settings: Any) -> Table:
    """Return an empty `rich` table in the style of all results: no frame, a line below the headings, little space.

    An evaluation with every metric fits 80 columns.

    Args:
        settings: further arguments of `rich.table.Table`.
    """
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, collapse_padding=True, **settings)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float, *, digits: int) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}"
