"""Bars of the experts chosen on normal and on anomalous pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from zsad.studies.explain.collect import REGIONS, Pool, Usage
from zsad.studies.explain.explanation import Explanation
from zsad.studies.explain.figure_parts import (
    GROUP_COLOURS,
    MAX_WIDTH,
    ExplanationFigure,
    short_names,
    slug,
    titled,
    wrapped,
)
from zsad.studies.report.drawing import (
    INK,
    MARGIN,
    Drawing,
    KeyEntry,
    draw_key,
    key_places,
    round_values,
    shortened,
    styled,
    text_width,
)

_RULES = {
    "any": "with at least one marked pixel, all others are normal",
    "majority": "at least half of whose pixels are marked (of small defects the most covered patch); "
    "normal ones have no marked pixel",
}
_HEIGHT, _LINE, _GAP = 104.0, 148.0, 24.0
_KEY = [
    KeyEntry(region, GROUP_COLOURS[group], "s")
    for region, group in zip(REGIONS, ("normal", "anomalous"), strict=True)
]
_ALL = "all data sets"

Pair = Sequence[Usage | None]  # of normal and of anomalous pixels


def region_figures(explanation: Explanation) -> Iterator[ExplanationFigure]:
    """Draw a figure for each pool that routes patches."""
    rule = _RULES[explanation.settings["rule"]]
    caption = (
        "Share of patches for which an expert is among the chosen; the line across a bar is its mean weight. "
        f"Anomalous are patches {rule}."
    )
    for name, pool in explanation.pools.items():
        usage = [entry for entry in explanation.regions if entry.pool == name]
        if usage:
            title = titled(explanation, "Experts on normal and on anomalous pixels", name)
            yield ExplanationFigure(f"regions-{slug(name)}", title, caption, _bars(name, pool, usage))


@styled
def _bars(name: str, pool: Pool, usage: Sequence[Usage]) -> Drawing:
    """Axes by data set and layer: data sets below each other, or side by side where there are few layers."""
    pairs = _pairs(usage)
    experts, layers = len(pool.experts), len(pool.layers)
    step = max(24.0, min(46.0, 260.0 / experts))
    width, left = experts * step + 8, MARGIN + 40
    columns = max(1, min(layers, int((MAX_WIDTH - left + _GAP) // (width + _GAP))))
    titles = max(
        text_width(_counts(pair), 11) + min(140.0, text_width(title, 13)) for title, pair in pairs.items()
    )
    block = max(columns * (width + _GAP), titles + 8 + _GAP)
    beside = max(1, min(len(pairs), int((MAX_WIDTH - left) // block)))
    lines = math.ceil(layers / columns)
    total = left + beside * block - _GAP + MARGIN
    labels, key = short_names(pool.experts, step - 2)
    key = wrapped(key, 11, total - 2 * MARGIN)
    top = key_places(_KEY, total)[1] + 16 * len(key)
    band = lines * _LINE + 24
    drawing = Drawing(
        total, top + math.ceil(len(pairs) / beside) * band + 6, f"Bars of experts of the pool {name}"
    )
    draw_key(drawing, _KEY)
    for number, line in enumerate(key):
        drawing.text(MARGIN + 9, key_places(_KEY, total)[1] + 16 * (number + 1), line, fontsize=11)
    shares = [entry.share("chosen") for pair in pairs.values() for entry in pair if entry and entry.count]
    highest = max(0.05, max(float(share.max()) for share in shares))
    for index, (title, pair) in enumerate(pairs.items()):
        x, y = left + index % beside * block, top + index // beside * band
        _draw_title(drawing, title, pair, MARGIN if index % beside == 0 else x, y + 24)
        for layer in range(layers):
            row, column = divmod(layer, columns)
            axes = drawing.axes(x + column * (width + _GAP), y + 48 + row * _LINE, width, _HEIGHT)
            axes.set_title(pool.layers[layer], fontsize=12, fontweight="normal", color=INK, pad=6)
            axes.set(xlim=(-4 / step, experts + 4 / step), ylim=(0, highest))
            axes.set_xticks(np.arange(experts) + 0.5, labels=labels)
            axes.set_yticks(round_values(0, highest))
            _draw_bars(drawing, axes, pair, layer, pool)
            axes.tick_params(labelleft=index % beside == column == 0)
    return drawing


def _pairs(usage: Sequence[Usage]) -> dict[str, Pair]:
    """For each data set, and for all together where there are several, the counts of normal and anomalous pixels."""
    pairs: dict[str, Pair] = {}
    for dataset in dict.fromkeys(entry.dataset for entry in usage):
        entries = {entry.group: entry for entry in usage if entry.dataset == dataset}
        pairs[dataset] = [entries.get(region) for region in REGIONS]
    if len(pairs) > 1:
        pairs[_ALL] = [_total([entry for entry in usage if entry.group == region]) for region in REGIONS]
    return pairs


def _total(usage: Sequence[Usage]) -> Usage | None:
    """The counts of all data sets together."""
    if not usage:
        return None
    first = usage[0]
    arrays = [
        np.sum([getattr(each, name) for each in usage], axis=0) for name in ("chosen", "strongest", "weight")
    ]
    count, images = (sum(getattr(each, name) for each in usage) for name in ("count", "images"))
    return Usage(_ALL, first.group, first.pool, first.unit, count, images, *arrays)


def _counts(pair: Pair) -> str:
    normal, anomalous = (0 if entry is None else entry.count for entry in pair)
    return f"{normal:,} normal, {anomalous:,} anomalous patches"


def _draw_title(drawing: Drawing, title: str, pair: Pair, x: float, y: float) -> None:
    name = shortened(title, 13, 140)
    drawing.text(x, y, name, fontsize=13, color=INK)
    drawing.text(x + text_width(name, 13) + 8, y, _counts(pair), fontsize=11)


def _draw_bars(drawing: Drawing, axes: Axes, pair: Pair, layer: int, pool: Pool) -> None:
    """Two bars for each expert, with a line across each at its mean weight."""
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    for place, entry in enumerate(pair):
        if entry is None or not entry.count:
            continue
        left = np.arange(len(pool.experts)) + 0.08 + 0.43 * place
        chosen, weight = entry.share("chosen")[layer], entry.share("weight")[layer]
        bars = axes.bar(left, chosen, 0.41, align="edge", color=_KEY[place].colour)
        axes.hlines(weight, left, left + 0.41, color=INK, linewidth=1.6)
        for bar, name, share, mean in zip(bars, pool.experts, chosen, weight, strict=True):
            drawing.tip(bar, f"{name}, {entry.group}: chosen {100 * share:.1f} %, weight {100 * mean:.1f} %")
