"""Layouts of single publications: a list of labels beside the images (HeadCT, ELPV), masks among the images.

KolektorSDD and KolektorSDD2 have a mask beside every image, an empty one where it is normal: there the mask's
content is the label.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from zsad.datasets.layouts import Finding, ParsedLayout, class_layout, split_folder
from zsad.errors import DataError, ZsadError
from zsad.images.inputs import entries, is_image, is_mask_folder, subfolders, walk_images
from zsad.images.masks import is_labelme, load_mask
from zsad.images.open import split_mask_stem
from zsad.types import Sample

_SPLITS = ("train", "test", "val", "valid", "validation")
_BOX = re.compile(r"kos\d+")  # KolektorSDD sorts the one class by the boxes that the parts came in
_CELL = re.compile(r"(?P<image>\S+)\s+(?P<chance>[01](?:\.\d+)?)\s+(?P<silicon>mono|poly)")


def read_published(folder: Path, split: str) -> ParsedLayout | None:
    """Read a folder of one of these layouts, else None.

    Raises:
        DataError: a list of labels that is broken or names files that are not there.
    """
    if (folder / "labels.csv").is_file() and (parsed := _read_labels(folder)):
        return parsed
    inside = subfolders(folder)
    if inside and all(_BOX.fullmatch(path.name.lower()) for path in inside):
        return _read_twins(inside, folder.name)
    part = split_folder(inside, split)
    if part is None and not any(path.name.lower() in _SPLITS or is_mask_folder(path) for path in inside):
        part = folder
    if part is None or subfolders(part):
        return None
    named = folder.parent if folder.name.lower() in _SPLITS else folder
    return _read_annotated(part, named.name) or _read_twins([part], named.name)


def _read_twins(folders: list[Path], class_name: str) -> ParsedLayout | None:
    """Read images with X_GT, X_label or X_mask of the same folder; None where no image has one."""
    samples: list[Sample] = []
    findings: list[Finding] = []
    paired = 0
    for folder in folders:
        masks, images = _split_twins([path for path in entries(folder) if is_image(path)])
        paired += sum(image.stem.lower() in masks for image in images)
        kind = folder.name if len(folders) > 1 else ""
        for image in images:
            sample, finding = _twin(image, masks.pop(image.stem.lower(), []), class_name, kind)
            samples.append(sample)
            findings += [] if finding is None else [finding]
        findings += [
            Finding(path, "mask without an image of its name") for rest in masks.values() for path in rest
        ]
    if not paired or not samples:
        return None
    note = "an image whose mask is empty is taken as normal, as the publishers mean it"
    return class_layout("twins", samples, findings, [note])


def _read_annotated(folder: Path, class_name: str) -> ParsedLayout | None:
    """Read images with labelme's annotations beside them; None where no image has one.

    An annotation without shapes says that the image is normal; an image without annotation has no label.
    """
    images = [path for path in entries(folder) if is_image(path)]
    twins = {path: path.with_suffix(".json") for path in images if is_labelme(path.with_suffix(".json"))}
    if not twins:
        return None
    samples = []
    findings = []
    for image in images:
        sample, finding = _twin(image, [twins[image]] if image in twins else [], class_name, "")
        samples.append(sample)
        findings += [] if finding is None else [finding]
    note = "an image whose annotation holds no shape is taken as normal"
    return class_layout("labelme", samples, findings, [note])


def _split_twins(paths: list[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Masks by the stem of their image, and the images."""
    stems = {path.stem.lower() for path in paths}
    masks: dict[str, list[Path]] = {}
    images = []
    for path in paths:
        owner, ending = split_mask_stem(path.stem.lower())
        if ending and (owner in stems or ending.startswith("_")):
            masks.setdefault(owner, []).append(path)
        else:
            images.append(path)
    return masks, images


