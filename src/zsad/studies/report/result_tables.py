"""Tables of a benchmark as CSV, JSON, LaTeX, Markdown and for a terminal, and the notes below them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from zsad.metrics.table import SHORT, plain_table
from zsad.studies.benchmark.bootstrap import LEVEL, Interval
from zsad.studies.benchmark.paper_settings import PRO_NOTES, describe
from zsad.studies.benchmark.significance import ALPHA
from zsad.studies.benchmark.summary import FEWER, OVERALL, PARTIAL, SEEN, Summary, TableEntry
from zsad.studies.benchmark.text_table import Bold, TextTable, escaped, latex_packages

if TYPE_CHECKING:
    from rich.console import RenderableType

MEAN = "mean of the data sets"
CSV_COLUMNS = (
    *(
        "method",
        "registry_name",
        "backbone",
        "protocol",
        "trained_on",
        "target",
        "class",
        "normal",
        "anomalous",
    ),
    *("metric", "value", "deviation", "seeds", "low", "high", "averaged", "of", "seen", "bold", "hole"),
)


def plural(count: int, one: str, many: str) -> str:
    """ "1 class", "2 classes"."""
    return f"{count:,} {one if count == 1 else many}"


def table_targets(summary: Summary) -> list[str]:
    """The targets of a summary, and the mean over them where there are several."""
    return [*summary.targets, OVERALL] if len(summary.targets) > 1 else list(summary.targets)


def holes(summary: Summary) -> list[tuple[str, str, str]]:
    """(method, target, reason) of what is missing: what failed, with which seeds, and what was never run."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for name, cell in summary.failed():
        failed_seeds = seeds.setdefault((name, cell.target, cell.reason or "failed"), [])
        failed_seeds += [cell.seed] if cell.seed is not None else []
    failures = [
        (name, target, reason + (f" (seed {', '.join(map(str, sorted(numbers)))})" if numbers else ""))
        for (name, target, reason), numbers in seeds.items()
    ]
    missing = [
        (name, target, "not run")
        for name in summary.names
        for target in summary.targets
        if summary.hole(name, target) == "not run"
    ]
    return sorted(failures) + missing


def notes(summary: Summary) -> list[str]:
    """Sentences that a reader of the tables must know."""
    lines = [
        "Values are percent: the unweighted mean over the classes of a data set, then over the data sets. "
        "Undefined values are left out and counted. ± is the sample deviation over seeds.",
        f"Bold are the best method and those that are not significantly worse (p < {ALPHA} after Holm's "
        f"correction); nothing is bold where all differences are inside the noise. Methods are compared on the "
        f"same resamples of the images, and of the seeds where there are several; where these are not known, over the "
        f"signs of the classes' differences, or over the seeds, and not at all where both are too few.",
    ]
    if summary.has_intervals:
        lines.append(
            f"Intervals hold with {100 * LEVEL:.0f} % for another choice of images of the same classes "
            f"(bootstrap within class and label, for pixel metrics among images with and without anomalous pixels; "
            f"bias-corrected and accelerated)."
        )
    lines += _mark_notes(summary)
    lines += settings_notes(summary)
    lines += [f"{letter}: trained on {text}." for text, letter in summary.letters.items()]
    lines += _training_notes(summary)
    lines += [
        f"{row.name} is {row.provenance}: its paper could not be read, so its numbers are not its authors'."
        for row in summary.rows.values()
        if row.provenance
    ]
    if any(row.backbone == "zsad-tiny" for row in summary.rows.values()):
        lines.append(
            "zsad-tiny is the small stand-in model that ships with the package: these numbers compare methods on it, "
            "they are not the methods' numbers on ViT-L/14@336."
        )
    lines += [
        f"Several results of {double}: the first is shown." for double in sorted(set(summary.duplicates))
    ]
    lines += [
        f"{plural(count, 'image', 'images')} of {target} in no interval: not every method has scored them."
        for target in summary.targets
        if (count := summary.left_out(target))
    ]
    return lines + _cell_notes(summary)


def _mark_notes(summary: Summary) -> list[str]:
    """Sentences on the marks that stand behind some number."""
    lines = []
    entries = [
        summary.entry(n, t, m) for n in summary.names for t in table_targets(summary) for m in summary.metrics
    ]
    if any(entry.seen for entry in entries):
        lines.append(
            f"{SEEN} The weights were trained on data of this target: not zero-shot, left out of means and bold face."
        )
    if any(PARTIAL in entry.marks for entry in entries):
        lines.append(
            f"{PARTIAL} Mean without the classes that lack files or normal images, or whose files are broken."
        )
    if any(FEWER in entry.marks for entry in entries):
        lines.append(
            f"{FEWER} Mean over fewer classes or data sets than the others' means: it does not compare with them."
        )
    return lines


