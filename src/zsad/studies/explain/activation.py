"""Activation of experts, how often they are chosen and their weight: PromptMoE's figure 6 as tables of colours."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from zsad.studies.explain.collect import GROUPS, Pool, Usage
from zsad.studies.explain.explanation import Explanation
from zsad.studies.explain.figure_parts import (
    GROUP_COLOURS,
    MAX_WIDTH,
    ExplanationFigure,
    short_names,
    wrapped,
)
from zsad.studies.report.drawing import ACCENT, INK, MARGIN, PANEL, Drawing, shortened, styled, text_width

_ROW, _GAP, _APART = 21.0, 26.0, 6.0
_LEGEND_WIDTH, _LEGEND_STEPS = 200.0, 20


def activation_figure(explanation: Explanation, kind: Literal["chosen", "weight"]) -> ExplanationFigure:
    """Draw the share of images or patches for which an expert is chosen, or its mean weight over them."""
    plurals = {"image": "images", "patch": "patches"}
    units = " or ".join(dict.fromkeys(plurals[pool.unit] for pool in explanation.pools.values()))
    if kind == "chosen":
        name, title, top = "activation", "How often experts are chosen", 1.0
        caption = f"share of {units} for which an expert is among the chosen, in percent"
    else:
        name, title = "weights", "How much experts weigh"
        caption = f"mean weight of an expert over {units}, in percent"
        highest = max(float(np.nanmax(entry.share("weight"))) for entry in explanation.usage)
        top = min(1.0, math.ceil(highest * 10 - 1e-9) / 10)
    return ExplanationFigure(name, title, caption, _ActivationTables(explanation, kind, top).draw(caption))


class _ActivationTables:
    """Tables of coloured cells: pools side by side, as many as fit, and below each other a table for each layer."""

    def __init__(self, explanation: Explanation, kind: Literal["chosen", "weight"], top: float) -> None:
        self.pools, self.kind, self.top = explanation.pools, kind, top
        usage = explanation.usage
        self.by_key = {(entry.dataset, entry.group, entry.pool): entry for entry in usage}
        groups = {(entry.dataset, entry.group) for entry in usage}
        datasets = list(dict.fromkeys(entry.dataset for entry in usage))
        self.rows: dict[tuple[str, str], float] = {}  # the upper edge of each in a table
        height = 0.0
        for dataset in datasets:
            for group in GROUPS:
                if (dataset, group) in groups:
                    self.rows[dataset, group] = height
                    height += _ROW
            height += _APART
        self.height = height - _APART
        self.names = min(190.0, max(text_width(name, 12) for name in datasets))
        self.left = MARGIN + self.names + 14 + 140
        self.bands = self._bands()

    @staticmethod
    def _cell(pool: Pool) -> float:
        count = len(pool.experts)
        return 42.0 if count <= 8 else 34.0 if count <= 16 else 18.0

    def _width(self, pool: Pool) -> float:
        return self._cell(pool) * len(pool.experts)

    def _bands(self) -> list[list[str]]:
        bands: list[list[str]] = [[]]
        width = self.left
        for name, pool in self.pools.items():
            if bands[-1] and width + self._width(pool) + _GAP > MAX_WIDTH:
                bands.append([])
                width = self.left
            bands[-1].append(name)
            width += self._width(pool) + _GAP
        return bands

    def _key(self, name: str) -> list[str]:
        """The lines that explain numbered experts."""
        pool = self.pools[name]
        return wrapped(short_names(pool.experts, self._cell(pool) - 4)[1], 11, self._width(pool))

    def _band_height(self, band: list[str]) -> float:
        lines, layers = (
            max(len(self._key(name)) for name in band),
            max(len(self.pools[n].layers) for n in band),
        )
        return 32 + 15 * lines + layers * (self.height + 32) + 4

    @styled
    def draw(self, caption: str) -> Drawing:
        widths = [sum(self._width(self.pools[name]) + _GAP for name in band) - _GAP for band in self.bands]
        beside = _LEGEND_WIDTH + 64 + text_width(caption, 12)
        height = 44 + sum(map(self._band_height, self.bands))
        description = f"Table of colours: {caption}, by data set, layer and pool"
        drawing = Drawing(self.left + max(*widths, beside) + MARGIN, height, description)
        self._draw_scale(drawing, caption)
        y = 44.0
        for band in self.bands:
            self._draw_band(drawing, band, y)
            y += self._band_height(band)
        return drawing

    def _draw_scale(self, drawing: Drawing, caption: str) -> None:
        x, y, step = self.left, 16.0, _LEGEND_WIDTH / _LEGEND_STEPS
        for index in range(_LEGEND_STEPS):
            opacity = _opacity((index + 0.5) / _LEGEND_STEPS)
            drawing.rectangle(x + index * step, y, step, 10, facecolor=ACCENT, alpha=opacity)
        drawing.text(x - 8, y + 9, "0", fontsize=11, ha="right")
        drawing.text(x + _LEGEND_WIDTH + 8, y + 9, f"{100 * self.top:.0f} %", fontsize=11)
        drawing.text(x + _LEGEND_WIDTH + 60, y + 9.5, caption)

    def _draw_band(self, drawing: Drawing, band: list[str], top: float) -> None:
        lines = max(len(self._key(name)) for name in band)
        x, y = self.left, top + 32 + 15 * lines
        layers: tuple[str, ...] = max((self.pools[name].layers for name in band), key=len)
        for layer, title in enumerate(layers):
            at = y + layer * (self.height + 32)
            drawing.text(MARGIN, at + 10, title, fontsize=13, color=INK)
            self._draw_row_names(drawing, at + 16)
        for name in band:
            pool = self.pools[name]
            title = f"{name} pool" if name in ("normal", "abnormal") else name
            drawing.text(x, top + 14, title, fontsize=14, color=INK)
            for number, text in enumerate(self._key(name)):
                drawing.text(x, top + 31 + 15 * number, text, fontsize=11)
            for layer in range(len(pool.layers)):
                box = (x, y + layer * (self.height + 32) + 16, self._width(pool), self.height)
                self._draw_table(drawing, drawing.axes(*box), name, layer)
            x += self._width(pool) + _GAP

    def _draw_row_names(self, drawing: Drawing, top: float) -> None:
        previous = ""
        for (dataset, group), offset in self.rows.items():
            y = top + offset + 14.5
            if dataset != previous:
                drawing.text(MARGIN, y, shortened(dataset, 12, self.names), color=INK)
            entries = [self.by_key.get((dataset, group, name)) for name in self.pools]
            count = max(entry.images for entry in entries if entry is not None)
            x = MARGIN + self.names + 14
            drawing.line((x + 4, x + 4), (y - 4, y - 4), color=GROUP_COLOURS[group], marker="o", markersize=8)
            drawing.text(x + 14, y, group)
            drawing.text(self.left - 10, y, f"{count:,}", ha="right")
            previous = dataset

    def _draw_table(self, drawing: Drawing, axes: Axes, name: str, layer: int) -> None:
        pool = self.pools[name]
        cell, count = self._cell(pool), len(pool.experts)
        axes.set(xlim=(0, count), ylim=(self.height, 0))
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.yaxis.set_major_locator(NullLocator())
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, pad=3)
        shown = range(0, count, 1 if cell > 20 else 4)
        labels = short_names(pool.experts, cell - 4)[0]
        axes.xaxis.set_major_locator(FixedLocator([index + 0.5 for index in shown]))
        axes.xaxis.set_major_formatter(FixedFormatter([labels[index] for index in shown]))
        for (dataset, group), y in self.rows.items():
            entry = self.by_key.get((dataset, group, name))
            if entry is not None and layer < len(entry.chosen):
                self._draw_cells(drawing, axes, entry, layer, y)

    def _draw_cells(self, drawing: Drawing, axes: Axes, entry: Usage, layer: int, y: float) -> None:
        pool = self.pools[entry.pool]
        edge = 1 / self._cell(pool)
        for index, value in enumerate(entry.share(self.kind)[layer]):
            level = min(1.0, float(value) / self.top)
            corner = (index + edge, y + 1)
            patch = Rectangle(
                corner, 1 - 2 * edge, _ROW - 2, facecolor=ACCENT, alpha=_opacity(level), linewidth=0
            )
            axes.add_patch(patch)
            place = f"{entry.dataset}, {entry.group}, {pool.layers[layer]}, {pool.experts[index]}"
            drawing.tip(patch, f"{place}: {100 * value:.1f} %")
            if self._cell(pool) > 20:
                ink = PANEL if level > 0.64 else INK
                middle = (index + 0.5, y + _ROW / 2)
                axes.text(
                    *middle, f"{100 * value:.0f}", fontsize=11, color=ink, ha="center", va="center_baseline"
                )


def _opacity(level: float) -> float:
    return 0.05 + 0.9 * level
