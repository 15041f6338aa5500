"""Page of a benchmark: one self-contained HTML file with tables, charts and example images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from zsad.runs.page import data_uri, render_page
from zsad.studies.benchmark.summary import ELSEWHERE, FEWER, OVERALL, PARTIAL, SEEN, Summary, TableEntry
from zsad.studies.report.curve_charts import curve_charts
from zsad.studies.report.drawing import Drawing
from zsad.studies.report.examples import KINDS, Example
from zsad.studies.report.method_charts import (
    RADAR_METRICS,
    Style,
    mean_of_cells,
    methods_over_sets,
    quality_over_time,
    styles,
    swatch,
)
from zsad.studies.report.result_tables import MEAN, holes, notes, plural, table_targets

_MOST_PROBLEMS = 500


def render_benchmark(
    summary: Summary, work: Path, *, examples: Sequence[Example] = (), title: str = "Benchmark"
) -> str:
    """The page as text.

    Args:
        summary: of the cells.
        work: their folder, for the curves.
        examples: images with maps, as `zsad.studies.report.examples.examples` chooses them.
        title: its heading.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    lines = notes(summary)
    overall = OVERALL if len(summary.targets) > 1 else next(iter(summary.targets), OVERALL)
    content = {
        "title": title,
        "methods": [_method(summary, name, style) for name, style in styles(summary.names).items()],
        "tiles": _tiles(summary),
        "metrics": [{"key": metric, "title": summary.titles[metric]} for metric in summary.metrics],
        "means": [
            {"name": name, "entries": [_entry(summary.entry(name, overall, m)) for m in summary.metrics]}
            for name in summary.names
        ],
        "mean_title": overall or (MEAN if summary.targets else ""),
        "radars": _radars(summary),
        "by_set": {metric: _by_set(summary, metric) for metric in summary.metrics},
        "by_class": [
            _by_class(summary, target) for target in summary.targets if len(summary.classes(target)) > 1
        ],
        "curves": _curves(summary, work),
        "gallery": _gallery(examples, summary.names),
        "costs": _costs(summary),
        "trade_offs": _inline(quality_over_time(summary, m) for m in RADAR_METRICS if m in summary.metrics),
        "holes": holes(summary),
        "problems": _problems(summary)[:_MOST_PROBLEMS],
        "notes": lines,
        "marks": [line for line in lines if line.startswith((SEEN, FEWER, PARTIAL))],
        "any_seen": any(line.startswith(SEEN) for line in lines),
        "environment": _environment(summary),
        "version": _version(summary),
    }
    return render_page(Path(__file__).parents[1] / "templates" / "benchmark.html", content)


def _inline(drawings: Iterable[Drawing | None]) -> list[Any]:
    from markupsafe import Markup

    return [Markup(drawing.to_svg(inline=True)) for drawing in drawings if drawing is not None]


def _method(summary: Summary, name: str, style: Style) -> dict[str, Any]:
    seeds = sorted({seed for t in summary.targets for seed in summary.finished(name, t) if seed is not None})
    return {
        "name": name,
        "swatch": _inline([swatch(style)])[0],
        "backbone": summary.rows[name].backbone,
        "trained_on": ", ".join(summary.trained_on(name)) or "no training",
        "seeds": ("seeds " if len(seeds) > 1 else "seed ") + ", ".join(map(str, seeds)) if seeds else "",
    }


def _tiles(summary: Summary) -> list[tuple[str, str, str]]:
    """(value, name, explanation) of the numbers on top of the page."""
    done = sum(cell.state == "done" for cell in summary.cells)
    failed = len(summary.cells) - done
    counts = [summary.counts(target) for target in summary.targets]
    normal, anomalous = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    classes = sum(len(summary.classes(target)) for target in summary.targets)
    trained = sum(cell.seconds_training or 0.0 for cell in summary.cells)
    tiles = [
        (f"{len(summary.names)}", "methods", shorten(", ".join(summary.names), 90, placeholder=" ...")),
        (
            f"{len(summary.targets)}",
            "data sets" if len(summary.targets) > 1 else "data set",
            plural(classes, "class", "classes"),
        ),
        (f"{normal + anomalous:,}", "images", f"{normal:,} normal, {anomalous:,} anomalous"),
        (f"{done:,}", "results", f"{failed:,} failed" if failed else "none failed"),
    ]
    if trained:
        tiles.append((_duration(trained), "of training", "all methods and seeds together"))
    return tiles


def _rate(per_second: float) -> str:
    """A rate with one decimal, below 1 with two significant digits."""
    return f"{per_second:,.1f}" if per_second >= 1 else f"{per_second:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _brief(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _entry(entry: TableEntry) -> dict[str, Any]:
    """An entry as the template prints it."""
    details = []
    interval = entry.interval
    if interval is not None:
        details.append(f"95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f}")
    if entry.spread.count > 1:
        details.append(f"{entry.spread.count} seeds")
    if entry.parts[1]:
        details.append(f"mean of {entry.parts[0]} of {entry.parts[1]}")
    if entry.seen:
        details.append("seen in training")
    word = entry.hole if entry.hole in ("not run", "undefined") else "failed"
    return {
        "value": "" if entry.hole else entry.percent(),
        "deviation": entry.deviation(),
        "interval": "" if interval is None else f"{100 * interval.low:.1f} – {100 * interval.high:.1f}",
        "marks": entry.marks,
        "bold": entry.bold,
        "hole": {"": "", "undefined": "–", ELSEWHERE: "–"}.get(entry.hole, word),
        "title": entry.hole or ", ".join(details),
    }


