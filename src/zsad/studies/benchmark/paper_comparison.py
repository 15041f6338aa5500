"""The papers' numbers beside one's own, with all that keeps them from being comparable."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from zsad.datasets.catalog import CatalogEntry, bundled
from zsad.datasets.words import letters
from zsad.methods.registry import domain_note
from zsad.metrics.table import COLUMNS
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.papers import Paper, Printed, papers_on, printed
from zsad.studies.benchmark.text_table import TextTable

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
    """The values of a method on a set, and remarks on them."""

    method: str
    target: str
    comparisons: tuple[PublishedComparison, ...]
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "method": self.method,
            "target": self.target,
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

    def table(self) -> TextTable:
        """Return paper, ours and difference in percent; a dash where there is none; sources by short names."""
        table = TextTable(["source", "class", "metric", "paper", "ours", "difference"], left=3)
        previous = ""
        for index, entry in enumerate(self.comparisons):
            if entry.source != previous:
                table.sections.add(index)
            source = _REFERENCE.sub("", entry.source) if entry.source != previous else ""
            previous = entry.source
            difference = "–" if entry.difference is None else f"{entry.difference:+.1f}"
            values = [_percent(entry.paper), _percent(entry.ours), difference]
            table.rows.append([source, entry.row or "mean", COLUMNS[entry.metric], *values])
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
            comparisons.append(
                PublishedComparison(printed_value.source, row, metric, value, _ours(cells, row, metric))
            )
    asked = {entry.metric for entry in comparisons}
    for metric in COLUMNS:
        found_here = _ours(cells, "", metric)
        if metric not in asked and found_here is not None:
            comparisons.append(PublishedComparison("not published", "", metric, None, found_here))
    remarks = tuple(dict.fromkeys(_remarks(method, cells, entry, published, known_papers)))
    return Reproduction(method, target, tuple(comparisons), remarks)


def _ours(cells: Sequence[CellResult], row: str, metric: str) -> float | None:
    """Return the mean over seeds in percent, of a class or over classes; None where some seed has none."""
    values = []
    for cell in cells:
        value = cell.mean(metric) if not row else _of_class(cell, row, metric)
        if value is None:
            return None
        values.append(100 * value)
    return fmean(values)


def _of_class(cell: CellResult, name: str, metric: str) -> float | None:
    match = next((row for row in cell.rows if letters(row.name.rpartition("/")[2]) == letters(name)), None)
    return None if match is None else match.metrics.get(metric)


def _remarks(
    method: str,
    cells: Sequence[CellResult],
    entry: CatalogEntry | None,
    published: Sequence[Printed],
    known_papers: Sequence[Paper],
) -> Iterator[str]:
    """Yield what is to be known before comparing."""
    first = cells[0]
    size = first.settings.get("image_size")
    seeds = [str(cell.seed) for cell in cells if cell.seed is not None]
    trained = f"trained on {', '.join(first.trained_on)}" if first.trained_on else "without training"
    seed_text = f", seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}" if seeds else ""
    yield f"ours: {first.label} on {first.backbone} at {size} px, {trained}{seed_text}"
    if note := domain_note(first.settings):
        yield f"ours: {note}"
    if entry is None:
        yield f"{first.target} is no set of the catalogue (zsad data list): there is nothing published to compare with"
    for paper in dict.fromkeys(printed_value.paper.paper for printed_value in published):
        one = next(printed_value.paper for printed_value in published if printed_value.paper.paper == paper)
        yield from _setting(one, first, entry, size)
    if entry is not None and not published:
        yield f"no published value of {method} on {entry.name} is known"
    for source in (
        known_papers
        if not published
        else [source for source in known_papers if source.paper in {p.paper.paper for p in published}]
    ):
        yield from (f"{source.paper}: {line}" for line in source.caveats)
        if entry is not None and entry.name in source.notes:
            yield f"{entry.name}: {source.notes[entry.name]}"
    if entry is not None:
        yield from _about_the_data(cells, entry)
    if first.provenance:
        yield f"{first.label} is {first.provenance}: its numbers are not its authors'"
    if len(cells) == 1 and first.seed is not None:
        yield "one seed: differences of about a point mean nothing, take several (--seeds 111 112 113)"


def _setting(paper: Paper, ours: CellResult, entry: CatalogEntry | None, size: Any) -> Iterator[str]:
    theirs = paper.trained_on(entry.name if entry is not None else "")
    line = f"{paper.paper}: {paper.backbone} at {paper.image_size} px, trained on {', '.join(theirs)}"
    differs = []
    if letters(ours.backbone) != letters(paper.backbone):
        differs.append(f"another backbone ({ours.backbone})")
    if size != paper.image_size:
        differs.append(f"another image size ({size} px)")
    if ours.trained_on and not _same_sets(ours.trained_on, theirs):
        differs.append(f"another auxiliary set ({', '.join(ours.trained_on)})")
    yield line + (f"; not comparable: ours has {', '.join(differs)}" if differs else "")


def _same_sets(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    book = bundled()
    names = {entry.name if (entry := book.get(name)) else name for name in ours}
    return names == set(theirs)


def _about_the_data(cells: Sequence[CellResult], entry: CatalogEntry) -> Iterator[str]:
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
        yield from (problem.line for problem in cell.problems)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
