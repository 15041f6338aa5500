"""The papers' numbers beside one's own, with all that keeps them from being comparable."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from zsad.datasets.catalog import CatalogEntry, bundled
from zsad.datasets.words import letters
from zsad.methods.registry import domain_note
from zsad.metrics.table import COLUMNS, column_titles
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.paper_settings import (
    PRO_NOTES,
    SettingDifference,
    describe,
    setting_differences,
)
from zsad.studies.benchmark.papers import Paper, papers_on, printed
from zsad.studies.benchmark.text_table import TableDocument, TextTable

_REFERENCE = re.compile(r" \([^()]*\)")  # "(AAAI 2026, arXiv 2511.18116)": the remarks have it


@dataclass(frozen=True, slots=True)
class PublishedComparison:
    """A published value and ours, in percent; either is None where there is none.

    `row` is the class, or "" for the mean over the set's classes.
    """

    source: str
    row: str
    metric: str
    paper: float | None
    ours: float | None

    @property
    def difference(self) -> float | None:
        """The difference of ours and the paper's value, in points."""
        return None if self.paper is None or self.ours is None else self.ours - self.paper


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The values of a method on a set, the settings that are not a paper's, and remarks.

    `differences` are by the names of the papers; `pro` is ours.
    """

    method: str
    target: str
    comparisons: tuple[PublishedComparison, ...]
    remarks: tuple[str, ...]
    differences: dict[str, tuple[SettingDifference, ...]]
    pro: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "method": self.method,
            "target": self.target,
            "pro": self.pro,
            "not_the_papers": {
                paper: [asdict(each) for each in listed] for paper, listed in self.differences.items()
            },
            "values": [
                {
                    "source": entry.source,
                    "class": entry.row or None,
                    "metric": entry.metric,
                    "paper": entry.paper,
                    "ours": entry.ours,
                    "difference": entry.difference,
                }
                for entry in self.comparisons
            ],
            "remarks": list(self.remarks),
        }

    def document(self) -> TableDocument:
        """Return the table with what is to be known before reading it."""
        head = [describe("ours", paper, listed) for paper, listed in self.differences.items()]
        return TableDocument(
            f"{self.method} on {self.target}",
            [*head, PRO_NOTES[self.pro]],
            [self._table()],
            list(self.remarks),
        )

    def _table(self) -> TextTable:
        """Return paper, ours and difference in percent; a dash where there is none; sources by short names."""
        titles = column_titles(self.pro)
        table = TextTable(["source", "class", "metric", "paper", "ours", "difference"], left=3)
        table.title = "paper and ours, in percent"
        previous = ""
        for index, entry in enumerate(self.comparisons):
            if entry.source != previous:
                table.sections.add(index)
            source = _REFERENCE.sub("", entry.source) if entry.source != previous else ""
            previous = entry.source
            difference = "–" if entry.difference is None else f"{entry.difference:+.1f}"
            values = [percent(entry.paper), percent(entry.ours), difference]
            table.rows.append([source, entry.row or "mean", titles[entry.metric], *values])
        return table


def find_entry(name: str, folder: str) -> CatalogEntry | None:
    """Return the catalogue's entry of a set, by the user's name for it or by its folder's name."""
    book = bundled()
    return book.get(name) or book.get(folder)


def compare(method: str, cells: Sequence[CellResult], entry: CatalogEntry | None) -> Reproduction:
    """Compare our cells of one method on one set with what papers print.

    Args:
        method: name in the registry.
        cells: one for each seed, finished.
        entry: of the set in the catalogue; None: no paper can be asked.

    Raises:
        ConfigError: no paper with results of the method is known.
    """
    known_papers = papers_on(method)
    target = cells[0].target if entry is None else entry.name
    published = [] if entry is None else printed(method, entry.name)
    comparisons = []
    for printed_value in published:
        row = "" if printed_value.table.of is None else printed_value.row
        for metric, value in printed_value.values.items():
            ours = measured(cells, row, metric, pro=printed_value.paper.pro)
            comparisons.append(PublishedComparison(printed_value.source, row, metric, value, ours))
    asked = {entry.metric for entry in comparisons if entry.ours is not None}
    for metric in COLUMNS:
        found_here = measured(cells, "", metric, pro=cells[0].pro)
        if metric not in asked and found_here is not None:
            comparisons.append(PublishedComparison("not published", "", metric, None, found_here))
    sources = {value.paper.paper: value.paper for value in published}
    compared = list(sources.values()) or known_papers
    differences = {
        paper.paper: tuple(
            {str(each): each for cell in cells for each in setting_differences(cell, paper)}.values()
        )
        for paper in compared
    }
    remarks = [
        *_about_ours(cells),
        *_about_papers(compared, entry, target),
        *([] if published or entry is None else [f"no published value of {method} on {target} is known"]),
        *([] if entry is None else about_the_data(cells, entry)),
    ]
    return Reproduction(
        method, target, tuple(comparisons), tuple(dict.fromkeys(remarks)), differences, cells[0].pro
    )


