"""`zsad data`: the catalogue of public data sets, and whether a folder holds what it should."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zsad.datasets.catalog import CatalogEntry, Catalogue
    from zsad.datasets.check import Report
    from zsad.datasets.manifest import DataSet

_WIDTH = 80
OWN = "own"
"""Name that stands for a data set of one's own: every file is checked, no count."""

Flag = Annotated[bool, Parameter(negative="")]
AsJson = Annotated[bool, Parameter(name="--json", negative="")]

data_command = App(name="data", help="Data sets: what there is, whether a copy is whole, how to get one.")


@data_command.command(name="list")
def list_command(
    *,
    group: Literal["industrial", "medical"] | None = None,
    catalog: Path | None = None,
    json_: AsJson = False,
) -> int:
    """List the data sets of the catalogue with the size of their test part.

    Args:
        group: Only industrial or only medical sets.
        catalog: A catalogue of your own (TOML), added to the one that ships.
        json_: Print JSON.
    """
    from zsad.cli.console import say
    from zsad.datasets.catalog import catalogue

    book = catalogue(catalog)
    chosen = [entry for entry in book if group in (None, entry.group)]
    if json_:
        _say_json([_facts(entry, book) for entry in chosen])
        return 0
    for line in _listing(chosen):
        say(line)
    return 0


def _listing(chosen: Sequence[CatalogEntry]) -> Iterator[str]:
    """Lines of at most 80 characters: a table of the industrial sets, then of the medical; licences are cut short."""
    headings = ("classes", "normal", "anomalous", "metrics", "licence")
    groups: dict[str, list[tuple[str, ...]]] = {}
    for entry in chosen:
        counts = [_known(len(entry.classes) or None), _known(entry.normal), _known(entry.anomalous)]
        row = (entry.name, *counts, " + ".join(entry.metrics), entry.licence)
        groups.setdefault(entry.group, [(entry.group, *headings)]).append(row)
    table = [row for rows in groups.values() for row in rows]
    widths = [max(len(row[column]) for row in table) for column in range(5)]
    left = max(_WIDTH - sum(widths) - 2 * len(widths), len(headings[-1]))
    for group, rows in groups.items():
        if group != next(iter(groups)):
            yield ""
        for row in rows:
            cells = [
                cell.rjust(width) if 1 <= column <= 3 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=False))
            ]
            yield "  ".join([*cells, shorten(row[-1], left, placeholder=" ...")]).rstrip()


@data_command.command(name="show")
def show_command(name: str, /, *, catalog: Path | None = None, json_: AsJson = False) -> int:
    """Show what is known of a data set: layout, counts, metrics, traps, licence, citation, how to get it.

    Args:
        name: Name or alias, see zsad data list.
        catalog: A catalogue of your own (TOML), added to the one that ships.
        json_: Print JSON.
    """
    from zsad.cli.console import say
    from zsad.datasets.catalog import catalogue

    book = catalogue(catalog)
    entry = book.find(name)
    if json_:
        _say_json(_facts(entry, book))
        return 0
    lines = [
        ("name", entry.name + (f" ({', '.join(entry.aliases)})" if entry.aliases else "")),
        ("title", f"{entry.title}, {entry.group}"),
        ("layout", f"{entry.layout}: {entry.folders}"),
        (
            "images",
            f"{_known(entry.normal)} normal, {_known(entry.anomalous)} anomalous (part {entry.split})",
        ),
        ("counts", entry.counts),
        ("metrics", " and ".join(f"{metric} level" for metric in entry.metrics)),
        ("not", f"{', '.join(entry.not_to_be_confused_with)}: other sets of that name"),
        ("shares", f"images with {', '.join(book.sharing(entry))}"),
        ("seen by", ", ".join(entry.pretrained)),
        *(("trap", trap) for trap in entry.traps),
        ("licence", entry.licence),
        ("home", entry.home or "unknown"),
        ("cite", entry.citation),
        ("get", entry.get),
    ]
    empty = {"not": entry.not_to_be_confused_with, "shares": book.sharing(entry), "seen by": entry.pretrained}
    for title, text in lines:
        if text and (title not in empty or empty[title]):
            say(f"{title:<8}  {text}")
    for row in entry.classes:
        counts = f"{_known(row.normal)} + {_known(row.anomalous)}"
        say(f"{'class':<8}  {row.name:<24} {counts:<12} in prompts: {entry.prompt_name(row.name)}")
    return 0


