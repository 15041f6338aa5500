"""Data sets listed in a file: `meta.json`, VisA's `1cls.csv`, and the project's own JSONL or CSV manifest."""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from zsad.datasets.layouts import Finding, ParsedLayout, class_layout, listed, lost_class
from zsad.datasets.words import UNKNOWN, parse_label
from zsad.errors import DataError
from zsad.files import parse_document
from zsad.types import Sample

COLUMNS = ("image", "mask", "label", "class", "kind")
"""Columns (CSV) or keys (JSONL) of a manifest; only `image` is needed."""

Missing = Literal["refuse", "keep"]
"""Treatment of listed files that are not there: an error, or samples that their reader reports."""

Row = tuple[str, Mapping[str, Any]]  # where it stands ("file, line 3"), and what it says


def read_manifest(path: Path, *, missing: Missing = "refuse") -> ParsedLayout:
    """Read a JSONL or CSV manifest; paths in it are relative to its folder. The order of the file is kept.

    Raises:
        DataError: a broken line, an unknown column, or a missing file, with the line number.
    """
    rows = list(_csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path))
    for where, row in rows:
        for name in row:
            if name not in COLUMNS:
                close = difflib.get_close_matches(str(name), COLUMNS, n=1)
                hint = f", did you mean {close[0]!r}?" if close else ""
                raise DataError(
                    f"{where}: unknown column {name!r}, expected some of {', '.join(COLUMNS)}{hint}"
                )
    return _parse_rows("manifest", rows, lambda text: path.parent / text, missing=missing)


def read_visa(folder: Path, table: Path, split: str, *, missing: Missing = "refuse") -> ParsedLayout:
    """Read VisA's table (object, split, label, image, mask); paths are relative to `folder`.

    Raises:
        DataError: a missing column, no row of this split, or a listed file that does not exist.
    """
    rows: list[Row] = []
    splits = set()
    for where, row in _csv_rows(table):
        for name in ("object", "split", "label", "image"):
            if name not in row:
                raise DataError(
                    f"{where}: column {name!r} is missing, expected object, split, label, image, mask"
                )
        splits.add(str(row["split"]))
        if row["split"] == split:
            kind = "good" if row["label"] == "normal" else str(row["label"])
            rows.append((where, {**row, "class": row["object"], "kind": kind}))
    if not rows:
        raise DataError(
            f"{table} has no rows of split {split!r}, only of {sorted(splits)}: choose one of these"
        )
    parsed = _parse_rows("visa", rows, lambda text: folder / text, missing=missing)
    parsed.samples.sort(key=lambda sample: (sample.class_name, sample.image.as_posix()))
    return parsed


def read_meta(path: Path, split: str, *, missing: Missing = "refuse") -> ParsedLayout:
    """Read an AnomalyCLIP-style meta.json; keys may be `test` or `Test`.

    Paths are relative to the file's folder or, where that does not lead to a file, to the folder above it.

    Raises:
        DataError: broken JSON, no such split, an entry without img_path, or a missing file.
    """
    try:
        content = parse_document(_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}): write it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, expected an object with key {split!r}")
    parts = {str(key).lower(): value for key, value in content.items()}
    classes = parts.get(split.lower())
    if not isinstance(classes, dict) or not any(classes.values()):
        filled = sorted(key for key, value in parts.items() if value)
        raise DataError(f"{path} lists nothing for split {split!r}, only for {filled}: choose one of these")
    rows = [row for name, items in classes.items() for row in _meta_rows(path, str(name), items)]

    folder = path.parent if path.parent.name not in ("", "..") else path.parent.resolve()

    def resolve(text: str) -> Path:
        beside = path.parent / text
        above = folder.parent / text
        # Not by Path.exists, which raises on names that no file system takes.
        return above if not os.path.exists(beside) and os.path.exists(above) else beside  # noqa: PTH110

    parsed = _parse_rows("meta.json", rows, resolve, missing=missing)
    parsed.samples.sort(key=lambda sample: (sample.class_name, sample.image.as_posix()))
    parsed.findings += [lost_class(path, str(name)) for name, items in classes.items() if not items]
    return parsed


def _meta_rows(path: Path, class_name: str, items: Any) -> Iterator[Row]:
    if not isinstance(items, list):
        raise DataError(
            f"{path}, class {class_name!r}: holds a {type(items).__name__}, expected a list of entries"
        )
    for index, item in enumerate(items):
        where = f"{path}, class {class_name!r}, entry {index + 1}"
        if not isinstance(item, dict) or not item.get("img_path"):
            raise DataError(
                f"{where}: has no img_path, expected img_path, mask_path, cls_name, specie_name, anomaly"
            )
        yield (
            where,
            {
                "image": item["img_path"],
                "mask": item.get("mask_path"),
                "label": item.get("anomaly"),
                "class": item.get("cls_name") or class_name,
                "kind": item.get("specie_name"),
            },
        )


