"""The figures of an explanation: activation, shares of pixels, experts in a plane, training curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from zsad.studies.explain.activation import activation_figure
from zsad.studies.explain.charts import (
    GROUP_COLOURS,
    MARGIN,
    POOL_COLOURS,
    WIDEST,
    Figure,
    legend,
    short_names,
    slug,
    titled,
    wrapped,
)
from zsad.studies.explain.collect import GROUPS, REGIONS, Pool, Usage
from zsad.studies.explain.curves import IMAGE_AUROC, Curve, RunCurves
from zsad.studies.explain.embeddings import ExpertMap
from zsad.studies.explain.explanation import Explanation
from zsad.studies.explain.patches import patch_figures
from zsad.studies.report.axes import Axis, ticks
from zsad.studies.report.canvas import Drawing, shortened, text_width


def all_figures(found: Explanation) -> Iterator[Figure]:
    """Every figure for which there are numbers."""
    kinds = found.settings["kinds"]
    if found.usage and "activation" in kinds:
        yield activation_figure(found, "chosen")
        yield activation_figure(found, "weight")
    if found.regions and "regions" in kinds:
        yield from _regions(found)
    yield from patch_figures(found)
    for index, maps in enumerate(found.maps):
        yield _experts(found, maps, index)
    if found.runs:
        yield _curves(found.runs)


def _regions(found: Explanation) -> Iterator[Figure]:
    for name, pool in found.pools.items():
        own = [entry for entry in found.regions if entry.pool == name]
        if own:
            rule = {
                "any": "with at least one marked pixel, all others are normal",
                "majority": "at least half of whose pixels are marked (of small defects the most covered patch); "
                "normal ones have no marked pixel",
            }[found.settings["rule"]]
            caption = (
                "Share of patches for which an expert is among the chosen; the line across a bar is its mean weight. "
                f"Anomalous are patches {rule}."
            )
            title = titled(found, "Experts on normal and on anomalous pixels", name)
            yield Figure(f"regions-{slug(name)}", title, caption, _region_sheet(name, pool, own))


def _region_sheet(name: str, pool: Pool, usage: Sequence[Usage]) -> Drawing:
    """Bars by data set and layer: data sets below each other, or side by side where there are few layers."""
    rows = _region_rows(usage)
    experts, layers = len(pool.experts), len(pool.layers)
    step = max(24.0, min(46.0, 260.0 / experts))
    width, height, left, gap = experts * step + 8, 104.0, MARGIN + 40, 24.0
    columns = max(1, min(layers, int((WIDEST - left + gap) // (width + gap))))
    block = max(columns * (width + gap), 340.0)  # a data set's own, with room for its title
    beside = max(1, min(len(rows), int((WIDEST - left) // block)))
    lines = math.ceil(layers / columns)
    shares = [entry.share("chosen") for _, pair in rows for entry in pair if entry and entry.count]
    top = max(0.05, max(float(share.max()) for share in shares))
    sheet = Drawing(left + beside * block - gap + MARGIN, 0, f"Bars of experts of the pool {name}")
    y = legend(sheet, [(REGIONS[0], "normal", False), (REGIONS[1], "anomalous", False)], MARGIN)
    labels, key = short_names(pool.experts, step - 2)
    for line in wrapped(key, 11, sheet.width - 2 * MARGIN):
        y += 16
        sheet.text(MARGIN + 9, y, line, size=11)
    for start in range(0, len(rows), beside):
        for place, (title, pair) in enumerate(rows[start : start + beside]):
            x = left + place * block
            _region_title(sheet, title, pair, MARGIN if place == 0 else x, y + 24)
            for layer in range(layers):
                row, column = divmod(layer, columns)
                across, down = x + column * (width + gap), y + 48 + row * (height + 44)
                sheet.text(across, down - 6, pool.layers[layer], size=12)
                axis = Axis(across, down, width, height, 0, experts, 0, top)
                axis.frame(sheet, labelled=place == column == 0, percent=True)
                _bars(sheet, axis, pair, layer, pool, labels, step)
        y += lines * (height + 44) + 24
    sheet.height = y + 6
    return sheet


def _region_rows(usage: Sequence[Usage]) -> list[tuple[str, list[Usage | None]]]:
    """For each data set, and for all together, the counts of normal and of anomalous pixels."""
    sets = list(dict.fromkeys(entry.dataset for entry in usage))
    rows: list[tuple[str, list[Usage | None]]] = []
    for dataset in sets:
        entries = {entry.group: entry for entry in usage if entry.dataset == dataset}
        rows.append((dataset, [entries.get(region) for region in REGIONS]))
    if len(sets) > 1:
        rows.append(("all data sets", [_summed(usage, region) for region in REGIONS]))
    return rows


def _region_title(sheet: Drawing, title: str, pair: Sequence[Usage | None], x: float, y: float) -> None:
    name = shortened(title, 13, 140)
    counts = [0 if entry is None else entry.count for entry in pair]
    sheet.text(x, y, name, size=13, fill="ink")
    said = f"{counts[0]:,} normal, {counts[1]:,} anomalous patches"
    sheet.text(x + text_width(name, 13) + 8, y, said, size=11)


def _summed(usage: Sequence[Usage], region: str) -> Usage | None:
    """The counts of all data sets together."""
    own = [entry for entry in usage if entry.group == region]
    if not own:
        return None
    return Usage(
        "all data sets",
        region,
        own[0].pool,
        own[0].unit,
        sum(entry.count for entry in own),
        sum(entry.images for entry in own),
        np.sum([entry.chosen for entry in own], axis=0),
        np.sum([entry.strongest for entry in own], axis=0),
        np.sum([entry.weight for entry in own], axis=0),
    )


def _bars(
    sheet: Drawing,
    axis: Axis,
    pair: Sequence[Usage | None],
    layer: int,
    pool: Pool,
    labels: Sequence[str],
    step: float,
) -> None:
    bar = (step - 6) / 2
    for index, label in enumerate(labels):
        start = axis.x + 4 + index * step
        sheet.text(start + step / 2, axis.bottom + 14, label, size=11, anchor="middle")
        for place, entry in enumerate(pair):
            if entry is None or not entry.count:
                continue
            value = float(entry.share("chosen")[layer, index])
            weight = float(entry.share("weight")[layer, index])
            x, y = start + 3 + place * bar, axis.place(0, value)[1]
            said = f"{pool.experts[index]}, {entry.group}: chosen {100 * value:.1f} %, weight {100 * weight:.1f} %"
            sheet.rect(x + 0.5, y, bar - 1, axis.bottom - y, GROUP_COLOURS[GROUPS[place]], title=said)
            mark = axis.place(0, weight)[1]
            sheet.line([(x + 0.5, mark), (x + bar - 0.5, mark)], "ink", width=1.6)


def _experts(found: Explanation, maps: Sequence[ExpertMap], index: int) -> Figure:
    side, gap = 250.0, 22.0
    columns = min(len(maps), 4)
    pools = list(maps[0].points)
    rows = math.ceil(len(maps) / columns)
    width = 2 * MARGIN + columns * (side + gap) - gap
    sheet = Drawing(width, 0, "Experts of the pools " + ", ".join(pools) + " in a plane, by layer")
    y = legend(sheet, [(name, POOL_COLOURS[i % 6], bool(i % 2)) for i, name in enumerate(pools)], MARGIN)
    for row in range(rows):
        for column, entry in enumerate(maps[row * columns : (row + 1) * columns]):
            _plane(sheet, entry, MARGIN + column * (side + gap), y + 26, side, found)
        y += side + 96
    sheet.height = y
    how = "two principal components" if found.projection == "pca" else "t-SNE"
    caption = (
        f"Each point is the direction of an expert's mean embedding ({how}, a plane for each layer). Mean cosines are "
        "taken in the full space: 0 for unrelated directions, 1 for equal ones."
    )
    name = "experts" if index == 0 else f"experts-{index + 1}"
    return Figure(name, "Where experts lie", caption, sheet)


def _plane(sheet: Drawing, entry: ExpertMap, x: float, y: float, side: float, found: Explanation) -> None:
    sheet.text(x, y - 8, entry.layer, size=13, fill="ink")
    every = np.concatenate(list(entry.points.values()))
    low, high = every.min(axis=0), every.max(axis=0)
    span = max(float((high - low).max()), 1e-9) * 1.16
    middle = (low + high) / 2
    sheet.rect(x, y, side, side, "faint", opacity=0.55)
    for axis in range(2):  # the mean of all experts
        place = float((0 - middle[axis]) / span + 0.5) * side
        if 0 < place < side:
            ends = (
                ((x + place, y), (x + place, y + side))
                if axis == 0
                else ((x, y + side - place), (x + side, y + side - place))
            )
            sheet.line(ends, "line")
    for index, (pool, points) in enumerate(entry.points.items()):
        known = found.pools.get(pool)
        for expert, (first, second) in enumerate(points):
            left = x + float((first - middle[0]) / span + 0.5) * side
            top = y + side - float((second - middle[1]) / span + 0.5) * side
            name = known.experts[expert] if known and len(known.experts) == len(points) else f"E{expert + 1}"
            _marker(sheet, left, top, index, str(expert + 1), f"{pool}: {name}")
    y += side + 17
    if entry.explained is not None:
        first, second = entry.explained
        sheet.text(x, y, f"{100 * (first + second):.0f} % of the variance in this plane", size=11.5)
        y += 15
    within = [f"{pool} {value + 0.0:.2f}" for pool, value in entry.cosine.items() if pool != "between"]
    sheet.text(x, y, shortened(f"mean cosine: {', '.join(within)}", 11.5, side + 16), size=11.5)
    if "between" in entry.cosine:
        sheet.text(x, y + 15, f"between pools {entry.cosine['between']:.2f}", size=11.5)


def _marker(sheet: Drawing, x: float, y: float, index: int, label: str, said: str) -> None:
    """A disc for even pools, a square for odd ones, with the expert's number."""
    colour = POOL_COLOURS[index % len(POOL_COLOURS)]
    if index % 2:
        sheet.rect(x - 9.5, y - 9.5, 19, 19, "panel")
        sheet.rect(x - 8.5, y - 8.5, 17, 17, colour, title=said)
    else:
        sheet.circle(x, y, 10.5, "panel")
        sheet.circle(x, y, 9.5, colour, title=said)
    sheet.text(x, y + 4, label, size=11, fill="panel", anchor="middle")