@data_command.command(name="check")
def check_command(
    name: str,
    folder: Path,
    /,
    *,
    against: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None,
    near: int | None = None,
    classes: list[str] | None = None,
    split: str | None = None,
    image_size: int = 518,
    threads: int = 2,
    catalog: Path | None = None,
    json_: AsJson = False,
) -> int:
    """Check a copy of a data set: decode every file, pair images and masks by name, verify every count.

    Every problem is a line on stderr with the path, and the exit code is then 2.

    Args:
        name: Name or alias, see zsad data list; own for a set of your own, without counts.
        folder: Where it lies: a folder, a meta.json or a manifest.
        against: Sets that must not share an image with it, such as those a model was trained on.
        near: List images that look like one of those sets, too: at most so many of 64 bits differ.
        classes: Check only these classes; may be repeated.
        split: Part to read; by default the one that is measured on.
        image_size: Side in pixels at which masks must not vanish.
        threads: Threads that decode.
        catalog: A catalogue of your own (TOML), added to the one that ships.
        json_: Print JSON.
    """
    from zsad.cli.console import note, printable, progress
    from zsad.datasets.catalog import catalogue
    from zsad.datasets.check import check
    from zsad.datasets.manifest import discover
    from zsad.errors import ConfigError

    if image_size < 1 or threads < 1 or (near is not None and not 0 <= near <= 64):
        raise ConfigError(
            f"--image-size {image_size}, --threads {threads}, --near {near}: expected 1 or more, 1 or more, 0 to 64"
        )
    entry = None if name == OWN else catalogue(catalog).find(name)
    part = split or (entry.split if entry else "test")
    data_set = discover(folder, split=part, missing="keep")
    if classes:
        data_set, entry = _only(data_set, classes), None if entry is None else entry.restricted(classes)
    others = [discover(other, split=part) for other in against or []]
    total = len(data_set.samples) + sum(len(other.samples) for other in others)
    with progress("checking", total) as advance:
        report = check(
            data_set,
            entry,
            against=others,
            near=near,
            size=(image_size, image_size),
            workers=threads,
            progress=advance,
        )
    if json_:
        _say_json(report.model_dump(mode="json"))
    else:
        _say_report(report)
    for problem in report.problems:
        note(
            f"zsad: problem: {printable(f'{problem.path}: ' if problem.path else '')}{printable(problem.reason)}"
        )
    return 0 if report.sound else 2


@data_command.command(name="manifest")
def manifest_command(folder: Path, /, *, out: Path, split: str = "test", overwrite: Flag = False) -> int:
    """Write a meta.json of a data set as AnomalyCLIP's and many others' loaders read it.

    Paths are relative to the folder of the file, sorted; images and masks are paired by name.

    Args:
        folder: The data set; its layout is found out by looking.
        out: The file, such as DIR/meta.json.
        split: The part to write; a part train is written as well where there is one.
        overwrite: Replace the file.
    """
    from zsad.cli.console import note, plural, printable, say
    from zsad.datasets.meta import write_meta
    from zsad.errors import ConfigError

    if out.is_dir() or out.suffix.lower() != ".json":
        place = out if out.is_dir() or not out.suffix else out.parent
        raise ConfigError(
            f"--out {out} is no name of a JSON file, expected one such as {place / 'meta.json'}"
        )
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} is there already: give --overwrite or another --out")
    meta = write_meta(folder, out, split=split)
    for part, groups in meta.items():
        classes = f"{len(groups)} class" + ("" if len(groups) == 1 else "es")
        note(f"zsad: {part}: {plural(sum(map(len, groups.values())), 'image')} in {classes}")
    say(f"wrote {printable(out)}")
    return 0


