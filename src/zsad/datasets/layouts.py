"""The folder layouts of the field's data sets, recognised by their folders and file names; nothing is guessed.

MVTec (class/test/kind with class/ground_truth/kind), good against other folders, images/ with masks/, DAGM
(class/Test with Label/ inside), BMAD (kind/img with kind/label) and flat folders; `zsad.datasets.published` has those
with a list of labels or with masks beside the images. Masks are paired by name, never by position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from zsad.datasets.words import ANOMALOUS, NORMAL, letters
from zsad.errors import DataError
from zsad.images.inputs import LeftOut, entries, is_mask_folder, subfolders, walk_images, walk_pairs
from zsad.images.masks import is_labelme, load_mask
from zsad.images.open import MASK_ENDINGS
from zsad.types import Sample

_IMAGES = {"images", "image", "imgs", "img", "rgb", "testimage", "testimages", "original", "jpegimages"}
_SPLITS = {"train", "test", "val", "valid", "validation", "test_public", "test_private", "test_private_mixed"}
_ENDINGS = tuple(dict.fromkeys(e for x in MASK_ENDINGS for e in (x, x.upper(), x.title())))  # _Segmentation
_NAMED_AT_MOST = 20
_MASK_NAME = re.compile(r"(?P<stem>.+)_label\.\w+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """A file with which something is wrong: `reason` says what, in words that go before a path.

    `lost` names the class of which nothing can be read, where that is what is wrong: `class`, or `dataset/class`.
    """

    path: Path
    reason: str
    lost: str = ""


@dataclass(slots=True)
class ParsedLayout:
    """The samples of one folder or file; `is_class` when it is one class rather than a whole data set.

    `findings` are the files among `notes` with which something is wrong, all of them; `ignored_masks` are (image, mask)
    of images that are called normal.
    """

    layout: str
    samples: list[Sample]
    notes: list[str] = field(default_factory=list)
    is_class: bool = False
    findings: list[Finding] = field(default_factory=list)
    ignored_masks: list[tuple[Path, Path]] = field(default_factory=list)


def lost_class(path: Path, name: str) -> Finding:
    """Return the finding on a class that is there by name and has no image."""
    return Finding(path, "class without images", name)


def listed(text: str, paths: Iterable[Path]) -> list[str]:
    """Return one note a path, and one that counts the rest of a long list."""
    named = list(paths)
    rest = [f"{text}: {len(named) - _NAMED_AT_MOST} more"] if len(named) > _NAMED_AT_MOST else []
    return [f"{text}: {path}" for path in named[:_NAMED_AT_MOST]] + rest


def class_layout(
    layout: str,
    samples: list[Sample],
    findings: list[Finding],
    notes: Iterable[str] = (),
    *,
    is_class: bool = True,
) -> ParsedLayout:
    """Return the layout of one class, with notes on the findings behind the others: those of a reason together."""
    by_reason: dict[str, list[Path]] = {}
    for finding in findings:
        by_reason.setdefault(finding.reason, []).append(finding.path)
    noted = [note for reason, paths in by_reason.items() for note in listed(reason, paths)]
    return ParsedLayout(layout, samples, [*notes, *noted], is_class=is_class, findings=findings)


def read_class(folder: Path, split: str) -> ParsedLayout | None:
    """Read a folder that is one class (MVTec, DAGM, good against others, images and masks), else None."""
    inside = subfolders(folder)
    part = split_folder(inside, split)
    masks = [path for path in inside if is_mask_folder(path)]
    if [path.name for path in inside] == ["Data"]:  # VisA's CLASS/Data/Images; the class is not called Data
        return read_class(inside[0], split)
    if part is not None:
        return _read_part(part, folder.name, masks)
    if any(path.name.lower() in _SPLITS and _kind_folders(path) for path in inside):
        note = f"{folder} has no folder {split!r}: left out, choose another split or add the folder"
        findings = [Finding(folder, f"class without a folder {split!r}", folder.name)]
        return ParsedLayout("mvtec", [], [note], is_class=True, findings=findings)
    if folder.name.lower() == split.lower() and not masks:
        masks = [path for path in subfolders(folder.parent) if is_mask_folder(path)]
        if parsed := _read_kinds(folder, folder.parent.name, masks):
            return parsed
    if parsed := _read_kinds(folder, folder.name, masks):
        return parsed
    images = [path for path in inside if _is_image_folder(path)]
    name = folder.parent.name if folder.name == "Data" else folder.name
    if len(images) == 1 and masks:
        return _read_kinds(images[0], name, masks) or _read_pairs(images, name, masks)
    return _read_beside(folder, masks) if masks else None


def split_folder(folders: Iterable[Path], split: str) -> Path | None:
    """Return the folder of a part of a data set; MVTec AD 2 calls the one with labels `test_public`."""
    by_name = {path.name.lower(): path for path in folders}
    return by_name.get(split.lower()) or by_name.get(f"{split.lower()}_public")


def _is_image_folder(path: Path) -> bool:
    return re.sub(r"[^a-z0-9]", "", path.name.lower()) in _IMAGES


def _read_beside(folder: Path, masks: list[Path]) -> ParsedLayout | None:
    """Read folders of any name beside mask folders, all anomalous (Endo, ISIC); None when no mask fits."""
    images = _kind_folders(folder)
    if any("test" in path.name.lower() for path in images):
        images = [path for path in images if "test" in path.name.lower()]
        masks = [path for path in masks if "test" in path.name.lower()] or masks
    parsed = _read_pairs(images, folder.name, masks)
    return parsed if parsed is not None and any(sample.mask for sample in parsed.samples) else None


def read_flat(folder: Path) -> ParsedLayout:
    """Read every image below a folder, without labels."""
    left_out = LeftOut()
    samples = [
        Sample(path, kind=path.parent.name if path.parent != folder else "")
        for path in walk_images(folder, skip_masks=True, left_out=left_out)
    ]
    notes = ["no folder is named good, ok or normal: labels are not known, no metric can be computed"]
    return ParsedLayout("flat", samples, notes + left_out.notes())


def _kind_folders(folder: Path) -> list[Path]:
    """Return the folders inside that hold images and no masks."""
    return [
        path
        for path in subfolders(folder)
        if not is_mask_folder(path) and next(walk_images(path), None) is not None
    ]


def _read_part(part: Path, class_name: str, masks: list[Path]) -> ParsedLayout | None:
    """Read class/test of MVTec and its kin, or class/Test of DAGM."""
    kinds = _kind_folders(part)
    label_folders = [path for path in subfolders(part) if is_mask_folder(path)]
    if not kinds and label_folders:
        return _read_dagm(part, class_name, label_folders)
    if not kinds:
        parsed = read_flat(part)
        samples = [replace(sample, class_name=class_name) for sample in parsed.samples]
        findings = [] if samples else [lost_class(part, class_name)]
        notes = parsed.notes if samples else [f"{part} holds no images"]
        return ParsedLayout("flat", samples, notes, is_class=True, findings=findings)
    if not masks and not any(_is_normal(kind, kinds) for kind in subfolders(part)):
        samples = [Sample(p, class_name, kind=kind.name) for kind in kinds for p in walk_images(kind)]
        note = f"{part} has neither a folder good, ok or normal nor masks: labels are not known"
        return ParsedLayout("flat", samples, [note], is_class=True)
    return _labelled("mvtec", kinds, class_name, masks + label_folders)


def _read_kinds(folder: Path, class_name: str, masks: list[Path]) -> ParsedLayout | None:
    """Read folder/{good,...}; None when no folder has a normal name."""
    kinds = _kind_folders(folder)
    names = {kind.name.lower() for kind in kinds}
    # An empty folder good/ says that all others are anomalous, just as a filled one does.
    if not kinds or not any(_is_normal(kind, kinds) for kind in subfolders(folder)):
        return None
    notes = []
    if {"yes", "no"} <= names | {path.name.lower() for path in subfolders(folder)} and "yes" in names:
        notes = [f"ignored beside yes/ and no/: {k}" for k in kinds if k.name.lower() not in ("yes", "no")]
        kinds = [kind for kind in kinds if kind.name.lower() in ("yes", "no")]
    parsed = _labelled("folders", kinds, class_name, masks)
    parsed.notes = notes + parsed.notes
    return parsed


def _is_normal(kind: Path, kinds: list[Path]) -> bool:
    name = letters(kind.name)
    return name in NORMAL or (name == "no" and any(other.name.lower() == "yes" for other in kinds))


def _labelled(layout: str, kinds: list[Path], class_name: str, masks: list[Path]) -> ParsedLayout:
    """Turn kind folders into samples: normal by the folder's name, anomalous otherwise, masks by stem.

    A folder such as NG/ or bad/ may hold a folder for each kind (Real-IAD).
    """
    pairing = MaskIndex(masks)
    samples = []
    findings: list[Finding] = []
    left_out = LeftOut()
    ignored: list[tuple[Path, Path]] = []
    beside = 0
    for kind in kinds:
        normal = _is_normal(kind, kinds)
        if inner := [path for path in subfolders(kind) if is_mask_folder(path)]:
            layout = "bmad"
            part = _read_inner(kind, class_name, inner, label=0 if normal else 1)
            samples += part.samples
            findings += part.findings
            continue
        for path, twin in walk_pairs(kind, left_out=left_out):
            relative = path.relative_to(kind)
            twin = twin or _labelme_twin(path)
            mask = pairing.find(relative, kind.name, only_in_kind=normal) or twin
            beside += twin is not None
            if normal and mask is not None:
                ignored.append((path, mask))
                mask = None
            deeper = letters(kind.name) in ANOMALOUS and len(relative.parts) > 1
            name = relative.parts[0] if deeper else kind.name
            samples.append(Sample(path, class_name, 0 if normal else 1, mask, name))
    anomalous = {kind.name for kind in kinds if not _is_normal(kind, kinds)}
    findings += pairing.findings(samples, anomalous)
    notes = left_out.notes()
    if beside:
        notes.append(f"{beside} mask{'s' * (beside > 1)} beside the images of {class_name}, paired by name")
    parsed = class_layout(layout, samples, findings, notes)
    parsed.ignored_masks = ignored
    return parsed


def _labelme_twin(image: Path) -> Path | None:
    """Return labelme's annotation beside an image, None where there is none with shapes in it."""
    twin = image.with_suffix(".json")
    return twin if is_labelme(twin) and load_mask(twin).any() else None


