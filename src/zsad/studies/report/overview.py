"""A benchmark in one drawing, for a page of documentation: the means of all methods, and the radars."""

from __future__ import annotations

from zsad.studies.benchmark.summary import OVERALL, Summary
from zsad.studies.report.drawing import (
    ACCENT,
    INK,
    SOFT,
    Drawing,
    draw_key,
    key_places,
    shortened,
    styled,
    text_width,
)
from zsad.studies.report.method_charts import (
    MIN_SPOKES,
    RADAR_METRICS,
    draw_radar,
    method_key,
    styles,
)
from zsad.studies.report.result_tables import MEAN, plural

_WIDTH, _ROW, _MARGIN = 1160.0, 30.0, 24.0
_RADAR = 470.0


@styled
def overview(summary: Summary, *, title: str = "zsad benchmark") -> Drawing:
    """Draw the table of means and, where there are three data sets or more, the radars below it."""
    radars = {metric: _measured(summary, metric) for metric in RADAR_METRICS}
    radars = {metric: targets for metric, targets in radars.items() if len(targets) >= MIN_SPOKES}
    table = 140 + _ROW * len(summary.names)
    room = _WIDTH - 2 * _MARGIN
    key = key_places(method_key(summary.names), _WIDTH)[1] + 12 if radars else 0
    height = table + (_RADAR + 24 + key if radars else 40)
    description = f"{title}: {', '.join(summary.names)} on {', '.join(summary.targets)}"
    drawing = Drawing(_WIDTH, height, description)
    drawing.text(
        _MARGIN, 40, shortened(title, 24, room, bold=True), fontsize=24, fontweight="bold", color=INK
    )
    drawing.text(_MARGIN, 64, _subtitle(summary), fontsize=13)
    _draw_table(drawing, summary, 96)
    half = _WIDTH / 2
    for index, (metric, targets) in enumerate(radars.items()):
        x = half * index if len(radars) > 1 else half / 2
        heading = {"fontsize": 15, "fontweight": "bold", "color": INK, "ha": "center"}
        drawing.text(x + half / 2, table + 22, summary.titles[metric], **heading)
        draw_radar(drawing, summary, metric, targets, (x, table + 24, half, _RADAR))
    if radars:
        draw_key(drawing, method_key(summary.names), top=height - key)
    return drawing


def _subtitle(summary: Summary) -> str:
    many = len(summary.targets) > 1
    classes = sum(len(summary.classes(target)) for target in summary.targets)
    about = f"{MEAN}, in percent" if many else f"{summary.targets[0]}, in percent" if summary.targets else ""
    counted = (f"{len(summary.targets)} data sets, " if many else "") + plural(classes, "class", "classes")
    several = any(len(summary.finished(name, t)) > 1 for name in summary.names for t in summary.targets)
    return " · ".join([about, counted, *(["± deviation over seeds"] if several else [])])


def _measured(summary: Summary, metric: str) -> list[str]:
    return [t for t in summary.targets if any(summary.by_class(name, t, metric) for name in summary.names)]


def _draw_table(drawing: Drawing, summary: Summary, top: float) -> None:
    """A row for each method; what may be in bold face lies on a band of its own."""
    target = OVERALL if len(summary.targets) > 1 else next(iter(summary.targets), OVERALL)
    widest = max((text_width(name, 14) for name in summary.names), default=0.0)
    left = _MARGIN + 38 + min(260.0, widest)
    step = (_WIDTH - _MARGIN - left) / max(1, len(summary.metrics))
    for index, metric in enumerate(summary.metrics):
        drawing.text(left + (index + 1) * step - 12, top, summary.titles[metric], fontsize=13, ha="right")
    edges = (_MARGIN, _WIDTH - _MARGIN)
    drawing.line(edges, (top + 10, top + 10), color=SOFT)
    for row, (name, style) in enumerate(styles(summary.names).items()):
        y = top + 10 + _ROW * (row + 1)
        place = (_MARGIN + 10, _MARGIN + 10), (y - 14, y - 14)
        drawing.line(*place, color=style.colour, marker=style.marker, markersize=9)
        drawing.text(_MARGIN + 28, y - 9, shortened(name, 14, left - _MARGIN - 32), fontsize=14, color=INK)
        for index, metric in enumerate(summary.metrics):
            _draw_value(drawing, summary, (name, target, metric), left + (index + 1) * step - 12, y, step)
        drawing.line(edges, (y, y))
    entries = [summary.entry(name, target, metric) for name in summary.names for metric in summary.metrics]
    notes = []
    if any(entry.bold for entry in entries):
        notes.append("marked: best, or not significantly worse")
    if any(entry.marks for entry in entries):
        notes.append("* over fewer data sets than the others")
    foot = top + 28 + _ROW * len(summary.names)
    drawing.text(_WIDTH - _MARGIN, foot, "  ·  ".join(notes), fontsize=11.5, ha="right")


def _draw_value(
    drawing: Drawing, summary: Summary, key: tuple[str, str, str], right: float, y: float, step: float
) -> None:
    """A value with its deviation, its base line 9 pixels above `y`."""
    entry = summary.entry(*key)
    deviation = entry.deviation()
    spread = (f" ± {deviation}" if deviation else "") + ("*" if entry.marks else "")
    if entry.bold:
        drawing.rectangle(right - step + 22, y - _ROW + 3, step - 14, _ROW - 6, facecolor=ACCENT, alpha=0.1)
    drawing.text(right, y - 9, spread, fontsize=11, ha="right")
    number = "-" if entry.hole else entry.percent()
    drawing.text(
        right - (text_width(spread, 11) if spread else 0),
        y - 9,
        number,
        fontsize=14,
        color=SOFT if entry.hole else INK,
        ha="right",
        fontweight="bold" if entry.bold else "normal",
    )
