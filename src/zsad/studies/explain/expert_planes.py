"""Experts as points of a plane for each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

from zsad.studies.explain.embeddings import ExpertMap
from zsad.studies.explain.explanation import Explanation
from zsad.studies.explain.figure_parts import POOL_COLOURS, ExplanationFigure
from zsad.studies.report.drawing import (
    FAINT,
    LINE,
    MARGIN,
    PANEL,
    Drawing,
    KeyEntry,
    draw_key,
    key_places,
    shortened,
    styled,
)

_SIDE, _GAP, _BELOW = 250.0, 22.0, 111.0


@styled
def expert_figure(explanation: Explanation, maps: Sequence[ExpertMap], index: int) -> ExplanationFigure:
    """Draw the planes of the pools of one shape, one for each layer."""
    columns = min(len(maps), 4)
    key = [
        KeyEntry(name, POOL_COLOURS[i % len(POOL_COLOURS)], "s" if i % 2 else "o")
        for i, name in enumerate(maps[0].points)
    ]
    width = 2 * MARGIN + columns * (_SIDE + _GAP) - _GAP
    top = key_places(key, width)[1]
    height = top + math.ceil(len(maps) / columns) * (_SIDE + _BELOW)
    names = ", ".join(entry.name for entry in key)
    drawing = Drawing(width, height, f"Experts of the pools {names} in a plane, by layer")
    draw_key(drawing, key)
    for number, entry in enumerate(maps):
        row, column = divmod(number, columns)
        x, y = MARGIN + column * (_SIDE + _GAP), top + 26 + row * (_SIDE + _BELOW)
        _draw_plane(drawing, entry, key, x, y, explanation)
    projection = "two principal components" if explanation.projection == "pca" else "t-SNE"
    caption = (
        f"Each point is an expert's mean embedding ({projection}, a plane for each layer). The spread of a pool is the "
        "root mean square distance of its experts from their mean, in the full space: small for a compact pool, large "
        "for a dispersed one. Mean cosines: 0 for unrelated directions, 1 for equal ones."
    )
    if explanation.projection == "tsne":
        caption += " t-SNE keeps neighbours, not distances: compare the spreads, not the areas."
    name = "experts" if index == 0 else f"experts-{index + 1}"
    return ExplanationFigure(name, "Where experts lie", caption, drawing)


def _draw_plane(
    drawing: Drawing, entry: ExpertMap, key: Sequence[KeyEntry], x: float, y: float, explanation: Explanation
) -> None:
    """The experts with their numbers, lines through the mean of all, and below it the cosines."""
    axes = drawing.axes(x, y, _SIDE, _SIDE, facecolor=FAINT)
    every = np.concatenate(list(entry.points.values()))
    low, high = every.min(axis=0), every.max(axis=0)
    half = max(float((high - low).max()), 1e-9) * 0.58
    middle = (low + high) / 2
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set_title(entry.layer, fontweight="normal", pad=7)
    axes.spines[:].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(NullLocator())
    axes.axvline(0, color=LINE, linewidth=1, zorder=1)
    axes.axhline(0, color=LINE, linewidth=1, zorder=1)
    order = 2  # of painting: a number lies on its own marker, and below the next
    for (pool, points), style in zip(entry.points.items(), key, strict=True):
        known = explanation.pools.get(pool)
        for expert, point in enumerate(points):
            name = known.experts[expert] if known and len(known.experts) == len(points) else f"E{expert + 1}"
            size = 18 if style.marker == "s" else 20
            options: dict[str, Any] = {"color": style.colour, "markeredgecolor": PANEL, "clip_on": False}
            order += 1
            (marker,) = axes.plot(*point, style.marker, markersize=size, zorder=order, **options)
            drawing.tip(marker, f"{pool}: {name}")
            label = axes.text(
                point[0], point[1], str(expert + 1), ha="center", va="center_baseline", fontsize=11
            )
            label.set(color=PANEL, zorder=order + 0.5)
    lines = []
    if entry.explained is not None:
        lines.append(f"{100 * sum(entry.explained):.0f} % of the variance in this plane")
    spreads = ", ".join(f"{pool} {value:.3g}" for pool, value in entry.spread.items())
    lines.append(shortened(f"spread: {spreads}", 11.5, _SIDE + 16))
    within = [f"{pool} {value + 0.0:.2f}" for pool, value in entry.cosine.items() if pool != "between"]
    lines.append(shortened(f"mean cosine: {', '.join(within)}", 11.5, _SIDE + 16))
    if "between" in entry.cosine:
        lines.append(f"between pools {entry.cosine['between']:.2f}")
    for number, line in enumerate(lines):
        drawing.text(x, y + _SIDE + 17 + 15 * number, line, fontsize=11.5)
