"""Results of a benchmark: results.json, the report, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zsad
from zsad.files import write_json
from zsad.metrics.table import COLUMNS, column_titles
from zsad.studies.benchmark.cell_results import VERSION, CellResult, common_pro
from zsad.studies.benchmark.directions import DirectionMean, direction_means
from zsad.studies.benchmark.summary import SEEN
from zsad.studies.benchmark.text_table import TextTable

if TYPE_CHECKING:
    from rich.console import RenderableType

RESULTS_FILE = "results.json"
_REPORT = "zsad.studies.report.benchmark_reports"


@dataclass(slots=True)
class WrittenResults:
    """The files of a benchmark, and what is printed.

    Attributes:
        names: of the files, relative to the folder.
        tables: for a terminal.
        holes: cells without a result, and why.
        problems: files of data sets that could not be used.
    """

    names: list[str]
    tables: list[RenderableType]
    holes: list[tuple[str, str]]
    problems: int


def write_results(work: Path, cells: Sequence[CellResult]) -> WrittenResults:
    """Write results.json and the report of a work folder.

    Raises:
        StorageError: the folder cannot be written.
    """
    means = direction_means(cells)
    write_json(
        work / RESULTS_FILE,
        {
            "version": VERSION,
            "zsad": zsad.__version__,
            "protocols": sorted({cell.protocol for cell in cells if cell.protocol}),
            "directions": [mean.to_dict() for mean in means],
            "cells": [cell.model_dump(mode="json") for cell in cells],
        },
    )
    holes = [
        (f"{cell.label} on {cell.target}" + ("" if cell.seed is None else f", seed {cell.seed}"), cell.reason)
        for cell in cells
        if cell.state == "failed"
    ]
    problems = {problem.path for cell in cells for problem in cell.problems}
    names = [RESULTS_FILE]
    tables: list[RenderableType] = [direction_table(means, column_titles(common_pro(cells))).to_rich()]
    if find_spec(_REPORT) is not None:
        report: Any = import_module(_REPORT)
        # A single direction's means are those of the table above, where they have their marks, too.
        apart = len({mean.trained_on for mean in means}) > 1
        tables = [report.console_table(list(cells), work=work), *(tables if apart else [])]
        names += [path.relative_to(work).as_posix() for path in report.write_reports(work, list(cells))]
    return WrittenResults(names, tables, holes, len(problems))


def direction_table(means: Sequence[DirectionMean], titles: Mapping[str, str]) -> TextTable:
    """Return means over data sets in percent, with deviations over seeds: a section for each direction.

    Args:
        means: of all methods.
        titles: of the metrics.
    """
    columns = [column for column in COLUMNS if any(mean.mean(column) is not None for mean in means)]
    headings = ["trained on", "method", "sets", *(titles[column] for column in columns)]
    table = TextTable(headings, left=3, title="mean over data sets, in percent")
    for index, mean in enumerate(means):
        first = index == 0 or mean.trained_on != means[index - 1].trained_on
        if first:
            table.sections.add(index)
        count = len({name for names in mean.sets.values() for name in names})
        left_out = len({*mean.missing, *mean.seen})
        sets = f"{count}" + (f" of {count + left_out}" if left_out else "") + (SEEN if mean.seen else "")
        trained_on = ", ".join(mean.trained_on) or "–" if first else ""
        table.rows.append([trained_on, mean.label, sets, *(_cell(mean, column) for column in columns)])
    return table


def _cell(mean: DirectionMean, column: str) -> str:
    value, deviation = mean.mean(column), mean.deviation(column)
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
