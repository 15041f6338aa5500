"""ROC, PR and PRO curves of all methods on a target, averaged over classes and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from zsad.files import read_arrays
from zsad.metrics.curve_points import curves
from zsad.metrics.exact import ImageScores
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.sampling import ImageTable
from zsad.studies.benchmark.summary import Summary
from zsad.studies.report.drawing import LINE, Drawing, styled
from zsad.studies.report.method_charts import styles

Line = tuple[NDArray[np.float64], NDArray[np.float64]]

_KINDS = {
    "image_roc": ("image ROC", "false positive rate", "true positive rate", "image_auroc"),
    "image_pr": ("image PR", "recall", "precision", "image_ap"),
    "pixel_roc": ("pixel ROC", "false positive rate", "true positive rate", "pixel_auroc"),
    "pixel_pr": ("pixel PR", "recall", "precision", "pixel_ap"),
    "pixel_pro": ("PRO", "false positive rate", "region overlap", "pixel_pro"),
}
_POINTS = 101
_WIDTH, _HEIGHT = 252.0, 236.0


def curve_charts(summary: Summary, target: str, work: Path) -> list[Drawing]:
    """Return a chart for each kind of curve that some method has on the target."""
    curves_of = {name: mean_lines(work, summary.finished(name, target).values()) for name in summary.names}
    return [
        _chart(summary, target, kind, {name: each[kind] for name, each in curves_of.items() if kind in each})
        for kind in _KINDS
        if any(kind in each for each in curves_of.values())
    ]


def mean_lines(work: Path, cells: Iterable[CellResult]) -> dict[str, Line]:
    """Return the curves of a method: the mean height at equal places over all classes and seeds."""
    heights: dict[str, list[NDArray[np.float64]]] = {}
    ends: dict[str, float] = {}
    for cell in cells:
        for kind, (x, y) in (*_image_lines(work, cell), *_pixel_lines(work, cell)):
            end = ends.setdefault(kind, float(x[-1]) if kind == "pixel_pro" else 1.0)
            heights.setdefault(kind, []).append(np.interp(np.linspace(0, end, _POINTS), x, y))
    return {
        kind: (np.linspace(0, ends[kind], _POINTS), np.mean(lines, axis=0)) for kind, lines in heights.items()
    }


def _image_lines(work: Path, cell: CellResult) -> list[tuple[str, Line]]:
    table = ImageTable.read(work, cell)
    lines = []
    for images in table.by_class().values() if table is not None else ():
        state = ImageScores()
        for label, score in images.values():
            state.add(score, label)
        of_class = curves(state, points=_POINTS)
        lines += [("image_roc", of_class.roc), ("image_pr", of_class.pr)]
    return [(kind, line) for kind, line in lines if line[0].size]


def _pixel_lines(work: Path, cell: CellResult) -> list[tuple[str, Line]]:
    if cell.files.curves is None:
        return []
    arrays = read_arrays(work / cell.files.curves) or {}
    lines = []
    for name, x in arrays.items():
        kind = f"pixel_{name.rpartition('/')[2].removesuffix('_x')}"
        y = arrays.get(name.removesuffix("_x") + "_y")
        if name.endswith("_x") and kind in _KINDS and y is not None and y.size == x.size > 1:
            lines.append((kind, (x, y)))
    return lines


@styled
def _chart(summary: Summary, target: str, kind: str, lines: Mapping[str, Line]) -> Drawing:
    title, across, up, metric = _KINDS[kind]
    areas = ", ".join(f"{name} {summary.entry(name, target, metric).percent()}" for name in lines)
    drawing = Drawing(_WIDTH, _HEIGHT, f"{title} curves on {target}, area in percent: {areas}")
    axes = drawing.axes(36, 30, _WIDTH - 52, _HEIGHT - 76)
    end = max(float(x[-1]) for x, _ in lines.values())
    axes.set(xlim=(0, end), ylim=(0, 1), xticks=(0, end / 2, end), xlabel=f"{up} over {across}")
    axes.set_title(title, x=-0.14)
    axes.grid(axis="x", visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    if kind.endswith("roc"):
        axes.plot((0, 1), (0, 1), color=LINE, linewidth=1, linestyle=(0, (4, 2.5)))
    for name, style in styles(summary.names).items():
        if name in lines:
            (line,) = axes.plot(*lines[name], **style.line(width=1.8))
            line.set(
                marker=style.marker, markersize=4.5, markevery=(8 + 3 * len(axes.lines), 30), clip_on=False
            )
            drawing.tip(line, name)
    return drawing
