"""How often experts are chosen and how much they weigh: PromptMoE's figure 6 as tables of colours."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from zsad.studies.explain.charts import GROUP_COLOURS, MARGIN, WIDEST, Figure, short_names, wrapped
from zsad.studies.explain.collect import GROUPS, Pool, Usage
from zsad.studies.explain.explanation import Explanation
from zsad.studies.report.canvas import Drawing, shortened, text_width

_ROW, _GAP = 21.0, 26.0


def activation_figure(found: Explanation, kind: Literal["chosen", "weight"]) -> Figure:
    plurals = {"image": "images", "patch": "patches"}
    units = " or ".join(dict.fromkeys(plurals[pool.unit] for pool in found.pools.values()))
    top = 1.0
    if kind == "weight":
        top = max(float(np.nanmax(entry.share("weight"))) for entry in found.usage)
        top = min(1.0, math.ceil(top * 10 - 1e-9) / 10)
    said = {
        "chosen": f"share of {units} for which an expert is among the chosen, in percent",
        "weight": f"mean weight of an expert over {units}, in percent",
    }[kind]
    sheet = _HeatSheet(found, kind, top)
    drawing = sheet.draw(said)
    title = {"chosen": "How often experts are chosen", "weight": "How much experts weigh"}[kind]
    return Figure({"chosen": "activation", "weight": "weights"}[kind], title, said, drawing)


class _HeatSheet:
    """Tables of coloured cells: a column of tables for each pool, a row of them for each layer."""

    def __init__(self, found: Explanation, kind: Literal["chosen", "weight"], top: float) -> None:
        self.found, self.kind, self.top = found, kind, top
        usage = found.usage
        self.by_key = {(entry.dataset, entry.group, entry.pool): entry for entry in usage}
        sets = dict.fromkeys(entry.dataset for entry in usage)
        here = {(entry.dataset, entry.group) for entry in usage}
        self.rows = [(name, group) for name in sets for group in GROUPS if (name, group) in here]
        widest = max(text_width(name, 12) for name in sets)
        self.names = min(170.0, widest)
        self.left = MARGIN + self.names + 14 + 132
        self.chunks = self._chunked()

    def _cell(self, pool: Pool) -> float:
        count = len(pool.experts)
        return 42.0 if count <= 8 else 34.0 if count <= 16 else 18.0

    def _chunked(self) -> list[list[str]]:
        """Pools side by side, as many as fit."""
        chunks: list[list[str]] = [[]]
        width = self.left
        for name, pool in self.found.pools.items():
            own = self._cell(pool) * len(pool.experts) + _GAP
            if chunks[-1] and width + own > WIDEST:
                chunks.append([])
                width = self.left
            chunks[-1].append(name)
            width += own
        return chunks

    def draw(self, caption: str) -> Drawing:
        drawing = Drawing(0, 0, f"Table of colours: {caption}, by data set, layer and pool")
        y, right = self._legend(drawing, caption) + 18, 0.0
        for chunk in self.chunks:
            y, width = self._chunk(drawing, chunk, y)
            right = max(right, width)
        drawing.width, drawing.height = max(right, self.left + 256 + text_width(caption, 12)) + MARGIN, y
        return drawing

    def _legend(self, drawing: Drawing, caption: str) -> float:
        x, y, width, steps = self.left, 16.0, 200.0, 20
        for index in range(steps):
            opacity = _opacity((index + 0.5) / steps)
            drawing.rect(x + index * width / steps, y, width / steps, 10, "accent", opacity=opacity)
        drawing.text(x - 8, y + 9, "0", size=11, anchor="end")
        drawing.text(x + width + 8, y + 9, f"{100 * self.top:.0f} %", size=11)
        drawing.text(x + width + 56, y + 9.5, caption, size=12)
        return y + 10

    def _chunk(self, drawing: Drawing, chunk: list[str], top: float) -> tuple[float, float]:
        pools = [self.found.pools[name] for name in chunk]
        y = top + 14
        x, keyed, places = self.left, 0, []
        for name, pool in zip(chunk, pools, strict=True):
            places.append(x)
            drawing.text(
                x, y, f"{name} pool" if name in ("normal", "abnormal") else name, size=14, fill="ink"
            )
            key = short_names(pool.experts, self._cell(pool) - 4)[1]
            lines = wrapped(key, 11, self._cell(pool) * len(pool.experts))
            for line, text in enumerate(lines):
                drawing.text(x, y + 17 + 15 * line, text, size=11)
            keyed = max(keyed, len(lines))
            x += self._cell(pool) * len(pool.experts) + _GAP
        y += 18 + 15 * keyed
        for layer in range(max(len(pool.layers) for pool in pools)):
            y = self._layer(drawing, chunk, places, layer, y)
        return y + 4, x - _GAP

    def _layer(
        self, drawing: Drawing, chunk: list[str], places: list[float], layer: int, top: float
    ) -> float:
        for name, x in zip(chunk, places, strict=True):
            pool = self.found.pools[name]
            if layer < len(pool.layers):
                cell = self._cell(pool)
                for index, label in enumerate(short_names(pool.experts, cell - 4)[0]):
                    if cell > 20 or index % 4 == 0:
                        drawing.text(x + (index + 0.5) * cell, top + 10, label, size=11, anchor="middle")
        pool = self.found.pools[chunk[0]]
        drawing.text(MARGIN, top + 10, pool.layers[min(layer, len(pool.layers) - 1)], size=13, fill="ink")
        y, before = top + 16, ""
        for dataset, group in self.rows:
            if before and dataset != before:
                y += 6
            self._row_label(drawing, dataset, group, y, first=dataset != before)
            for name, x in zip(chunk, places, strict=True):
                entry = self.by_key.get((dataset, group, name))
                if entry is not None and layer < len(entry.chosen):
                    self._cells(drawing, entry, layer, x, y)
            y, before = y + _ROW, dataset
        return y + 16

    def _row_label(self, drawing: Drawing, dataset: str, group: str, y: float, *, first: bool) -> None:
        if first:
            drawing.text(MARGIN, y + 14.5, shortened(dataset, 12, self.names), size=12, fill="ink")
        counts = [self.by_key.get((dataset, group, name)) for name in self.found.pools]
        count = max(entry.images for entry in counts if entry is not None)
        x = MARGIN + self.names + 14
        drawing.circle(x + 4, y + 10.5, 4, GROUP_COLOURS[group])
        drawing.text(x + 13, y + 14.5, group, size=12)
        drawing.text(self.left - 10, y + 14.5, f"{count:,}", size=12, anchor="end")

    def _cells(self, drawing: Drawing, entry: Usage, layer: int, x: float, y: float) -> None:
        pool = self.found.pools[entry.pool]
        cell, values = self._cell(pool), entry.share(self.kind)[layer]
        for index, value in enumerate(values):
            level = min(1.0, float(value) / self.top)
            said = f"{entry.dataset}, {entry.group}, {pool.layers[layer]}, {pool.experts[index]}: {100 * value:.1f} %"
            left = x + index * cell
            drawing.rect(left, y, cell, _ROW, "panel")
            drawing.rect(left + 1, y + 1, cell - 2, _ROW - 2, "accent", opacity=_opacity(level), title=said)
            if cell > 20:
                ink = "panel" if level > 0.64 else "ink"
                drawing.text(
                    left + cell / 2, y + 14.5, f"{100 * value:.0f}", size=11, fill=ink, anchor="middle"
                )


def _opacity(level: float) -> float:
    return 0.05 + 0.9 * level
