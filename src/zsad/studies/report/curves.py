"""ROC, PR and PRO curves of all methods on a target, averaged over classes and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zsad.files import read_arrays
from zsad.metrics.curve_points import curves
from zsad.metrics.exact import ImageScores
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.sampling import ImageTable
from zsad.studies.benchmark.summary import Summary
from zsad.studies.report.axes import Axis
from zsad.studies.report.canvas import Anchor, Drawing
from zsad.studies.report.charts import styles

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
    """A chart for each kind of curve that some method has on the target."""
    found = {name: _mean_lines(work, summary.finished(name, target).values()) for name in summary.names}
    return [
        _chart(summary, target, kind, {name: lines[kind] for name, lines in found.items() if kind in lines})
        for kind in _KINDS
        if any(kind in lines for lines in found.values())
    ]


def _mean_lines(work: Path, cells: Iterable[CellResult]) -> dict[str, Line]:
    """The curves of a method: the mean height at equal places over all classes and seeds."""
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
        found = curves(state, points=_POINTS)
        lines += [("image_roc", found.roc), ("image_pr", found.pr)]
    return [(kind, line) for kind, line in lines if line[0].size]


def _pixel_lines(work: Path, cell: CellResult) -> list[tuple[str, Line]]:
    if cell.files.curves is None:
        return []
    arrays = read_arrays(work / cell.files.curves) or {}
    lines = []
    for name in arrays:
        class_name, _, axis = name.rpartition("/")
        kind, _, end = axis.partition("_")
        other = arrays.get(f"{class_name}/{kind}_y")
        if (
            end == "x"
            and f"pixel_{kind}" in _KINDS
            and other is not None
            and other.size == arrays[name].size > 1
        ):
            lines.append((f"pixel_{kind}", (arrays[name], other)))
    return lines


def _chart(summary: Summary, target: str, kind: str, lines: Mapping[str, Line]) -> Drawing:
    title, across, up, metric = _KINDS[kind]
    told = ", ".join(f"{name} {summary.entry(name, target, metric).percent()}" for name in lines)
    sheet = Drawing(_WIDTH, _HEIGHT, f"{title} curves on {target}, area in percent: {told}")
    end = max(float(x[-1]) for x, _ in lines.values())
    axis = Axis(36, 30, _WIDTH - 46, _HEIGHT - 74, 0.0, end, 0.0, 1.0)
    sheet.text(axis.x - 28, 14, title, size=13, fill="ink", bold=True)
    axis.frame(sheet, labelled=True)
    anchors: dict[float, Anchor] = {0.0: "start", 0.5: "middle", 1.0: "end"}
    for share, anchor in anchors.items():
        x = axis.place(share * end, 0)[0]
        sheet.text(x, axis.bottom + 15, f"{share * end:.3g}", size=11, anchor=anchor)
    sheet.text(axis.x + axis.width / 2, axis.bottom + 32, f"{up} over {across}", size=11, anchor="middle")
    if kind.endswith("roc"):
        sheet.line([axis.place(0, 0), axis.place(1, 1)], "line", dashed=True)
    for name, style in styles(summary.names).items():
        if name in lines:
            xs, ys = lines[name]
            points = [axis.place(*point) for point in zip(xs.tolist(), ys.tolist(), strict=True)]
            sheet.line(points, style.colour, width=1.8, dashed=style.dashed)
    return sheet