def _twin(image: Path, masks: list[Path], class_name: str, kind: str) -> tuple[Sample, Finding | None]:
    if len(masks) != 1:
        reason = (
            "several masks for one image, none is taken"
            if masks
            else "image without the mask that tells its label"
        )
        return Sample(image, class_name, None, None, kind), Finding(image, reason)
    try:
        anomalous = bool(load_mask(masks[0]).any())
    except ZsadError as error:
        return Sample(image, class_name, None, None, kind), Finding(
            masks[0], f"mask cannot be read ({error})"
        )
    return Sample(image, class_name, int(anomalous), masks[0] if anomalous else None, kind), None


def _read_labels(folder: Path) -> ParsedLayout | None:
    """Read a labels.csv of HeadCT (id, hemorrhage) or ELPV (path, probability, silicon); None for any other."""
    table = folder / "labels.csv"
    try:
        lines = [line for line in table.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read ({error}): check the file") from error
    if lines and _CELL.fullmatch(lines[0].strip()):
        return _read_cells(folder, lines)
    header = [text.strip().lower() for text in lines[0].split(",")] if lines else []
    if len(header) == 2 and header[0] == "id":
        return _read_numbered(folder, lines)
    return None


def _read_numbered(folder: Path, lines: list[str]) -> ParsedLayout:
    """Read HeadCT: row `7, 1` is of the image 007.png, wherever below the folder it lies."""
    images: dict[int, list[Path]] = {}
    others = []
    for path in walk_images(folder):
        if path.stem.isdecimal():
            images.setdefault(int(path.stem), []).append(path)
        else:
            others.append(path)
    findings = [Finding(path, "image that labels.csv does not list") for path in others]
    samples = []
    for where, number, label in _numbered_rows(folder / "labels.csv", lines):
        paths = images.pop(number, [])
        if len(paths) != 1:
            what = f"{len(paths)} images are called {number}" if paths else f"no image is called {number}"
            raise DataError(
                f"{where}: {what}, expected exactly one such as {number:03d}.png: unpack the set again"
            )
        kind = "defect" if label else "good"
        samples.append(Sample(paths[0], folder.resolve().name, label, None, kind))
    left = [path for paths in images.values() for path in paths]
    findings += [Finding(path, "image that labels.csv does not list") for path in sorted(left)]
    samples.sort(key=lambda sample: sample.image.as_posix())
    return class_layout("headct", samples, findings)


def _numbered_rows(table: Path, lines: list[str]) -> Iterator[tuple[str, int, int]]:
    for position, fields in enumerate(csv.reader(lines[1:], skipinitialspace=True), start=2):
        where = f"{table}, line {position}"
        texts = [text.strip() for text in fields]
        if len(texts) != 2 or not texts[0].isdecimal() or texts[1] not in ("0", "1"):
            raise DataError(f"{where}: is {','.join(fields)!r}, expected a number and 0 or 1 such as 7, 1")
        yield where, int(texts[0]), int(texts[1])


def _read_cells(folder: Path, lines: list[str]) -> ParsedLayout:
    """Read ELPV: cells on which the experts agreed, a class for each kind of silicon."""
    samples = []
    unsure = 0
    for position, line in enumerate(lines, start=1):
        match = _CELL.fullmatch(line.strip())
        if match is None:
            raise DataError(
                f"{folder / 'labels.csv'}, line {position}: is {line!r}, expected path, probability, mono or poly"
            )
        chance = float(match["chance"])
        if chance not in (0, 1):
            unsure += 1
            continue
        path = folder / match["image"]
        if not path.is_file():
            raise DataError(
                f"{folder / 'labels.csv'}, line {position}: {path} does not exist: unpack the set again"
            )
        kind = "defective" if chance else "good"
        samples.append(Sample(path, f"solar cell {match['silicon']}", int(chance), None, kind, "ELPV"))
    samples.sort(key=lambda sample: (sample.class_name, sample.image.as_posix()))
    note = f"{unsure} cells on which the experts did not agree are left out: they have no label"
    return ParsedLayout("elpv", samples, [note] if unsure else [])
