"""Charts of the methods of a benchmark: over data sets (as PromptMoE's figure 2), and quality over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.markers import MarkerStyle
from matplotlib.patches import PathPatch
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Affine2D, Bbox

from zsad.studies.benchmark.summary import OVERALL, Summary, TableEntry
from zsad.studies.report.drawing import (
    COLOURS,
    INK,
    PANEL,
    SOFT,
    Drawing,
    KeyEntry,
    draw_key,
    key_places,
    round_values,
    shortened,
    styled,
    text_width,
)
from zsad.studies.report.result_tables import MEAN, entry_text

SERIES = tuple(COLOURS[f"series{number}"] for number in range(1, 11))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">")
_MARKER_SIZES = {"s": 6.5, "D": 6.2, "o": 7.5}  # of equal weight to the eye; 9 for all others
RADAR_METRICS = ("image_auroc", "pixel_pro")  # left and right in PromptMoE's figure 2
CHART_WIDTH = 560.0
MIN_SPOKES = 3
_MAX_NAMED = 12  # points with their names beside them; more have a key below


@dataclass(frozen=True, slots=True)
class Style:
    """A method's colour and marker in all charts; dashed where the colours come round again."""

    colour: str
    marker: str
    dashed: bool = False

    def line(self, *, width: float = 2.0) -> dict[str, Any]:
        """Return matplotlib's options for its line."""
        return {"color": self.colour, "linewidth": width, "linestyle": (0, (4, 2)) if self.dashed else "-"}


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return a style for each method, in their order."""
    count = len(SERIES)
    return {
        name: Style(SERIES[index % count], MARKERS[(index + index // count) % count], index >= count)
        for index, name in enumerate(names)
    }


@styled
def swatch(style: Style) -> Drawing:
    """Return a short line with a method's marker, for the keys of a page."""
    drawing = Drawing(26, 12, "")
    drawing.line((1, 25), (6, 6), **style.line())
    marker = MarkerStyle(style.marker)
    place = marker.get_transform() + Affine2D().scale(9, -9).translate(13, 6)
    path = marker.get_path().transformed(place)
    drawing.sheet.add_patch(PathPatch(path, facecolor=style.colour, linewidth=0, clip_on=False))
    return drawing


@styled
def methods_over_sets(summary: Summary, metric: str) -> Drawing | None:
    """Draw the methods over the data sets: a radar, or dots where there are fewer than three; None if undefined."""
    targets = [t for t in summary.targets if any(summary.by_class(n, t, metric) for n in summary.names)]
    if not targets:
        return None
    values = "; ".join(
        f"{name}: " + ", ".join(f"{t} {summary.entry(name, t, metric).percent()}" for t in targets)
        for name in summary.names
    )
    if len(targets) >= MIN_SPOKES:
        title = f"Radar chart of {summary.titles[metric]} in percent. {values}"
        drawing = Drawing(CHART_WIDTH, CHART_WIDTH - 90, title)
        draw_radar(drawing, summary, metric, targets, (0, 0, CHART_WIDTH, CHART_WIDTH - 90))
        return drawing
    rows = sum(24 + 18 * len(summary.names) for _ in targets)
    drawing = Drawing(CHART_WIDTH, 40 + rows, f"Chart of {summary.titles[metric]} in percent. {values}")
    _draw_dots(drawing, summary, metric, targets)
    return drawing


def _floor(entries: Sequence[TableEntry], *, intervals: bool = False) -> float:
    """A round value below all others, where a scale up to 1 begins."""
    lowest = min(
        entry.interval.low if intervals and entry.interval else entry.spread.mean
        for entry in entries
        if not entry.hole
    )
    return max(0.0, math.floor((lowest - 0.06) * 10) / 10)