def _curves(runs: Sequence[RunCurves]) -> Figure:
    terms = list(dict.fromkeys(term for run in runs for term in run.curves))
    auxiliary = [term for term in terms if term not in ("classify", "focal", "dice", "total")]
    terms = auxiliary + [term for term in terms if term not in auxiliary]
    width, height, gap, left = 290.0, 150.0, 62.0, MARGIN + 44
    columns = min(3, len(terms))
    sheet = Drawing(left + columns * (width + gap) - gap + MARGIN, 0, "Loss terms over training steps")
    keys = [
        (f"{run.name} ({run.epochs} epochs, {run.steps:,} steps)", _run_colour(index), bool(index))
        for index, run in enumerate(runs)
    ]
    y = legend(sheet, keys, MARGIN, lines=True) + 8
    for start in range(0, len(terms), columns):
        for column, term in enumerate(terms[start : start + columns]):
            drawn = [(index, run.curves[term]) for index, run in enumerate(runs) if term in run.curves]
            _curve_panel(sheet, term, drawn, left + column * (width + gap), y + 26, width, height)
        y += height + 72
    sheet.height = y
    caption = (
        "Each point is a mean over equally many steps, the band its least and greatest value. Terms with a weight "
        "are drawn without it, so that runs with different weights compare."
    )
    if IMAGE_AUROC in terms:
        caption += (
            " Image AUROC is measured after every epoch, on data that the training does not learn from."
        )
    return Figure("curves", "How the loss terms went in training", caption, sheet)