def _read_inner(kind: Path, class_name: str, masks: list[Path], *, label: int) -> ParsedLayout:
    """Read a kind folder that holds its own masks: BMAD's kind/img with kind/label, MVTec 3D's kind/rgb with gt."""
    named = [path for path in subfolders(kind) if _is_image_folder(path)]
    folder = named[0] if len(named) == 1 else kind
    pairing = MaskIndex(masks)
    samples = []
    for path in walk_images(folder, skip_masks=True):
        mask = pairing.find(path.relative_to(folder), "")
        samples.append(Sample(path, class_name, label, mask if label else None, kind.name))
    return ParsedLayout("bmad", samples, findings=pairing.findings(samples, None))


def _read_pairs(folders: list[Path], class_name: str, masks: list[Path]) -> ParsedLayout | None:
    """Read images/ with masks/: all anomalous."""
    pairing = MaskIndex(masks)
    samples = [
        Sample(path, class_name, 1, pairing.find(path.relative_to(folder), ""))
        for folder in folders
        for path in walk_images(folder)
    ]
    if not samples:
        return None
    return class_layout("folders", samples, pairing.findings(samples, None))


def _read_dagm(part: Path, class_name: str, masks: list[Path]) -> ParsedLayout | None:
    """Read DAGM's Test folder, where exactly the anomalous images have a file in Label/."""
    pairing = MaskIndex(masks)
    named = _named_masks(masks)
    samples = []
    missing = []
    for path in walk_images(part, skip_masks=True):
        mask = pairing.find(path.relative_to(part), "")
        defect = mask is not None or path.stem.lower() in named
        if defect and mask is None:
            missing.append(Finding(path, "anomalous image without the mask that Labels.txt names"))
        samples.append(Sample(path, class_name, int(defect), mask, "defect" if defect else "good"))
    notes = [f"{part}: images without a file in {masks[0].name}/ are taken as normal, as DAGM means it"]
    return class_layout("dagm", samples, missing + pairing.leftovers(None), notes) if samples else None