def settings_notes(summary: Summary) -> list[str]:
    """A sentence for each method on the settings that are not its paper's, and one on the PRO."""
    lines = []
    if "pixel_pro" in summary.metrics:
        lines.append(PRO_NOTES[summary.pro])
    for name in summary.names:
        paper, differences = summary.differences(name)
        if paper is not None:
            lines.append(describe(name, paper.paper, differences))
    return lines


def _training_notes(summary: Summary) -> list[str]:
    """Sentences on the auxiliary sets behind the targets, where these differ."""
    names: dict[str, list[str]] = {}
    for name in summary.names:
        groups: dict[str, list[str]] = {}
        for target in summary.targets:
            for trained in summary.trained_on(name, target):
                groups.setdefault(trained, []).append(target)
        text = "; ".join(
            f"{summary.letters.get(sets, sets)} for {', '.join(targets)}" for sets, targets in groups.items()
        )
        if len(groups) > 1:
            names.setdefault(text, []).append(name)
    return [f"Trained on {text}: {', '.join(rows)}." for text, rows in names.items()]


def _cell_notes(summary: Summary) -> list[str]:
    """The notes of the cells, each once, with the targets it is about."""
    about: dict[str, list[str]] = {}
    for cell in summary.cells:
        for note in [*cell.notes, *([f"{cell.label}: {cell.related}"] if cell.related else [])]:
            about.setdefault(note, []).append(cell.target)
    return [f"{', '.join(dict.fromkeys(targets))}: {note}" for note, targets in about.items()]


def entry_text(entry: TableEntry) -> str:
    """An entry as plain text: mean, deviation and marks."""
    deviation = entry.deviation()
    return entry.percent() + (f" ± {deviation}" if deviation else "") + entry.marks


def console(summary: Summary) -> RenderableType:
    """One table for a terminal, a row for each method on each data set, with what there is to say below."""
    from rich.console import Group
    from rich.text import Text

    table = plain_table()
    learned = any(summary.sets(name, target) for target in table_targets(summary) for name in summary.names)
    table.add_column("data set", overflow="fold")
    table.add_column("method", overflow="fold", no_wrap=max(map(len, summary.names), default=0) <= SHORT)
    if learned:
        table.add_column("trained on", overflow="fold")
    for metric in summary.metrics:
        table.add_column(summary.titles[metric], justify="right", min_width=5)
    for target in table_targets(summary):
        table.add_section()
        for index, name in enumerate(name for name in summary.names if summary.asked(name, target)):
            lead = (target or MEAN) if index == 0 else ""
            trained = [Text(summary.sets(name, target) or "–", style="dim")] if learned else []
            cells = [summary.entry(name, target, metric) for metric in summary.metrics]
            values = (Text(entry_text(entry), style="bold" if entry.bold else "") for entry in cells)
            table.add_row(Text(lead, style="bold"), Text(name), *trained, *values)
    lines = [Text(f"hole: {name} on {target}: {reason}") for name, target, reason in holes(summary)]
    lines += [Text(f"note: {line}", style="dim") for line in notes(summary)]
    return Group(table, *lines)