def _run_colour(index: int) -> str:
    return POOL_COLOURS[index % len(POOL_COLOURS)]


def _curve_panel(
    sheet: Drawing,
    term: str,
    drawn: Sequence[tuple[int, Curve]],
    x: float,
    y: float,
    width: float,
    height: float,
) -> None:
    means = np.concatenate([curve.mean for _, curve in drawn])
    low, high = float(means.min()), float(means.max())
    low = 0.0 if 0 < low < 0.35 * high else low
    pad = 0.06 * max(high - low, 1e-3 * abs(high), 1e-9)
    axis = Axis(
        x, y, width, height, 0, max(curve.steps[-1] for _, curve in drawn), low - pad * (low != 0), high + pad
    )
    weights = dict.fromkeys(f"{curve.weight:g}" for _, curve in drawn if curve.weight is not None)
    told = f"weight {' and '.join(weights)}"
    sheet.text(x, y - 10, term, size=13, fill="ink")
    if weights:
        sheet.text(x + width, y - 10, told, size=11.5, anchor="end")
    axis.frame(sheet, labelled=True)
    for tick in ticks(axis.x0, axis.x1, most=5):
        sheet.text(axis.place(tick, axis.y0)[0], axis.bottom + 16, f"{tick:,.0f}", size=11, anchor="middle")
    sheet.text(x + width, axis.bottom + 32, "step", size=11, anchor="end")
    for index, curve in drawn:
        upper = [axis.place(*point) for point in zip(curve.steps, curve.high, strict=True)]
        lower = [axis.place(*point) for point in zip(curve.steps, curve.low, strict=True)]
        if len(upper) > 1:
            sheet.polygon([*upper, *lower[::-1]], _run_colour(index), opacity=0.16)
    for index, curve in drawn:
        points = [axis.place(*point) for point in zip(curve.steps, curve.mean, strict=True)]
        sheet.line(points, _run_colour(index), width=2, dashed=bool(index % 2))