@data_command.command(name="fetch")
def fetch_command(name: str, /, *, out: Path | None = None, catalog: Path | None = None) -> int:
    """Get a data set that may be had freely; for any other, say how a human gets it (exit code 2).

    Args:
        name: Name or alias, see zsad data list.
        out: Folder in which a folder of the set's name is made; not needed where its package is installed.
        catalog: A catalogue of your own (TOML), added to the one that ships.
    """
    from zsad.cli.console import printable, say
    from zsad.datasets.catalog import catalogue
    from zsad.datasets.fetch import fetch, installed_folder
    from zsad.errors import DataError

    entry = catalogue(catalog).find(name)
    if entry.package is None:
        for line in _instructions(entry):
            say(line)
        raise DataError(f"{entry.name} cannot be fetched by zsad: do what is said above")
    place = installed_folder(entry) if out is None else fetch(entry, out)
    if place is None:
        raise DataError(
            f"{entry.name} comes with the package {entry.package}, which is not installed: give --out DIR, or "
            f"pip install {entry.package}"
        )
    say(f"{entry.title} ({entry.licence}) lies in {printable(place)}")
    say(f"to cite: {entry.citation}")
    say(f"next: zsad data check {entry.name} {printable(place)}")
    return 0


def _instructions(entry: CatalogEntry) -> list[str]:
    return [
        f"{entry.title}",
        f"1. {entry.get}" + (f": {entry.home}" if entry.home else ""),
        f"2. mind the licence: {entry.licence}",
        f"3. the folder should hold {entry.folders}",
        f"4. zsad data check {entry.name} DIR",
    ]


def _only(data: DataSet, classes: list[str]) -> DataSet:
    """Some classes of a data set.

    Raises:
        DataError: one that it does not have.
    """
    from dataclasses import replace

    from zsad.errors import DataError

    if missing := [name for name in classes if name not in data.classes]:
        raise DataError(f"no class {missing[0]!r} in {data.name}; it has {', '.join(data.classes)}")
    samples = [sample for sample in data.samples if sample.class_name in classes]
    # What is wrong lies in the folder of its class, or is a file of one of the samples.
    kept = {path for sample in samples for path in (sample.image, sample.mask)}
    findings = [
        finding
        for finding in data.findings
        if finding.path in kept or not set(classes).isdisjoint(finding.path.parts)
    ]
    return replace(data, samples=samples, findings=findings)


def _say_report(report: Report) -> None:
    from zsad.cli.console import printable, say, say_table
    from zsad.metrics.table import plain_table

    known = "" if report.known else ", not in the catalogue: counts are not compared"
    say(f"{printable(report.name)}: layout {report.layout}{known}")
    table = plain_table()
    for heading in ("class", "normal", "anomalous", "masks", "without label"):
        table.add_column(heading, justify="left" if heading == "class" else "right", overflow="fold")
    for row in report.classes:
        normal = _beside(row.normal, row.expected_normal)
        anomalous = _beside(row.anomalous, row.expected_anomalous)
        table.add_row(printable(row.name), normal, anomalous, str(row.masks), str(row.unlabelled or ""))
    say_table(table)
    if report.mask_values:
        say(f"values in masks (pixels): {_histogram(report.mask_values)}")
    for line in report.remarks:
        say(f"note: {line}")
    for path in report.emptied:
        say(f"empty at {report.image_size[0]} px: {printable(path)}")
    for title, twins in (("twice", report.duplicates), ("looks alike", report.look_alikes)):
        for twin in twins:
            bits = f" ({twin.bits} of 64 bits differ)" if twin.bits else ""
            say(f"{title}: {printable(twin.path)} and {printable(twin.other)}{bits}")
    say("nothing is wrong" if report.sound else f"problems, each a line on stderr: {len(report.problems)}")


def _histogram(values: dict[str, int]) -> str:
    """The most frequent values; what a mask compressed with losses holds would fill a screen."""
    frequent = sorted(values.items(), key=lambda item: -item[1])[:8]
    rest = len(values) - len(frequent)
    return ", ".join(f"{value}: {count:,}" for value, count in frequent) + (
        f", and {rest} more" if rest else ""
    )


def _beside(count: int, expected: int | None) -> str:
    return str(count) if expected in (None, count) else f"{count} (expected {expected})"


def _known(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _facts(entry: CatalogEntry, book: Catalogue) -> dict[str, object]:
    facts: dict[str, object] = entry.model_dump(mode="json")
    facts["shares_images_with"] = list(book.sharing(entry))
    facts["classes"] = [
        {**row.model_dump(mode="json"), "in_prompts": entry.prompt_name(row.name)} for row in entry.classes
    ]
    return facts


def _say_json(content: object) -> None:
    import json

    from zsad.cli.console import say

    say(json.dumps(content, indent=2, ensure_ascii=False))
