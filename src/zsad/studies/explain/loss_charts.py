"""Loss terms of training runs over their steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from zsad.studies.explain.figure_parts import POOL_COLOURS, ExplanationFigure
from zsad.studies.explain.training_curves import IMAGE_AUROC, LossCurve, RunCurves
from zsad.studies.report.drawing import MARGIN, SOFT, Drawing, KeyEntry, draw_key, key_places, styled

_WIDTH, _HEIGHT, _GAP, _BELOW = 290.0, 150.0, 62.0, 72.0
_CAPTION = (
    "Each point is a mean over equally many steps, the band its least and greatest value. Terms with a weight "
    "are drawn without it, so that runs with different weights compare."
)
_MEASURED = " Image AUROC is measured after every epoch, on data that the training does not learn from."


def _line_style(index: int) -> KeyEntry:
    colour = POOL_COLOURS[index % len(POOL_COLOURS)]
    return KeyEntry("", colour, line=(0, (4.0, 2.0)) if index % 2 else "-")


@styled
def curves_figure(runs: Sequence[RunCurves]) -> ExplanationFigure:
    """Draw a chart for each loss term, auxiliary terms first, with a line for each run."""
    terms = list(dict.fromkeys(term for run in runs for term in run.curves))
    terms.sort(key=lambda term: term in ("classify", "focal", "dice", "total"))
    columns = min(3, len(terms))
    left = MARGIN + 44
    names = [f"{run.name} ({run.epochs} epochs, {run.steps:,} steps)" for run in runs]
    key = [
        KeyEntry(name, _line_style(index).colour, line=_line_style(index).line)
        for index, name in enumerate(names)
    ]
    width = left + columns * (_WIDTH + _GAP) - _GAP + MARGIN
    top = key_places(key, width)[1] + 8
    height = top + math.ceil(len(terms) / columns) * (_HEIGHT + _BELOW)
    drawing = Drawing(width, height, "Loss terms over training steps")
    draw_key(drawing, key)
    for number, term in enumerate(terms):
        row, column = divmod(number, columns)
        box = (left + column * (_WIDTH + _GAP), top + 26 + row * (_HEIGHT + _BELOW), _WIDTH, _HEIGHT)
        curves = {index: run.curves[term] for index, run in enumerate(runs) if term in run.curves}
        _draw_term(drawing.axes(*box), term, curves, last=max(run.steps for run in runs))
    caption = _CAPTION + (_MEASURED if IMAGE_AUROC in terms else "")
    return ExplanationFigure("curves", "How the loss terms went in training", caption, drawing)


def _draw_term(axes: Axes, term: str, curves: dict[int, LossCurve], *, last: int) -> None:
    means = np.concatenate([curve.mean for curve in curves.values()])
    low, high = float(means.min()), float(means.max())
    low = 0.0 if 0 < low < 0.35 * high else low
    margin = 0.06 * max(high - low, 1e-3 * abs(high), 1e-9)
    axes.set(xlim=(0, last), ylim=(low - margin * (low != 0), high + margin), title=term)
    axes.set_xlabel("step", loc="right", labelpad=2)
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    weights = dict.fromkeys(f"{curve.weight:g}" for curve in curves.values() if curve.weight is not None)
    if weights:
        text = f"weight {' and '.join(weights)}"
        axes.set_title(text, loc="right", fontsize=11.5, fontweight="normal", color=SOFT)
    for index, curve in curves.items():
        style = _line_style(index)
        if len(curve.steps) > 1:
            axes.fill_between(curve.steps, curve.low, curve.high, color=style.colour, alpha=0.16, linewidth=0)
        marker = "o" if len(curve.steps) == 1 else ""
        axes.plot(
            curve.steps, curve.mean, color=style.colour, linestyle=style.line, linewidth=2, marker=marker
        )