def measured(cells: Sequence[CellResult], row: str, metric: str, *, pro: str) -> float | None:
    """Return the mean over seeds in percent, of a class or with row "" over classes.

    None where some seed has none, or where the metric is another PRO than `pro`.
    """
    values = []
    for cell in cells:
        if metric == "pixel_pro" and cell.pro != pro:
            return None
        value = cell.mean(metric) if not row else _of_class(cell, row, metric)
        if value is None:
            return None
        values.append(100 * value)
    return fmean(values)


def _of_class(cell: CellResult, name: str, metric: str) -> float | None:
    match = next((row for row in cell.rows if letters(row.name.rpartition("/")[2]) == letters(name)), None)
    return None if match is None else match.metrics.get(metric)


def _about_ours(cells: Sequence[CellResult]) -> Iterator[str]:
    first = cells[0]
    seeds = [str(cell.seed) for cell in cells if cell.seed is not None]
    trained = f"trained on {', '.join(first.trained_on)}" if first.trained_on else "without training"
    seed_text = f", seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}" if seeds else ""
    size = first.settings.get("image_size")
    yield f"ours: {first.label} on {first.backbone} at {size} px, {trained}{seed_text}"
    if note := domain_note(first.settings):
        yield f"ours: {note}"
    if first.provenance:
        yield f"{first.label} is {first.provenance}: its numbers are not its authors'"
    if len(cells) == 1 and first.seed is not None:
        yield "one seed: differences of about a point mean nothing, take several (--seeds 111 112 113)"


def _about_papers(papers: Sequence[Paper], entry: CatalogEntry | None, target: str) -> Iterator[str]:
    if entry is None:
        yield f"{target} is no set of the catalogue (zsad data list): there is nothing published to compare with"
    for paper in papers:
        trained_on = ", ".join(paper.trained_on(target))
        yield f"{paper.paper}: {paper.backbone} at {paper.image_size} px, trained on {trained_on}"
        yield from (f"{paper.paper}: {line}" for line in paper.caveats)
        if target in paper.notes:
            yield f"{target}: {paper.notes[target]}"


def about_the_data(cells: Sequence[CellResult], entry: CatalogEntry) -> Iterator[str]:
    """Yield what of the measured images differs from the set as papers have it."""
    rows = cells[0].rows
    counts = sum(row.normal for row in rows), sum(row.anomalous for row in rows)
    if entry.normal is not None and counts != (entry.normal, entry.anomalous):
        yield (
            f"not comparable: {entry.name} has {entry.normal} normal and {entry.anomalous} anomalous test images, ours "
            f"{counts[0]} and {counts[1]}"
        )
    if entry.classes and len(rows) != len(entry.classes):
        yield f"not comparable: {entry.name} has {len(entry.classes)} classes, ours {len(rows)}"
    if entry.not_to_be_confused_with:
        yield f"{entry.name} is not {', '.join(entry.not_to_be_confused_with)}"
    for cell in cells:
        if cell.seen:
            yield "not zero-shot: the model was trained on data of this set"
        if cell.related:
            yield f"{cell.label} on {cell.target}: {cell.related}"
        yield from (problem.line for problem in cell.problems)


def percent(value: float | None) -> str:
    """Return a value in percent with one decimal, a dash for None."""
    return "–" if value is None else f"{value:.1f}"
