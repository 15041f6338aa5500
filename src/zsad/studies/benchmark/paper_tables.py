"""A paper's whole table with ours beside it, and holes where data or models are missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from zsad.datasets.catalog import bundled
from zsad.datasets.manifest import discover
from zsad.errors import ConfigError
from zsad.metrics.table import column_titles
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.pairing import Pair, find_set
from zsad.studies.benchmark.paper_comparison import about_the_data, measured, percent
from zsad.studies.benchmark.paper_settings import PRO_NOTES, describe, setting_differences
from zsad.studies.benchmark.papers import Paper, PaperTable
from zsad.studies.benchmark.summary import SEEN
from zsad.studies.benchmark.text_table import TableDocument, TextTable


def sets_of(blocks: Sequence[PaperTable]) -> tuple[str, ...]:
    """Return the data sets of a table's blocks, by catalogue names."""
    rows = (name for block in blocks for name in ([block.of] if block.of else block.rows))
    return tuple(dict.fromkeys(rows))


def present(names: Iterable[str], root: Path | None) -> dict[str, Path]:
    """Return the folders of those sets that lie below a root."""
    found = {}
    for name in names if root is not None else ():
        try:
            found[name] = find_set(name, root)
        except ConfigError:
            continue
    return found


def pairs_to_train(paper: Paper, sets: Mapping[str, Path], root: Path | None) -> tuple[Pair, ...]:
    """Return pairs of paths: each set with what the paper trains on for it, where that lies below the root."""
    tests: dict[tuple[str, ...], list[str]] = {}
    for name, path in sets.items():
        auxiliary = present(paper.trained_on(name), root)
        if len(auxiliary) == len(paper.trained_on(name)):
            tests.setdefault(tuple(map(str, auxiliary.values())), []).append(str(path))
    return tuple(Pair(train=train, test=tuple(test)) for train, test in tests.items())


