"""`discover`: the images, labels and masks that a folder or a listing file holds."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from zsad.datasets.layouts import Finding, ParsedLayout, listed, lost_class, read_class, read_flat
from zsad.datasets.listings import Missing, read_manifest, read_meta, read_visa
from zsad.datasets.published import read_published
from zsad.errors import DataError
from zsad.images.decode import image_size
from zsad.images.inputs import is_hidden, is_image, is_mask_folder, subfolders, walk_images
from zsad.images.masks import mask_parts, mask_size
from zsad.types import Sample

_DEPTH = 2  # a root of data sets, each with classes


@dataclass(slots=True)
class DataSet:
    """The samples of a data set (or of several), and notes on them.

    `findings` are the files with which something is wrong, as far as names tell; `zsad.datasets.check` looks inside.
    `ignored_masks` are (image, mask) of images that are called normal.
    """

    samples: list[Sample]
    layout: str
    root: Path
    name: str
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    ignored_masks: list[tuple[Path, Path]] = field(default_factory=list)

    @property
    def lost(self) -> list[str]:
        """Classes that are there by name and have no image, named as in `groups`, sorted."""
        several = len({sample.dataset for sample in self.samples}) > 1
        names = {finding.lost for finding in self.findings if finding.lost}
        return sorted(names if several else {name.rpartition("/")[2] for name in names})

    @property
    def classes(self) -> list[str]:
        """Class names, sorted."""
        return sorted({sample.class_name for sample in self.samples})

    @property
    def has_labels(self) -> bool:
        """True when every sample is known to be normal or anomalous."""
        return all(sample.label is not None for sample in self.samples)

    @property
    def has_masks(self) -> bool:
        """True when at least one sample has a pixel mask."""
        return any(sample.mask is not None for sample in self.samples)

    def groups(self) -> dict[str, list[Sample]]:
        """Return the samples by class; keys are `class`, or `dataset/class` when there are several sets."""
        several = len({sample.dataset for sample in self.samples}) > 1
        grouped: dict[str, list[Sample]] = {}
        for sample in self.samples:
            key = f"{sample.dataset}/{sample.class_name}" if several else sample.class_name
            grouped.setdefault(key, []).append(sample)
        return dict(sorted(grouped.items()))

    def image_metric_classes(self) -> list[str]:
        """Return the groups with normal and anomalous images: only there AUROC and its kin are defined."""
        return [key for key, group in self.groups().items() if {0, 1} <= {sample.label for sample in group}]

    def pixel_metric_classes(self) -> list[str]:
        """Return the groups in which every anomalous image has a mask, and there is at least one."""
        return [key for key, group in self.groups().items() if _fully_masked(group)]

    def describe(self) -> list[str]:
        """Return lines for a human: counts, which metrics can be computed, and the notes."""
        groups = self.groups()
        normal, anomalous, unknown = (sum(s.label == value for s in self.samples) for value in (0, 1, None))
        masks = sum(sample.mask is not None for sample in self.samples)
        counts = [f"{len(groups)} class{'' if len(groups) == 1 else 'es'}"]
        if normal or anomalous:
            counts += [f"{normal} normal", f"{anomalous} anomalous"]
        if unknown:
            counts.append(f"{unknown} without label")
        counts.append(f"{masks} mask{'' if masks == 1 else 's'}")
        return [
            ", ".join(counts),
            f"image metrics: {_share(self.image_metric_classes(), groups)}",
            f"pixel metrics: {_share(self.pixel_metric_classes(), groups)}",
            *self.notes,
        ]

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits over names, labels, masks and file sizes, wherever the root lies."""
        digest = hashlib.sha256()
        for sample in sorted(self.samples, key=lambda s: (s.dataset, s.class_name, s.image.as_posix())):
            row = [sample.dataset, sample.class_name, sample.label, sample.kind]
            for path in (sample.image, sample.mask):
                row += [None, None] if path is None else [self._relative(path), _file_size(path)]
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()[:16]

    def _relative(self, path: Path) -> str:
        base = self.root if self.root.is_dir() else self.root.parent
        try:
            return Path(os.path.relpath(path, base)).as_posix()
        except ValueError:  # another drive on Windows
            return path.as_posix()


def discover(path: str | Path, *, split: str = "test", missing: Missing = "refuse") -> DataSet:
    """Find the samples of a folder or of a listing file.

    Understood are: `meta.json`, VisA's `split_csv/1cls.csv`, MVTec's class/test/kind with
    class/ground_truth/kind, DAGM's class/Test with Label/, BMAD's kind/img with kind/label, good|ok|normal (or no
    with yes) against other folders, images/ with masks/, masks beside their images (KolektorSDD and its successor),
    the labels.csv of HeadCT and ELPV, roots of several such classes or data sets, flat folders (no labels), and
    manifests in JSONL or CSV with the columns image, mask, label, class, kind.

    Args:
        path: a folder, a meta.json, or a manifest.
        split: which part to read, where the layout has parts.
        missing: what becomes of files that a listing names and that are not there: "refuse", or "keep" for
            those who report every broken file and go on.

    Raises:
        DataError: nothing there, nothing usable in it, or a listing that is broken or lists missing files.
    """
    root = Path(path).expanduser()
    if len(root.name) > 255 or "\0" in str(root):
        raise DataError(f"{str(root)[:60]!r}... is no possible path: check it")
    name = root.resolve().name or "data"
    if root.is_dir():
        parsed = _find(root, name, split, _DEPTH, missing) or _flat(root)
    elif root.is_file():
        name = root.resolve().parent.name if root.suffix.lower() == ".json" else root.stem
        parsed = _read_file(root, split, missing)
    else:
        raise DataError(f"{root} does not exist: check the path")
    if not parsed.samples:
        raise DataError("; ".join([f"{root} holds no usable image", *parsed.notes[:3]]))
    samples = [sample if sample.dataset else replace(sample, dataset=name) for sample in parsed.samples]
    data = DataSet(samples, parsed.layout, root, name, parsed.notes, parsed.findings, parsed.ignored_masks)
    data.notes = data.notes + _metric_notes(data)
    return data


