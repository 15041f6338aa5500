"""Reports of a benchmark: its results as CSV, JSON, LaTeX, Markdown, pictures and a page to read."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from zsad.errors import DataError
from zsad.files import write_bytes, write_text
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.summary import Summary
from zsad.studies.report.result_tables import console, to_csv, to_json, to_latex, to_markdown

if TYPE_CHECKING:
    from rich.console import RenderableType

STEM = "benchmark"


def write_reports(work: Path, cells: Sequence[CellResult], *, title: str = "Benchmark") -> list[Path]:
    """Write all reports into the folder of a benchmark, in place of former ones.

    Without matplotlib there are no pictures and no page, without jinja2 no page; everything else is written.

    Args:
        work: the folder, with the files beside the cells; what of them is missing is left out of the reports.
        cells: finished and failed ones.
        title: of the page and the picture.

    Returns:
        The paths written: benchmark.csv, .json, .tex, .md, .svg, .pdf, .png, benchmark-maps.svg, .pdf, .png where
        there are maps, and benchmark.html.

    Raises:
        DataError: no cells.
        StorageError: the disk is full or the folder cannot be written.
    """
    if not cells:
        raise DataError(f"{work} holds no results, so there is nothing to report; run the benchmark first")
    summary = Summary(cells, work=work)
    charts = find_spec("matplotlib") is not None
    texts = {
        "csv": to_csv(summary),
        "json": to_json(summary),
        "tex": to_latex(summary),
        "md": to_markdown(summary, title=title, picture=f"{STEM}.png" if charts else None),
    }
    written = []
    for suffix, text in texts.items():
        written.append(work / f"{STEM}.{suffix}")
        write_text(written[-1], text)
    return written + (_write_pictures(work, summary, title=title) if charts else [])


def _write_pictures(work: Path, summary: Summary, *, title: str) -> list[Path]:
    """Write the charts and, with jinja2, the page."""
    from zsad.studies.report.examples import examples, maps_figure
    from zsad.studies.report.overview import overview

    chosen = examples(summary, work)
    chart, maps = overview(summary, title=title), maps_figure(chosen, summary.names)
    files = chart.files(STEM) | ({} if maps is None else maps.files(f"{STEM}-maps"))
    if find_spec("jinja2") is not None:
        from zsad.studies.report.benchmark_page import render_benchmark

        page = render_benchmark(summary, work, examples=chosen, title=title)
        files[f"{STEM}.html"] = page.encode("utf-8", "backslashreplace")
    for name, content in files.items():
        write_bytes(work / name, content)
    return [work / name for name in files]


def console_table(cells: Sequence[CellResult], *, work: Path | None = None) -> RenderableType:
    """Return the results of a benchmark for a terminal.

    Args:
        cells: finished and failed ones.
        work: the folder they lie in; with it the image metrics are compared image by image.
    """
    return console(Summary(cells, work=work))