def draw_radar(
    drawing: Drawing,
    summary: Summary,
    metric: str,
    targets: Sequence[str],
    box: tuple[float, float, float, float],
) -> None:
    """Draw a radar into a box (x, y, width, height): a spoke for each data set, all on one scale up to 100 %.

    What is missing is a gap in the line, data seen in training a hollow marker.
    """
    entries = {name: [summary.entry(name, target, metric) for target in targets] for name in summary.names}
    floor = _floor([entry for row in entries.values() for entry in row])
    angles = [2 * math.pi * index / len(targets) for index in range(len(targets))]
    radius = box[3] / 2 - 40
    for target, angle in zip(targets, angles, strict=True):
        room = box[2] / 2 - 20 - min(text_width(target, 13, bold=True), 130.0)
        radius = min(radius, room / max(abs(math.sin(angle)), 0.2) - 12)
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    axes = drawing.axes(x - radius, y - radius, 2 * radius, 2 * radius, projection="polar")
    assert isinstance(axes, PolarAxes)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    _draw_web(axes, targets, angles, floor=floor, radius=radius, half=box[2] / 2 - 8)
    for name, style in styles(summary.names).items():
        values = [math.nan if entry.hole else entry.spread.mean for entry in entries[name]]
        closed = [*angles, angles[0]], [*values, values[0]]
        axes.plot(*closed, clip_on=False, label=name, **style.line())
        if not any(entry.hole for entry in entries[name]):
            axes.fill(*closed, color=style.colour, alpha=0.05, linewidth=0)
        for angle, entry, target in zip(angles, entries[name], targets, strict=True):
            _draw_marker(drawing, axes, angle, style, entry, f"{name}, {target}")


def _draw_web(
    axes: PolarAxes,
    targets: Sequence[str],
    angles: Sequence[float],
    *,
    floor: float,
    radius: float,
    half: float,
) -> None:
    """Rings with their values, spokes, and the names of the data sets around them."""
    rings = [value for value in round_values(floor, 1.0, most=6) if value > floor + 1e-9]
    axes.set(ylim=(floor, 1.0), xticks=angles, yticks=rings, xticklabels=[], yticklabels=[])
    axes.spines["polar"].set(color=SOFT, linewidth=1)
    for target, angle in zip(targets, angles, strict=True):
        across, up = math.sin(angle), math.cos(angle)
        side = "center" if abs(across) < 0.2 else "left" if across > 0 else "right"
        free = 2 * half if side == "center" else half - (radius + 12) * abs(across)
        axes.annotate(
            shortened(target, 13, max(40.0, free), bold=True),
            (angle, 1.0),
            xytext=(12 * across, 15 * up),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=13,
            fontweight="bold",
        )
    for ring in [floor, *rings]:
        if ring > floor or rings[0] - floor > 0.08 * (1 - floor):
            axes.annotate(
                f"{100 * ring:.3g}",
                (0.0, ring),
                xytext=(-9, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=11,
                color=SOFT,
                zorder=5,
                bbox={"facecolor": PANEL, "alpha": 0.82, "linewidth": 0, "pad": 0.5},
            )


def _draw_marker(
    drawing: Drawing,
    axes: Axes,
    x: float,
    style: Style,
    entry: TableEntry,
    title: str,
    *,
    y: float | None = None,
) -> None:
    """A method's marker at its value along `x`, or at `y`; hollow where the data were seen in training."""
    if entry.hole:
        return
    place = ([x], [entry.spread.mean if y is None else y])
    (marker,) = axes.plot(
        *place,
        style.marker,
        color=style.colour,
        markersize=_MARKER_SIZES.get(style.marker, 9.0),
        markerfacecolor=PANEL if entry.seen else style.colour,
        markeredgecolor=style.colour if entry.seen else PANEL,
        markeredgewidth=1.8 if entry.seen else 0.5,
        clip_on=False,
        zorder=4,
    )
    drawing.tip(marker, f"{title}: {_with_interval(entry)}")


def _with_interval(entry: TableEntry) -> str:
    interval = entry.interval
    between = f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})" if interval else ""
    return entry_text(entry) + between + (", seen in training" if entry.seen else "")


