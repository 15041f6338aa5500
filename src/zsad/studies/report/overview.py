"""A benchmark in one picture, for a page of documentation: the means of all methods, and the radars."""

from __future__ import annotations

from zsad.metrics.table import COLUMNS
from zsad.studies.benchmark.summary import OVERALL, Summary
from zsad.studies.report.canvas import Drawing, shortened, text_width
from zsad.studies.report.charts import RADAR_METRICS, Box, paint_legend, paint_radar, styles
from zsad.studies.report.text import MEAN, plural

_WIDTH, _ROW, _MARGIN = 1160.0, 30.0, 24.0
_LEAST_AXES = 3


def overview(summary: Summary, *, title: str = "zsad benchmark") -> Drawing:
    """The table of means and, where there are three data sets or more, the radars below it."""
    radars = [
        (metric, targets)
        for metric in RADAR_METRICS
        if len(targets := _measured(summary, metric)) >= _LEAST_AXES
    ]
    table = 140 + _ROW * len(summary.names)
    height = table + (560 if radars else 40)
    told = f"{title}: {', '.join(summary.names)} on {', '.join(summary.targets)}"
    sheet = Drawing(_WIDTH, height, told)
    sheet.text(_MARGIN, 40, title, size=24, fill="ink", bold=True)
    many = len(summary.targets) > 1
    classes = sum(len(summary.classes(target)) for target in summary.targets)
    about = f"{MEAN}, in percent" if many else f"{summary.targets[0]}, in percent" if summary.targets else ""
    counted = (f"{len(summary.targets)} data sets, " if many else "") + plural(classes, "class", "classes")
    sheet.text(_MARGIN, 64, " · ".join([about, counted, *_spread(summary)]), size=13)
    _paint_table(sheet, summary, 96)
    for index, (metric, targets) in enumerate(radars):
        half = _WIDTH / max(2, len(radars))
        x = half * index if len(radars) > 1 else (_WIDTH - half) / 2
        sheet.text(x + half / 2, table + 22, COLUMNS[metric], size=15, fill="ink", anchor="middle", bold=True)
        paint_radar(sheet, summary, metric, targets, Box(x, table + 24, half, 470))
    if radars:
        paint_legend(sheet, summary.names, Box(_MARGIN, height - 34, _WIDTH - 2 * _MARGIN, 30))
    return sheet


def _spread(summary: Summary) -> list[str]:
    """What ± stands for, where there is one."""
    several = any(len(summary.finished(name, t)) > 1 for name in summary.names for t in summary.targets)
    return ["± deviation over seeds"] if several else []


def _measured(summary: Summary, metric: str) -> list[str]:
    return [t for t in summary.targets if any(summary.by_class(name, t, metric) for name in summary.names)]


def _paint_table(sheet: Drawing, summary: Summary, top: float) -> None:
    """A row for each method; what may be in bold face lies on a band of its own."""
    target = OVERALL if len(summary.targets) > 1 else next(iter(summary.targets), OVERALL)
    left = _MARGIN + 34 + min(230.0, max(map(_wide, summary.names), default=0))
    step = (_WIDTH - _MARGIN - left) / max(1, len(summary.metrics))
    for index, metric in enumerate(summary.metrics):
        x = left + (index + 1) * step - 12
        sheet.text(x, top, COLUMNS[metric], size=13, anchor="end")
    sheet.line([(_MARGIN, top + 10), (_WIDTH - _MARGIN, top + 10)], "soft")
    for row, (name, style) in enumerate(styles(summary.names).items()):
        y = top + 10 + _ROW * (row + 1)
        sheet.circle(_MARGIN + 10, y - 14, 5.5, style.colour)
        sheet.text(_MARGIN + 26, y - 9, shortened(name, 14, left - _MARGIN - 30), size=14, fill="ink")
        for index, metric in enumerate(summary.metrics):
            entry = summary.entry(name, target, metric)
            x = left + (index + 1) * step - 12
            deviation = entry.deviation()
            spread = (f" ± {deviation}" if deviation else "") + ("*" if entry.marks else "")
            if entry.bold:
                sheet.rect(x - step + 22, y - _ROW + 3, step - 14, _ROW - 4, "accent", opacity=0.1)
            sheet.text(x, y - 9, spread, size=11, anchor="end")
            number = "-" if entry.hole else entry.percent()
            ink = "ink" if entry.bold else "soft" if entry.hole else "ink"
            place = x - (_wide(spread, 11) if spread else 0)
            sheet.text(place, y - 9, number, size=14, fill=ink, anchor="end", bold=entry.bold)
        sheet.line([(_MARGIN, y), (_WIDTH - _MARGIN, y)], "line")
    _paint_foot(sheet, summary, target, top + 26 + _ROW * len(summary.names))


def _paint_foot(sheet: Drawing, summary: Summary, target: str, y: float) -> None:
    entries = [summary.entry(name, target, metric) for name in summary.names for metric in summary.metrics]
    said = []
    if any(entry.bold for entry in entries):
        said.append("marked: best, or not significantly worse")
    if any(entry.marks for entry in entries):
        said.append("* over fewer data sets than the others")
    sheet.text(_WIDTH - _MARGIN, y, "  ·  ".join(said), size=11.5, anchor="end")


def _wide(text: str, size: float = 14) -> float:
    return text_width(text, size)
