"""The reports of a benchmark: one folder of results as CSV, JSON, LaTeX, Markdown, pictures and a page to look at."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from zsad.errors import DataError
from zsad.files import write_bytes, write_text
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.summary import Summary
from zsad.studies.report.overview import overview
from zsad.studies.report.pictures import examples, maps_figure
from zsad.studies.report.text import console, to_csv, to_json, to_latex, to_markdown

if TYPE_CHECKING:
    from rich.console import RenderableType

STEM = "benchmark"


def write_reports(work: Path, cells: Sequence[CellResult], *, title: str = "Benchmark") -> list[Path]:
    """Writes all reports into the folder of a benchmark, in place of former ones.

    Without jinja2 there is no page; everything else is written all the same.

    Args:
        work: the folder, with the files beside the cells; what of them is missing is left out of the reports.
        cells: finished and failed ones.
        title: of the page and the picture.

    Returns:
        The paths written: benchmark.csv, .json, .tex, .md, .png, .svg, benchmark-maps.png where there are maps,
        and benchmark.html.

    Raises:
        DataError: no cells.
        StorageError: the disk is full or the folder cannot be written.
    """
    if not cells:
        raise DataError(f"{work} holds no results, so there is nothing to report; run the benchmark first")
    summary = Summary(cells, work=work)
    picture = overview(summary, title=title)
    shown = examples(summary, work)
    maps = maps_figure(shown, summary.names)
    texts = {
        "csv": to_csv(summary),
        "json": to_json(summary),
        "tex": to_latex(summary),
        "md": to_markdown(summary, title=title, picture=f"{STEM}.png"),
        "svg": picture.to_svg(),
    }
    written = [work / f"{STEM}.{suffix}" for suffix in texts]
    for path, text in zip(written, texts.values(), strict=True):
        write_text(path, text)
    pictures = {f"{STEM}.png": picture} | ({f"{STEM}-maps.png": maps} if maps is not None else {})
    for name, drawing in pictures.items():
        write_bytes(work / name, drawing.to_png())
        written.append(work / name)
    if find_spec("jinja2") is not None:
        from zsad.studies.report.page import render_benchmark

        page = render_benchmark(summary, work, examples=shown, title=title)
        written.append(work / f"{STEM}.html")
        write_bytes(written[-1], page.encode("utf-8", "backslashreplace"))
    return written


def console_table(cells: Sequence[CellResult], *, work: Path | None = None) -> RenderableType:
    """What the benchmark has found, for a terminal.

    Args:
        cells: finished and failed ones.
        work: the folder they lie in; with it the image metrics are compared image by image.
    """
    return console(Summary(cells, work=work))