def check_mask(sample: Sample) -> None:
    """Compare the size of a sample's mask with its image's, from the headers alone.

    Raises:
        DataError: the sizes differ; both files are named.
        ImageError: a file whose header cannot be read.
    """
    if sample.mask is None:
        return
    mask, image = mask_size(sample.mask), image_size(sample.image)
    if mask != image:
        raise DataError(
            f"mask {sample.mask} is {mask[1]}x{mask[0]} px, its image {sample.image} is {image[1]}x{image[0]}: "
            "a mask must have the size of its image, export the mask again"
        )


def _read_file(path: Path, split: str, missing: Missing) -> ParsedLayout:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_meta(path, split, missing=missing)
    if suffix in (".jsonl", ".ndjson", ".csv"):
        if path.name == "1cls.csv" and path.parent.name == "split_csv":
            return read_visa(path.parent.parent, path, split, missing=missing)
        return read_manifest(path, missing=missing)
    kind = "an image" if is_image(path) else f"a file of unknown type {suffix!r}"
    raise DataError(f"{path} is {kind}, expected a folder, meta.json, or a manifest (.jsonl, .csv)")


def _find(folder: Path, name: str, split: str, depth: int, missing: Missing) -> ParsedLayout | None:
    """Read a data set or a root of such; None when no labelled layout is recognised."""
    table = folder / "split_csv" / "1cls.csv"
    if (folder / "meta.json").is_file():
        return read_meta(folder / "meta.json", split, missing=missing)
    if table.is_file():
        return read_visa(folder, table, split, missing=missing)
    if parsed := read_published(folder, split) or read_class(folder, split):
        return parsed
    if depth == 0:
        return None
    parts: list[ParsedLayout] = []
    ignored: list[Path] = []
    emptied: list[Path] = []
    for child in subfolders(folder):
        part = None if is_mask_folder(child) else _find(child, child.name, split, depth - 1, missing)
        if part is None:
            ignored += [child] if next(walk_images(child), None) else []
            emptied += [child] if _is_bare(child) else []
            continue
        owner = name if part.is_class else child.name
        part.findings = [
            replace(f, lost=f"{owner}/{f.lost}") if f.lost and "/" not in f.lost else f for f in part.findings
        ]
        part.samples = [s if s.dataset else replace(s, dataset=owner) for s in part.samples]
        parts.append(part)
    if not parts:
        return None
    layouts = sorted({part.layout for part in parts if part.samples}) or [parts[0].layout]
    notes = [note for part in parts for note in part.notes] + listed(
        "folder of no known layout, ignored", ignored
    )
    samples = [sample for part in parts for sample in part.samples]
    findings = [finding for part in parts for finding in part.findings]
    if any(part.is_class for part in parts):
        findings += [lost_class(path, f"{name}/{path.name}") for path in emptied]
    ignored_masks = [pair for part in parts for pair in part.ignored_masks]
    return ParsedLayout(" + ".join(layouts), samples, notes, findings=findings, ignored_masks=ignored_masks)


def _is_bare(folder: Path) -> bool:
    """Return True for a folder with folders, but no file, in it: among classes a class that was emptied."""
    return not is_mask_folder(folder) and not any(
        path.is_file() and not is_hidden(path.name) for path in folder.rglob("*")
    )


def _flat(root: Path) -> ParsedLayout:
    parsed = read_flat(root)
    if not parsed.samples:
        raise DataError(f"{root} holds no images: expected images in it, or folders such as class/test/good")
    return parsed


def _metric_notes(data: DataSet) -> list[str]:
    """Return notes on undefined metrics."""
    notes = []
    for key, group in data.groups().items():
        labels = [sample.label for sample in group]
        if None in labels:
            notes.append(
                f"class {key}: {labels.count(None)} of {len(labels)} images without label: no image metrics"
            )
        elif 0 not in labels:
            notes.append(f"class {key} has no normal image: image metrics are undefined for it")
        elif 1 not in labels:
            notes.append(f"class {key} has no anomalous image: image and pixel metrics are undefined for it")
        if 1 in labels and not _fully_masked(group):
            bare = sum(sample.label == 1 and sample.mask is None for sample in group)
            notes.append(
                f"class {key}: {bare} of {labels.count(1)} anomalous images without mask: no pixel metrics"
            )
    return notes


def _fully_masked(group: list[Sample]) -> bool:
    anomalous = [sample for sample in group if sample.label == 1]
    return bool(anomalous) and all(sample.mask is not None for sample in anomalous)


def _share(able: list[str], groups: dict[str, list[Sample]]) -> str:
    if len(able) == len(groups):
        return "all classes"
    return f"{len(able)} of {len(groups)} classes" if able else "none"


def _file_size(path: Path) -> int:
    """Bytes of a file, or of the files of a mask in several parts; -1 for one that is not there."""
    try:
        return sum(p.stat().st_size for p in mask_parts(path)) if path.is_dir() else path.stat().st_size
    except OSError:
        return -1