def _draw_dots(drawing: Drawing, summary: Summary, metric: str, targets: Sequence[str]) -> None:
    """A row for each method within each data set: a marker, and a line over its interval."""
    entries = [summary.entry(name, target, metric) for target in targets for name in summary.names]
    left = 28 + min(160.0, max(text_width(name, 12) for name in summary.names))
    axes = drawing.axes(left, 8, CHART_WIDTH - left - 30, drawing.height - 32)
    floor = _floor(entries, intervals=True)
    axes.set(xlim=(floor, 1.0), ylim=(drawing.height - 32, 0), xticks=round_values(floor, 1.0, most=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["bottom"].set_visible(False)
    y = 8.0
    for target in targets:
        drawing.text(16, y + 17, target, fontsize=13, fontweight="bold", color=INK)
        y += 24
        for name, style in styles(summary.names).items():
            entry = summary.entry(name, target, metric)
            drawing.text(left - 12, y + 12, shortened(name, 12, left - 28), ha="right")
            if entry.interval is not None:
                ends = (entry.interval.low, entry.interval.high)
                axes.plot(ends, (y, y), color=style.colour, linewidth=2)
            if not entry.hole:
                _draw_marker(drawing, axes, entry.spread.mean, style, entry, f"{name}, {target}", y=y)
            y += 18


def mean_of_cells(summary: Summary, name: str, field: str) -> float | None:
    """Return the mean of a field over the finished cells of a method that have it; None where none has."""
    cells = [cell for target in summary.targets for cell in summary.finished(name, target).values()]
    values = [value for cell in cells if (value := getattr(cell, field)) is not None]
    return math.fsum(values) / len(values) if values else None


@styled
def quality_over_time(summary: Summary, metric: str) -> Drawing | None:
    """Draw quality over the time for an image; None where fewer than two methods have both."""
    target = OVERALL if len(summary.targets) > 1 else summary.targets[0]
    measured = {
        name: (1000 * seconds, entry)
        for name in summary.names
        if (seconds := mean_of_cells(summary, name, "seconds_per_image"))
        and not (entry := summary.entry(name, target, metric)).hole
    }
    if len(measured) < 2:
        return None
    values = "; ".join(f"{name}: {ms:.3g} ms, {entry_text(entry)}" for name, (ms, entry) in measured.items())
    height, below, names = 330, 0.0, summary.names
    if len(measured) > _MAX_NAMED:
        below = key_places(method_key(names), CHART_WIDTH)[1] + 8
    title = f"{summary.titles[metric]} over milliseconds for an image. {values}"
    drawing = Drawing(CHART_WIDTH, height + below, title)
    axes = drawing.axes(52, 34, CHART_WIDTH - 80, height - 84)
    times = [ms for ms, _ in measured.values()]
    low, high = min(times) / 1.4, max(times) * 2
    floor = _floor([entry for _, entry in measured.values()])
    axes.set(xscale="log", xlim=(low, high), ylim=(floor, 1.0), yticks=round_values(floor, 1.0))
    steps = [factor * 10.0**power for power in range(-3, 7) for factor in (1, 2, 5)]
    axes.xaxis.set_major_locator(FixedLocator([step for step in steps if low <= step <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
    axes.set_xlabel("milliseconds for an image", loc="right")
    drawing.text(12, 18, f"{summary.titles[metric]}, %" + (f", {MEAN}" if target == OVERALL else ""))
    for name, style in styles(names).items():
        if name in measured:
            ms, entry = measured[name]
            _draw_marker(drawing, axes, ms, style, entry, f"{name}: {ms:.3g} ms")
    if below:
        draw_key(drawing, method_key(names), top=height)
    else:
        _name_points(drawing, axes, {name: (ms, entry.spread.mean) for name, (ms, entry) in measured.items()})
    return drawing


def _name_points(drawing: Drawing, axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Names beside points, where they cover neither points nor each other; a thin line leads to one farther away."""
    places = {name: axes.transData.transform(point) for name, point in points.items()}
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in places.values()]
    directions = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]
    for name, (x, y) in sorted(places.items(), key=lambda item: -float(item[1][1])):
        wide = text_width(name, 12)
        for distance, (across, up) in (
            (d, each) for d in (12, 20, *range(32, 320, 12)) for each in directions
        ):
            anchor = (x + across * distance, y + up * distance)
            left = anchor[0] - (1 - across) / 2 * wide
            label = Bbox.from_bounds(left, anchor[1] - 6.5, wide, 13)
            inside = left > 4 and left + wide < drawing.width - 4 and 52 < label.y0 < drawing.height - 40
            if inside and not any(label.overlaps(other) for other in taken):
                break
        taken.append(label)
        if distance > 20:
            ends = (x + across * 7, anchor[0]), (y + up * 7, anchor[1])
            drawing.line(
                ends[0], tuple(drawing.height - value for value in ends[1]), color=SOFT, linewidth=0.7
            )
        drawing.text(left, drawing.height - anchor[1] + 4.5, name, color=INK)


def method_key(names: Sequence[str]) -> list[KeyEntry]:
    """Return the key of the methods' lines and markers."""
    return [
        KeyEntry(name, style.colour, style.marker, style.line()["linestyle"])
        for name, style in styles(names).items()
    ]
