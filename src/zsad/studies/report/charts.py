"""The drawings of a benchmark: methods over data sets (as PromptMoE's figure 2), cost and quality, the overview."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zsad.metrics.table import COLUMNS
from zsad.studies.benchmark.summary import OVERALL, Summary, TableEntry
from zsad.studies.report.axes import ticks
from zsad.studies.report.canvas import Anchor, Drawing, Point, shortened, text_width
from zsad.studies.report.text import MEAN, text_of

SERIES = tuple(f"series{number}" for number in range(1, 11))
RADAR_METRICS = ("image_auroc", "pixel_pro")  # left and right in PromptMoE's figure 2
RADAR_SIDE = 560.0
_LEAST_AXES = 3
_MARGIN = 18.0

Place = Callable[[float, float], Point]
Corners = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Style:
    """How a method is drawn everywhere: a colour, dashed where the colours come round again."""

    colour: str
    dashed: bool = False


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each method, in their order."""
    return {
        name: Style(SERIES[index % len(SERIES)], index >= len(SERIES)) for index, name in enumerate(names)
    }


def over_sets(summary: Summary, metric: str) -> Drawing | None:
    """The methods over the data sets: as a radar, or as dots where there are fewer than three; None if undefined."""
    targets = [t for t in summary.targets if any(summary.by_class(n, t, metric) for n in summary.names)]
    if not targets:
        return None
    told = "; ".join(
        f"{name}: " + ", ".join(f"{t} {summary.entry(name, t, metric).percent()}" for t in targets)
        for name in summary.names
    )
    kind = "Radar chart" if len(targets) >= _LEAST_AXES else "Chart"
    title = f"{kind} of {COLUMNS[metric]} in percent. {told}"
    if len(targets) >= _LEAST_AXES:
        sheet = Drawing(RADAR_SIDE, RADAR_SIDE - 90, title)
        paint_radar(sheet, summary, metric, targets, Box(0, 0, RADAR_SIDE, RADAR_SIDE - 90))
    else:
        sheet = Drawing(RADAR_SIDE, 46 + len(targets) * (20 + 15 * len(summary.names)), title)
        _paint_dots(sheet, summary, metric, targets)
    return sheet


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a sheet, in CSS pixels."""

    x: float
    y: float
    width: float
    height: float


def _floor(entries: Sequence[TableEntry], *, intervals: bool = False) -> float:
    """A round value below all others, where a scale up to 1 begins."""
    known = [entry for entry in entries if not entry.hole]
    lowest = min(entry.interval.low if intervals and entry.interval else entry.spread.mean for entry in known)
    return max(0.0, math.floor((lowest - 0.06) * 10) / 10)


def paint_radar(sheet: Drawing, summary: Summary, metric: str, targets: Sequence[str], box: Box) -> None:
    """Paints a radar into a box: an axis for each data set, all on one scale up to 100 %.

    What is missing is a gap in the line, data seen in training a hollow point.
    """
    entries = {name: [summary.entry(name, target, metric) for target in targets] for name in summary.names}
    floor = _floor([entry for row in entries.values() for entry in row])
    names = max(text_width(target, 13) for target in targets)
    radius = min(box.height / 2 - 40, box.width / 2 - 22 - min(names, 130.0))
    centre = (box.x + box.width / 2, box.y + box.height / 2)
    angles = [2 * math.pi * index / len(targets) - math.pi / 2 for index in range(len(targets))]

    def place(angle: float, value: float) -> Point:
        reach = radius * max(0.0, (value - floor) / (1 - floor))
        return centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle)

    _paint_web(sheet, targets, angles, place, floor=floor, room=box.width / 2 - 8)
    for name, style in styles(summary.names).items():
        _paint_line(sheet, name, style, entries[name], [*zip(targets, angles, strict=True)], place)
    _paint_scale(sheet, angles[0], place, floor=floor)


def _paint_web(
    sheet: Drawing,
    targets: Sequence[str],
    angles: Sequence[float],
    place: Place,
    *,
    floor: float,
    room: float,
) -> None:
    """Rings with their values, spokes, and the names of the data sets around them."""
    rings = [value for value in ticks(floor, 1.0, most=6) if value > floor + 1e-9]
    for ring in rings:
        points = [place(angle, ring) for angle in angles]
        last = ring == rings[-1]
        sheet.line([*points, points[0]], "soft" if last else "line", width=1)
    centre = place(0, floor)
    for target, angle in zip(targets, angles, strict=True):
        sheet.line([centre, place(angle, 1.0)], "line")
        x, y = place(angle, 1.0)
        x, y = x + 12 * math.cos(angle), y + 12 * math.sin(angle)
        across = math.cos(angle)
        anchor: Anchor = "middle" if abs(across) < 0.2 else "start" if across > 0 else "end"
        free = room - abs(x - centre[0]) if anchor != "middle" else 2 * room
        drop = 4 if abs(across) >= 0.2 else (-2 if math.sin(angle) < 0 else 12)
        sheet.text(
            x, y + drop, shortened(target, 13, max(40.0, free)), size=13, fill="ink", anchor=anchor, bold=True
        )


def _paint_scale(sheet: Drawing, angle: float, place: Place, *, floor: float) -> None:
    """The values of the rings, on top of the lines."""
    rings = [value for value in ticks(floor, 1.0, most=6) if value > floor + 1e-9]
    for ring in [floor, *rings]:
        text = f"{100 * ring:.3g}"
        wide = text_width(text, 10)
        x, y = place(angle, ring)
        if ring == floor and math.dist((x, y), place(angle, rings[0])) < 16:
            continue
        sheet.rect(x - 9 - wide, y - 6.5, wide + 4, 13, "panel", opacity=0.82)
        sheet.text(x - 7, y + 3.5, text, size=10, anchor="end")


def _paint_line(
    sheet: Drawing,
    name: str,
    style: Style,
    entries: Sequence[TableEntry],
    axes: Sequence[tuple[str, float]],
    place: Place,
) -> None:
    points = [
        None if entry.hole else place(angle, entry.spread.mean)
        for entry, (_, angle) in zip(entries, axes, strict=True)
    ]
    if None not in points:
        sheet.polygon([point for point in points if point is not None], style.colour, opacity=0.05)
    for start, stop in zip(points, [*points[1:], points[0]], strict=True):
        if start is not None and stop is not None:
            sheet.line([start, stop], style.colour, width=2, dashed=style.dashed)
    for point, entry, (target, _) in zip(points, entries, axes, strict=True):
        if point is not None:
            _paint_point(sheet, point, style, entry, f"{name}, {target}: {_told(entry)}")


def _paint_point(sheet: Drawing, point: Point, style: Style, entry: TableEntry, title: str) -> None:
    sheet.circle(point[0], point[1], 4, style.colour, title=title)
    if entry.seen:
        sheet.circle(point[0], point[1], 2.3, "panel", title=title)


def _told(entry: TableEntry) -> str:
    """An entry with its interval."""
    interval = entry.interval
    between = f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})" if interval else ""
    return text_of(entry) + between + (", seen in training" if entry.seen else "")


def _paint_dots(sheet: Drawing, summary: Summary, metric: str, targets: Sequence[str]) -> None:
    """A row for each method within each data set: a dot, and a line over its interval."""
    entries = [summary.entry(name, target, metric) for target in targets for name in summary.names]
    floor = _floor(entries, intervals=True)
    left = 24 + min(160.0, max(text_width(name, 12) for name in summary.names))
    right = sheet.width - 30

    def across(value: float) -> float:
        return left + (right - left) * min(max((value - floor) / (1 - floor), 0.0), 1.0)

    bottom = sheet.height - 24
    for tick in ticks(floor, 1.0, most=6):
        sheet.line([(across(tick), 8), (across(tick), bottom)], "line")
        sheet.text(across(tick), bottom + 16, f"{100 * tick:.3g}", size=11, anchor="middle")
    y = 10.0
    for target in targets:
        sheet.text(_MARGIN, y + 12, target, size=13, fill="ink", bold=True)
        y += 20
        for name, style in styles(summary.names).items():
            entry = summary.entry(name, target, metric)
            sheet.text(left - 8, y + 11, shortened(name, 12, left - 24), size=12, anchor="end")
            if not entry.hole:
                if entry.interval is not None:
                    ends = [(across(value), y + 7) for value in (entry.interval.low, entry.interval.high)]
                    sheet.line(ends, style.colour, width=2)
                middle = (across(entry.spread.mean), y + 7)
                _paint_point(sheet, middle, style, entry, f"{name}, {target}: {_told(entry)}")
            y += 15


def seconds_per_image(summary: Summary, name: str) -> float | None:
    """Mean time of a method for an image, over the cells in which it was measured."""
    return _mean_of(summary, name, "seconds_per_image")


def _mean_of(summary: Summary, name: str, field: str) -> float | None:
    cells = [cell for target in summary.targets for cell in summary.finished(name, target).values()]
    values = [value for cell in cells if (value := getattr(cell, field)) is not None]
    return math.fsum(values) / len(values) if values else None


def costs(summary: Summary) -> list[dict[str, float | str | None]]:
    """Seconds for an image and for a training, and the peak of memory, by method."""
    rows: list[dict[str, float | str | None]] = []
    for name in summary.names:
        cells = [cell for target in summary.targets for cell in summary.finished(name, target).values()]
        peaks = [cell.peak_memory_mb for cell in cells if cell.peak_memory_mb is not None]
        rows.append(
            {
                "name": name,
                "image": seconds_per_image(summary, name),
                "training": _mean_of(summary, name, "seconds_training"),
                "memory": max(peaks, default=None),
            }
        )
    return rows


def trade_off(summary: Summary, metric: str) -> Drawing | None:
    """Quality over the time for an image; None where fewer than two methods have both."""
    target = OVERALL if len(summary.targets) > 1 else summary.targets[0]
    found = {
        name: (1000 * seconds, entry)
        for name in summary.names
        if (seconds := seconds_per_image(summary, name))
        and not (entry := summary.entry(name, target, metric)).hole
    }
    if len(found) < 2:
        return None
    told = "; ".join(f"{name}: {ms:.3g} ms, {text_of(entry)}" for name, (ms, entry) in found.items())
    sheet = Drawing(RADAR_SIDE, 330, f"{COLUMNS[metric]} over milliseconds for an image. {told}")
    box = Box(52, 34, RADAR_SIDE - 80, 246)
    low, high = (
        math.log10(side) for side in (min(v[0] for v in found.values()), max(v[0] for v in found.values()))
    )
    low, high = low - 0.15, high + 0.3
    floor = _floor([entry for _, entry in found.values()])

    def place(ms: float, value: float) -> Point:
        across, up = (math.log10(ms) - low) / (high - low), (value - floor) / (1 - floor)
        return box.x + across * box.width, box.y + box.height * (1 - up)

    sheet.text(box.x - 40, 16, f"{COLUMNS[metric]}, %" + (f", {MEAN}" if target == OVERALL else ""), size=12)
    for tick in ticks(floor, 1.0, most=5):
        y = place(10**low, tick)[1]
        sheet.line([(box.x, y), (box.x + box.width, y)], "line")
        sheet.text(box.x - 6, y + 4, f"{100 * tick:.3g}", size=11, anchor="end")
    for tick in _log_ticks(low, high):
        x = place(tick, floor)[0]
        sheet.line([(x, box.y), (x, box.y + box.height)], "line")
        sheet.text(x, box.y + box.height + 16, f"{tick:g}", size=11, anchor="middle")
    sheet.text(box.x + box.width, box.y + box.height + 34, "milliseconds for an image", size=12, anchor="end")
    _paint_named(sheet, found, styles(summary.names), place)
    return sheet


def _log_ticks(low: float, high: float) -> list[float]:
    values = [factor * 10.0**power for power in range(-3, 7) for factor in (1, 2, 5)]
    return [value for value in values if low <= math.log10(value) <= high]


def _paint_named(
    sheet: Drawing, found: dict[str, tuple[float, TableEntry]], own: dict[str, Style], place: Place
) -> None:
    """Points with their names beside them, on the side where there is room."""
    points = {name: place(ms, entry.spread.mean) for name, (ms, entry) in found.items()}
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in points.values()]
    for name, (x, y) in points.items():
        sheet.circle(
            x, y, 6, own[name].colour, title=f"{name}: {found[name][0]:.3g} ms, {_told(found[name][1])}"
        )
    for name, (x, y) in points.items():
        wide = text_width(name, 12)
        sides: tuple[tuple[float, float, Anchor, float], ...] = (
            (x + 11, y + 4, "start", x + 11),
            (x - 11, y + 4, "end", x - 11 - wide),
            (x, y - 11, "middle", x - wide / 2),
            (x, y + 20, "middle", x - wide / 2),
        )
        free = [
            side
            for side in sides
            if _free((side[3], side[1] - 11, side[3] + wide, side[1] + 3), taken, sheet)
        ]
        across, line, anchor, left = (free or sides)[0]
        taken.append((left, line - 11, left + wide, line + 3))
        sheet.text(across, line, name, size=12, fill="ink", anchor=anchor)


def _free(box: Corners, taken: Sequence[Corners], sheet: Drawing) -> bool:
    """Whether a box lies on the sheet and on none of the others."""
    left, top, right, bottom = box
    inside = left > 0 and right < sheet.width
    return inside and all(left >= r or right <= x or top >= b or bottom <= y for x, y, r, b in taken)


def paint_legend(sheet: Drawing, names: Sequence[str], box: Box) -> float:
    """A row of keys, wrapped within the box; returns where it ends."""
    x, y = box.x, box.y
    for name, style in styles(names).items():
        needed = 30 + text_width(name, 13)
        if x + needed > box.x + box.width and x > box.x:
            x, y = box.x, y + 22
        sheet.line([(x, y - 4), (x + 20, y - 4)], style.colour, width=3, dashed=style.dashed)
        sheet.circle(x + 10, y - 4, 4.5, style.colour)
        sheet.text(x + 27, y, name, size=13, fill="ink")
        x += needed + 20
    return y + 14