def to_csv(summary: Summary) -> str:
    """A line for each method, target, class and metric, in [0, 1], unrounded; an empty class is the mean."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_records(summary))
    return text.getvalue()


def _records(summary: Summary) -> Iterator[dict[str, Any]]:
    for name, row in summary.rows.items():
        for target in table_targets(summary):
            for class_name in (None, *(summary.classes(target) if target else ())):
                normal, anomalous = summary.counts(target, class_name) if target else (None, None)
                for metric in summary.metrics:
                    entry = (
                        summary.entry(name, target, metric)
                        if class_name is None
                        else summary.class_entry(name, target, class_name, metric)
                    )
                    yield {
                        "method": name,
                        "registry_name": row.method,
                        "backbone": row.backbone,
                        "protocol": row.protocol,
                        "trained_on": "; ".join(summary.trained_on(name, target)),
                        "target": target or MEAN,
                        "class": class_name,
                        "normal": normal,
                        "anomalous": anomalous,
                        "metric": metric,
                        **_numbers(entry),
                    }


def _numbers(entry: TableEntry) -> dict[str, Any]:
    interval: Interval | None = entry.interval
    return {
        "value": _number(entry.spread.mean),
        "deviation": _number(entry.spread.deviation),
        "seeds": entry.spread.count,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "averaged": entry.parts[0] or None,
        "of": entry.parts[1] or None,
        "seen": entry.seen,
        "bold": entry.bold,
        "hole": entry.hole,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def to_json(summary: Summary) -> str:
    """All of it: entries in [0, 1], comparisons with the best, holes, notes, and the cells as they are."""
    document = {
        "results": list(_records(summary)),
        "comparisons": list(_comparisons(summary)),
        "pro": summary.pro,
        "settings": list(_settings(summary)),
        "holes": [dict(zip(("method", "target", "reason"), hole, strict=True)) for hole in holes(summary)],
        "notes": notes(summary),
        "cells": [cell.model_dump(mode="json") for cell in summary.cells],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _settings(summary: Summary) -> Iterator[dict[str, Any]]:
    for name in summary.names:
        paper, differences = summary.differences(name)
        yield {
            "method": name,
            "paper": None if paper is None else paper.paper,
            "not_the_papers": [asdict(difference) for difference in differences],
        }


def _comparisons(summary: Summary) -> Iterator[dict[str, Any]]:
    for target in table_targets(summary):
        for metric in summary.metrics:
            standing = summary.standing(target, metric)
            if standing is None:
                continue
            for other, comparison in standing.comparisons.items():
                yield {
                    "target": target or MEAN,
                    "metric": metric,
                    "best": standing.best,
                    "other": other,
                    "difference": comparison.difference if comparison else None,
                    "low": comparison.interval.low if comparison and comparison.interval else None,
                    "high": comparison.interval.high if comparison and comparison.interval else None,
                    "p": comparison.p if comparison else None,
                    "p_corrected": standing.corrected.get(other),
                    "over": comparison.over if comparison else None,
                }


def to_latex(summary: Summary) -> str:
    """A booktabs table for each metric, data sets by methods, and below each what is not as in the papers."""
    lines = latex_packages()
    for metric in summary.metrics:
        lines += _by_set(summary, metric).to_latex(below=settings_notes(summary))
    lines += [f"% {line}" for line in notes(summary)]
    return "\n".join(lines) + "\n"


def _by_set(summary: Summary, metric: str) -> TextTable:
    """The table of a metric: data sets by methods."""
    title = f"{summary.titles[metric]} in percent, mean ± deviation over seeds"
    table = TextTable(["data set", *summary.names], title=title)
    for target in table_targets(summary):
        table.sections |= {len(table.rows)} if target == OVERALL else set()
        entries = [summary.entry(name, target, metric) for name in summary.names]
        table.rows.append([target or MEAN, *map(_cell, entries)])
    return table


def _cell(entry: TableEntry) -> str:
    text = entry_text(entry)
    return Bold(text) if entry.bold else text


def to_markdown(summary: Summary, *, title: str = "Benchmark", picture: str | None = None) -> str:
    """All tables for reading: means, data sets by methods for each metric, then the classes.

    Args:
        summary: of the benchmark.
        title: the heading.
        picture: file to show at the top.
    """
    lines = [f"# {escaped(title)}", ""]
    if picture:
        lines += [f"![The summary, and the methods over the data sets]({picture})", ""]
    if len(summary.targets) > 1:
        titles = [summary.titles[metric] for metric in summary.metrics]
        table = TextTable(["method", "trained on", *titles], left=2)
        for name in summary.names:
            values = [_cell(summary.entry(name, OVERALL, metric)) for metric in summary.metrics]
            table.rows.append([name, ", ".join(summary.trained_on(name)) or "–", *values])
        lines += [f"## {MEAN.capitalize()}", "", *table.to_markdown()]
    for metric in summary.metrics:
        lines += [f"## {summary.titles[metric]}", "", *_by_set(summary, metric).to_markdown()]
    for target in summary.targets:
        lines += _markdown_classes(summary, target)
    missing = [f"- {escaped(f'{name} on {target}: {reason}')}" for name, target, reason in holes(summary)]
    if missing:
        lines += ["## Holes", "", *missing, ""]
    return "\n".join([*lines, "## Notes", "", *(f"- {escaped(line)}" for line in notes(summary)), ""])


def _markdown_classes(summary: Summary, target: str) -> list[str]:
    names = summary.classes(target)
    if len(names) < 2:
        return []
    lines = [f"## Classes of {escaped(target)}", ""]
    for metric in summary.metrics:
        rows = {
            class_name: [summary.class_entry(name, target, class_name, metric) for name in summary.names]
            for class_name in names
        }
        if any(not entry.hole for entries in rows.values() for entry in entries):
            table = TextTable([summary.titles[metric], *summary.names])
            table.rows += [[class_name, *map(_cell, entries)] for class_name, entries in rows.items()]
            lines += table.to_markdown()
    return lines