def _parse_rows(
    layout: str, rows: list[Row], resolve: Callable[[str], Path], *, missing: Missing
) -> ParsedLayout:
    """Turn rows into samples; exact repetitions are dropped with a note, contradictions are errors."""
    samples: dict[Path, Sample] = {}
    repeated: list[Path] = []
    ignored: list[tuple[Path, Path]] = []
    for where, row in rows:
        sample = _sample(where, row, resolve, missing=missing)
        if sample.label == 0 and sample.mask is not None:
            ignored.append((sample.image, sample.mask))
            sample = Sample(sample.image, sample.class_name, 0, None, sample.kind)
        known = samples.setdefault(sample.image, sample)
        if known is not sample:
            if known != sample:
                raise DataError(
                    f"{where}: {sample.image} is listed before with other values: keep one of the two"
                )
            repeated.append(sample.image)
    notes = listed("listed more than once, counted once", repeated)
    if ignored:
        notes.append(
            f"masks of {len(ignored)} normal images are ignored: a normal image has no anomalous pixel"
        )
    anomalous = [sample for sample in samples.values() if sample.label == 1]
    findings: list[Finding] = []
    if any(sample.mask for sample in anomalous):
        reason = "anomalous image without a mask"
        findings = [Finding(sample.image, reason) for sample in anomalous if sample.mask is None]
    parsed = class_layout(layout, list(samples.values()), findings, notes, is_class=False)
    parsed.ignored_masks = ignored
    return parsed


def _sample(
    where: str, row: Mapping[str, Any], resolve: Callable[[str], Path], *, missing: Missing
) -> Sample:
    image = _file(where, row, "image", resolve, missing=missing)
    if image is None:
        raise DataError(f"{where}: has no image, expected a path in column 'image'")
    try:
        label = parse_label(_cell(row, "label"))
    except ValueError as error:
        raise DataError(
            f"{where}: label is {row['label']!r}, expected 0, 1, good, bad, OK, NG or the like, or nothing"
        ) from error
    mask = _file(where, row, "mask", resolve, missing=missing)
    return Sample(image, _cell(row, "class") or "object", label, mask, _cell(row, "kind"))


def _cell(row: Mapping[str, Any], column: str) -> str:
    """Return what a cell says, nothing for the words with which tables are filled where they say nothing."""
    text = "" if row.get(column) is None else str(row[column]).strip()
    return "" if text.lower() in UNKNOWN else text


def _file(
    where: str, row: Mapping[str, Any], column: str, resolve: Callable[[str], Path], *, missing: Missing
) -> Path | None:
    value = row.get(column)
    if not _cell(row, column):
        return None
    if not isinstance(value, str) or "\0" in value:
        raise DataError(f"{where}: {column} is {value!r}, expected a path as text")
    path = resolve(value.strip())
    if column == "mask" and os.path.isdir(path):  # noqa: PTH112
        return path  # one mask in several files
    if not os.path.isfile(path) and "\\" in value:  # noqa: PTH113 (Path.is_file raises on impossible names)
        path = resolve(value.strip().replace("\\", "/"))  # written on Windows
    if missing == "refuse" and not os.path.isfile(path):  # noqa: PTH113
        raise DataError(
            f"{where}: {column} {path} does not exist, paths are relative to the listing file: correct it"
        )
    return path


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # Excel's "Unicode text"
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): check the path and permissions"
        ) from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_document(line)
        except ValueError as error:
            raise DataError(f"{where}: is not valid JSON ({error}), expected one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: holds a {type(row).__name__}, expected an object with the key 'image'")
        yield where, row


def _csv_rows(path: Path) -> Iterator[Row]:
    lines = _text(path).splitlines(keepends=True)
    first = lines[0] if lines else ""
    delimiter = next((mark for mark in (",", ";", "\t") if mark in first), ",")
    if told := re.fullmatch(r"\"?sep=(.)\"?\s*", first, re.IGNORECASE):  # Excel's own first line
        delimiter, lines[0] = told[1], "\n"
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(text.strip() for text in fields):
                continue
            if not header:
                header = [text.strip().lower() for text in fields]
                if len(set(header)) < len(header):
                    raise DataError(f"{where}: a column is named twice in {header}: keep one")
            elif len(fields) != len(header):
                raise DataError(
                    f"{where}: has {len(fields)} fields, expected {len(header)} ({', '.join(header)})"
                )
            else:
                yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: is not valid CSV ({error}): correct it") from error