def _radars(summary: Summary) -> list[dict[str, Any]]:
    """Two charts as in PromptMoE's figure 2, or of those metrics that there are."""
    metrics = [metric for metric in RADAR_METRICS if metric in summary.metrics] or summary.metrics[:1]
    drawn = {metric: _inline([methods_over_sets(summary, metric)]) for metric in metrics}
    return [{"title": summary.titles[metric], "svg": svg[0]} for metric, svg in drawn.items() if svg]


def _row(
    summary: Summary,
    target: str,
    metric: str,
    *,
    name: str,
    class_name: str | None = None,
    mean: bool = False,
) -> dict[str, Any]:
    """A row of all methods: a target, one of its classes, or a mean, which has no counts."""
    entries = [
        summary.entry(method, target, metric)
        if class_name is None
        else summary.class_entry(method, target, class_name, metric)
        for method in summary.names
    ]
    counts = "" if mean else "{:,} + {:,}".format(*summary.counts(target, class_name))
    return {"name": name, "mean": mean, "counts": counts, "entries": [_entry(entry) for entry in entries]}


def _by_set(summary: Summary, metric: str) -> list[dict[str, Any]]:
    return [
        _row(summary, target, metric, name=target or MEAN, mean=target == OVERALL)
        for target in table_targets(summary)
    ]


def _by_class(summary: Summary, target: str) -> dict[str, Any]:
    """The classes of a target by metric, those that are defined nowhere left out."""
    names = summary.classes(target)
    tables = {
        metric: [_row(summary, target, metric, name=name, class_name=name) for name in names]
        for metric in summary.metrics
    }
    for metric, rows in list(tables.items()):
        if any(entry["value"] for row in rows for entry in row["entries"]):
            rows.append(_row(summary, target, metric, name="mean", mean=True))
        else:
            del tables[metric]
    return {"target": target, "classes": len(names), "tables": tables}


def _curves(summary: Summary, work: Path) -> list[dict[str, Any]]:
    drawn = {target: _inline(curve_charts(summary, target, work)) for target in summary.targets}
    return [{"target": target, "charts": charts} for target, charts in drawn.items() if charts]


def _gallery(examples: Sequence[Example], names: Sequence[str]) -> dict[str, Any]:
    """The median images side by side, and all examples of each target."""
    cards = [_card(example, names) for example in examples if example.picture is not None]
    targets = list(dict.fromkeys(card["target"] for card in cards))
    return {
        "medians": [card for card in cards if card["kind"] == "median"],
        "targets": [{"name": t, "cards": [card for card in cards if card["target"] == t]} for t in targets],
    }


def _card(example: Example, names: Sequence[str]) -> dict[str, Any]:
    return {
        "target": example.target,
        "class_name": example.class_name,
        "image": example.image,
        "label": example.label,
        "kind": example.kind,
        "why": KINDS[example.kind],
        "right": f"{100 * example.right:.0f} %",
        "picture": data_uri(example.picture),
        "mask": data_uri(example.mask),
        "maps": [
            {
                "name": name,
                "uri": data_uri(example.maps.get(name)),
                "score": f"{example.scores[name]:.3f}" if name in example.scores else "",
            }
            for name in names
        ],
    }


def _costs(summary: Summary) -> list[dict[str, str]]:
    """Seconds for an image and for a training, and the peak of memory, by method."""
    rows = []
    for name in summary.names:
        image, training = (mean_of_cells(summary, name, f"seconds_{of}") for of in ("per_image", "training"))
        cells = [cell for target in summary.targets for cell in summary.finished(name, target).values()]
        peaks = [cell.peak_memory_mb for cell in cells if cell.peak_memory_mb is not None]
        rows.append(
            {
                "name": name,
                "image": "–" if image is None else _brief(image),
                "rate": _rate(1 / image) if image else "–",
                "training": "–" if training is None else _duration(training),
                "memory": f"{max(peaks):,.0f} MB" if peaks else "–",
            }
        )
    return rows


def _problems(summary: Summary) -> list[tuple[str, str, str]]:
    """(target, path, reason) of files that could not be used, each once."""
    return sorted({(cell.target, each.path, each.reason) for cell in summary.cells for each in cell.problems})


def _environment(summary: Summary) -> list[tuple[str, str]]:
    """Versions and machines recorded in the cells; several values where they differ."""
    values: dict[str, dict[str, None]] = {}
    for cell in summary.cells:
        for name, value in cell.environment.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            values.setdefault(name, {})[text] = None
    backbones = {f"{cell.backbone} (sha256 {cell.backbone_sha256[:16]}…)": None for cell in summary.cells}
    return [("backbone", ", ".join(backbones)), *((name, ", ".join(texts)) for name, texts in values.items())]


def _version(summary: Summary) -> str:
    versions = {str(cell.environment["zsad"]) for cell in summary.cells if "zsad" in cell.environment}
    return ", ".join(sorted(versions))