def _named_masks(folders: list[Path]) -> set[str]:
    """Return the images, by lower-case stem, whose masks DAGM's Labels.txt names; not every copy has that list."""
    stems: set[str] = set()
    for path in (path for folder in folders for path in entries(folder) if path.name.lower() == "labels.txt"):
        try:
            words = path.read_text(encoding="utf-8", errors="replace").split()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
        stems.update(m["stem"].lower() for m in map(_MASK_NAME.fullmatch, words) if m)
    return stems


class MaskIndex:
    """Masks by their path without suffix below the mask folders; remembers which were used."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._by_key: dict[str, list[Path]] = {}
        self._parts: dict[str, list[Path]] = {}
        self._used: set[Path] = set()
        self._ambiguous: list[Path] = []
        self._shared: list[Path] = []
        for folder in folders:
            for path in walk_images(folder):
                relative = path.relative_to(folder)
                self._by_key.setdefault(relative.with_suffix("").as_posix(), []).append(path)
                self._parts.setdefault(relative.parent.as_posix(), []).append(path)

    def find(self, relative: Path, kind: str, *, only_in_kind: bool = False) -> Path | None:
        """Return the one mask of an image, given its path below its kind folder, else None.

        A folder of the image's name is one mask in several files (MVTec LOCO). With `only_in_kind`, masks of other
        kinds with the same name do not count.
        """
        stem = PurePosixPath(relative.as_posix()).with_suffix("")
        has_kinds = bool(kind) and any((folder / kind).is_dir() for folder in self._folders)
        if only_in_kind and not has_kinds:
            return None
        key = f"{kind}/{stem}" if has_kinds else str(stem)
        for ending in ("", *_ENDINGS):
            candidates = self._by_key.get(key + ending, [])
            if len(candidates) == 1:
                if candidates[0] in self._used:
                    self._shared.append(candidates[0])
                self._used.add(candidates[0])
                return candidates[0]
            if candidates:
                self._ambiguous += [path for path in candidates if path not in self._ambiguous]
                return None
        parts = self._parts.get(key, [])
        self._used.update(parts)
        return parts[0].parent if len({part.parent for part in parts}) == 1 else None

    def leftovers(self, kinds: set[str] | None) -> list[Finding]:
        """Return the masks without image; `kinds` restricts this to the folders of these kinds."""
        taken = self._used.union(self._ambiguous)
        unused = []
        for key in sorted(self._by_key):
            top = key.split("/")[0]
            foreign = kinds is not None and "/" in key and top not in kinds
            unused += [p for p in self._by_key[key] if not foreign and p not in taken]
        ambiguous = [Finding(p, "several masks for one image, none is taken") for p in self._ambiguous]
        twice = [Finding(p, "mask of several images of one name") for p in self._shared]
        return ambiguous + twice + [Finding(p, "mask without an image of its name") for p in unused]

    def findings(self, samples: list[Sample], kinds: set[str] | None) -> list[Finding]:
        """Return anomalous images without mask while others have one, and masks without image."""
        anomalous = [sample for sample in samples if sample.label == 1]
        if not anomalous or not self._by_key:
            return []
        reason = "anomalous image without a mask of its name"
        missing = [Finding(sample.image, reason) for sample in anomalous if sample.mask is None]
        return missing + self.leftovers(kinds)