@dataclass(slots=True)
class TableReproduction:
    """A table of a paper and what is measured of it here.

    Attributes:
        paper: whose table.
        number: of the table.
        cells: ours, finished, by method and set (a catalogue name); one for each seed.
        notes: sentences on what is missing.
    """

    paper: Paper
    number: str
    cells: dict[tuple[str, str], list[CellResult]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ours(self, block: PaperTable, column: str, row: str, metric: str) -> float | None:
        """Return our value in percent; None where nothing is measured."""
        cells = self.cells.get((self.paper.columns.get(column, ""), block.of or row))
        return None if cells is None else measured(cells, row if block.of else "", metric, pro=self.paper.pro)

    def seen(self, block: PaperTable, column: str, row: str) -> bool:
        """Return True if a method was trained on data of the set."""
        cells = self.cells.get((self.paper.columns.get(column, ""), block.of or row), [])
        return any(cell.seen for cell in cells)

    def document(self) -> TableDocument:
        """Return the blocks, rows of ours below rows of the paper, and what is to be known."""
        head = [f"{self.paper.paper}, table {self.number}: the paper's values, ours below them."]
        if any("pixel_pro" in block.metrics for block in self.paper.blocks(self.number)):
            head.append(PRO_NOTES[self.paper.pro])
        for method, differences in self._differences().items():
            head.append(describe(method, self.paper.paper, differences))
        tables = [table for block in self.paper.blocks(self.number) for table in self._tables(block)]
        return TableDocument(f"Table {self.number} of {self.paper.paper}", head, tables, self._notes())

    def _tables(self, block: PaperTable) -> Iterator[TextTable]:
        """Yield a table for each metric, or one of all metrics where the paper prints a single method."""
        titles = column_titles(self.paper.pro)
        one = len(block.columns) == 1
        for metrics in [block.metrics] if one else [(metric,) for metric in block.metrics]:
            columns = [(column, metric) for column in block.columns for metric in metrics]
            heads = [titles[metric] if one else column for column, metric in columns]
            what = block.columns[0] if one else titles[metrics[0]]
            table = TextTable(["class" if block.of else "data set", "", *heads], left=2)
            table.title = f"{block.title}: {what}, in percent"
            for row in block.rows:
                table.sections.add(len(table.rows))
                values = [block.values(row, column).get(metric) for column, metric in columns]
                table.rows.append([row, "paper", *map(percent, values)])
                table.rows.append(["", "ours", *(self._cell(block, c, row, m) for c, m in columns)])
            if block.mean is not None:
                table.sections.add(len(table.rows))
                printed = [block.printed_mean(column, metric) for column, metric in columns]
                table.rows.append(["mean", "paper", *map(percent, printed)])
                table.rows.append(["", "ours", *(percent(self._mean(block, c, m)) for c, m in columns)])
            yield table

    def _cell(self, block: PaperTable, column: str, row: str, metric: str) -> str:
        mark = SEEN if self.seen(block, column, row) else ""
        value = self.ours(block, column, row, metric)
        return percent(value) + ("" if value is None else mark)

    def _mean(self, block: PaperTable, column: str, metric: str) -> float | None:
        """Return our mean, where all of the rows are measured that the paper's is of."""
        rows = [row for row in block.rows if metric in block.values(row, column)]
        values = [self.ours(block, column, row, metric) for row in rows]
        if not values or any(self.seen(block, column, row) for row in rows):
            return None
        known = [value for value in values if value is not None]
        return fmean(known) if len(known) == len(values) else None

    def _differences(self) -> dict[str, list[Any]]:
        """Return the settings of each measured method that are not the paper's."""
        found: dict[str, dict[str, Any]] = {}
        for (method, _), cells in self.cells.items():
            for each in (each for cell in cells for each in setting_differences(cell, self.paper)):
                found.setdefault(method, {})[str(each)] = each
            found.setdefault(method, {})
        return {method: list(differences.values()) for method, differences in found.items()}

    def _notes(self) -> list[str]:
        lines = list(self.notes)
        columns = {column for block in self.paper.blocks(self.number) for column in block.columns}
        if foreign := sorted(columns - self.paper.columns.keys()):
            lines.append(f"zsad has no {', '.join(foreign)}")
        for (_, name), cells in self.cells.items():
            lines += about_the_data(cells, bundled().find(name))
        if any(cell.seen for cells in self.cells.values() for cell in cells):
            lines.append(f"{SEEN} trained on data of this set: not zero-shot, in no mean")
        lines += self.paper.caveats
        return list(dict.fromkeys(lines))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        blocks = self.paper.blocks(self.number)
        return {
            "paper": self.paper.paper,
            "table": self.number,
            "pro": self.paper.pro,
            "not_the_papers": {
                method: [asdict(each) for each in listed] for method, listed in self._differences().items()
            },
            "values": [
                {
                    "block": block.title,
                    "method": column,
                    "set": block.of or row,
                    "class": row if block.of else None,
                    "metric": metric,
                    "paper": block.values(row, column).get(metric),
                    "ours": self.ours(block, column, row, metric),
                    "seen": self.seen(block, column, row),
                }
                for block in blocks
                for row in block.rows
                for column in block.columns
                for metric in block.metrics
            ],
            "notes": self._notes(),
        }


def count_images(paper: Paper, sets: Mapping[str, Path]) -> TableDocument:
    """Return the paper's table of data sets with the counts of those that are here."""
    table = TextTable(["data set", "", "classes", "normal", "anomalous"], left=2, title="test images")
    for name, printed in paper.counts.items():
        table.sections.add(len(table.rows))
        table.rows.append([name, "paper", *map(str, printed)])
        samples = discover(sets[name]).samples if name in sets else []
        labels = [sample.label for sample in samples]
        counts = [len({sample.class_name for sample in samples}), labels.count(0), labels.count(1)]
        table.rows.append(["", "ours", *(map(str, counts) if samples else "–––")])
    title = f"Table {paper.counts_table} of {paper.paper}"
    return TableDocument(title, [f"{paper.paper}, table {paper.counts_table}."], [table])
