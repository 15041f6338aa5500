"""Tables of a benchmark as CSV, JSON, LaTeX, Markdown and for a terminal, and the notes below them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from zsad.metrics.table import COLUMNS, SHORT, plain_table
from zsad.studies.benchmark.bootstrap import LEVEL, Interval
from zsad.studies.benchmark.significance import ALPHA
from zsad.studies.benchmark.summary import FEWER, OVERALL, PARTIAL, SEEN, Summary, TableEntry

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
_LATEX = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "±": r"$\pm$",
        SEEN: r"\textdagger{}",
        FEWER: r"\textdaggerdbl{}",
        PARTIAL: r"\S{}",
    }
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
        for note in cell.notes:
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
        table.add_column(COLUMNS[metric], justify="right", min_width=5)
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
        "holes": [dict(zip(("method", "target", "reason"), hole, strict=True)) for hole in holes(summary)],
        "notes": notes(summary),
        "cells": [cell.model_dump(mode="json") for cell in summary.cells],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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
    """A booktabs table for each metric, data sets by methods; it needs the packages booktabs and textcomp."""
    lines = ["% needs \\usepackage{booktabs} and \\usepackage{textcomp}", ""]
    for metric in summary.metrics:
        lines += _latex_table(summary, metric)
    lines += [f"% {line}" for line in notes(summary)]
    return "\n".join(lines) + "\n"


def _latex_table(summary: Summary, metric: str) -> list[str]:
    def row(cells: Iterable[str]) -> str:
        return "  " + " & ".join(cells) + r" \\"

    lines = [
        r"\begin{table}[t]",
        r"  \centering\small",
        f"  \\caption{{{_latex(COLUMNS[metric])} in percent, mean $\\pm$ deviation over seeds.}}",
        f"  \\label{{tab:{metric.replace('_', '-')}}}",
        f"  \\begin{{tabular}}{{l{'c' * len(summary.names)}}}",
        r"  \toprule",
        row(["Data set", *map(_latex, summary.names)]),
        r"  \midrule",
    ]
    for target in table_targets(summary):
        entries = [summary.entry(name, target, metric) for name in summary.names]
        if target == OVERALL:
            lines.append(r"  \midrule")
        lines.append(row([_latex(target or "Mean"), *map(_latex_entry, entries)]))
    return [*lines, r"  \bottomrule", r"  \end{tabular}", r"\end{table}", ""]


def _latex_entry(entry: TableEntry) -> str:
    mean, deviation = entry.percent(), entry.deviation()
    number = _latex(mean) if entry.hole or not entry.bold else f"\\textbf{{{mean}}}"
    spread = f" {{\\scriptsize $\\pm$ {deviation}}}" if deviation else ""
    marks = f"\\textsuperscript{{{_latex(entry.marks)}}}" if entry.marks else ""
    return number + spread + marks


def _latex(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX)


def to_markdown(summary: Summary, *, title: str = "Benchmark", picture: str | None = None) -> str:
    """All tables for reading: means, data sets by methods for each metric, then the classes.

    Args:
        summary: of the benchmark.
        title: the heading.
        picture: file to show at the top.
    """
    lines = [f"# {_escaped(title)}", ""]
    if picture:
        lines += [f"![The summary, and the methods over the data sets]({picture})", ""]
    if len(summary.targets) > 1:
        lines += [f"## {MEAN.capitalize()}", ""]
        lines += _markdown_table(
            ["method", "trained on", *(COLUMNS[metric] for metric in summary.metrics)],
            summary.names,
            lambda name: [
                _escaped(", ".join(summary.trained_on(name)) or "–"),
                *(_markdown_entry(summary.entry(name, OVERALL, metric)) for metric in summary.metrics),
            ],
            left=2,
        )
    for metric in summary.metrics:
        lines += [f"## {COLUMNS[metric]}", ""]
        lines += _markdown_table(
            ["data set", *summary.names], table_targets(summary), partial(_row, summary, metric)
        )
    for target in summary.targets:
        lines += _markdown_classes(summary, target)
    missing = [f"- {_escaped(f'{name} on {target}: {reason}')}" for name, target, reason in holes(summary)]
    if missing:
        lines += ["## Holes", "", *missing, ""]
    return "\n".join([*lines, "## Notes", "", *(f"- {_escaped(line)}" for line in notes(summary)), ""])


def _row(summary: Summary, metric: str, target: str) -> list[str]:
    return [_markdown_entry(summary.entry(name, target, metric)) for name in summary.names]


def _markdown_classes(summary: Summary, target: str) -> list[str]:
    names = summary.classes(target)
    if len(names) < 2:
        return []
    lines = [f"## Classes of {_escaped(target)}", ""]
    for metric in summary.metrics:
        rows = {
            class_name: [summary.class_entry(name, target, class_name, metric) for name in summary.names]
            for class_name in names
        }
        if any(not entry.hole for entries in rows.values() for entry in entries):
            texts = {key: [_markdown_entry(entry) for entry in entries] for key, entries in rows.items()}
            lines += _markdown_table([COLUMNS[metric], *summary.names], names, texts.__getitem__)
    return lines


def _markdown_table(
    headings: Sequence[str], keys: Sequence[str], cells: Callable[[str], list[str]], *, left: int = 1
) -> list[str]:
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    rows = [[_escaped(key or MEAN), *cells(key)] for key in keys]
    table = [list(map(_escaped, headings)), rule, *rows]
    return ["| " + " | ".join(row) + " |" for row in table] + [""]


def _markdown_entry(entry: TableEntry) -> str:
    return f"**{entry_text(entry)}**" if entry.bold else entry_text(entry)


def _escaped(text: str) -> str:
    return (
        " ".join(text.split())
        .replace("\\", "\\\\")
        .replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("*", "\\*")
    )
