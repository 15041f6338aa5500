"""Faults of a data set's files, found once before methods are measured on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from zsad.datasets.check import misnamed
from zsad.datasets.manifest import DataSet, check_mask
from zsad.errors import ImageError, ZsadError
from zsad.files import write_json
from zsad.images.masks import mask_size
from zsad.studies.benchmark.cell_results import FileProblem
from zsad.types import Sample

_PHOTO_LEVELS, _PHOTO_SHARE = 64, 0.98


@dataclass(frozen=True, slots=True)
class Fault:
    """A file of a sample that cannot be used.

    `kind` says what its class cannot be measured by: without an image nothing, without a mask no pixel metric.
    """

    sample: Sample
    kind: Literal["image", "mask"]
    path: str
    reason: str

    @property
    def problem(self) -> FileProblem:
        """The fault as it stands in a result."""
        return FileProblem(path=self.path, reason=self.reason)


def masked(data: DataSet, *, folder: Path, workers: int) -> tuple[DataSet, list[Fault]]:
    """Return a data set less the masks that cannot be used, and the fault of each.

    Args:
        data: with labels or masks.
        folder: of files with the faults of each data set, so that each is checked once.
        workers: threads that read files.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = folder / f"{data.fingerprint()}.json"
    reasons_by_mask = _kept(path)
    if reasons_by_mask is None:
        checked = [sample for sample in data.samples if sample.label != 0 and sample.mask is not None]
        with ThreadPoolExecutor(workers, thread_name_prefix="zsad-mask") as pool:
            reasons = list(pool.map(_mask_fault, checked))
        crossed = {sample.image for sample in _crossed(data)}
        reasons = [
            reason or (_not_its_own(sample) if sample.image in crossed else None)
            for sample, reason in zip(checked, reasons, strict=True)
        ]
        reasons_by_mask = {
            _name(sample, data): reason
            for sample, reason in zip(checked, reasons, strict=True)
            if reason is not None
        }
        write_json(path, reasons_by_mask)
    faults = [
        Fault(sample, "mask", str(sample.mask), reasons_by_mask[_name(sample, data)])
        for sample in data.samples
        if sample.label != 0 and _name(sample, data) in reasons_by_mask
    ]
    if not faults:
        return data, []
    unmasked = {fault.sample for fault in faults}
    samples = [replace(sample, mask=None) if sample in unmasked else sample for sample in data.samples]
    return replace(data, samples=samples), faults


def of_the_set(data: DataSet, faults: Sequence[Fault]) -> Iterator[FileProblem]:
    """Yield problems of a data set beside its samples' `faults`: files without a pair, classes without normals.

    A data set in which no class has normal images is so by its nature, and nothing is wrong with it.
    """
    named = {fault.path for fault in faults} | {str(fault.sample.image) for fault in faults}
    for finding in data.findings:
        if str(finding.path) not in named:
            yield FileProblem(path=str(finding.path), reason=finding.reason)
    lacking = without_normals(data)
    if len(lacking) < len(data.groups()):
        for name, folder in lacking.items():
            yield FileProblem(
                path=folder, reason=f"class {name} has no normal image: image metrics are undefined"
            )


def without_normals(data: DataSet) -> dict[str, str]:
    """Return classes of which all images are anomalous, with the folder that holds these."""
    return {
        name: os.path.commonpath([sample.image.parent for sample in group])
        for name, group in data.groups().items()
        if {sample.label for sample in group} == {1}
    }


def missing_masks(data: DataSet) -> Iterator[Fault]:
    """Yield anomalous images without a mask, in classes where others have one."""
    for group in data.groups().values():
        anomalous = [sample for sample in group if sample.label == 1]
        if any(sample.mask is not None for sample in anomalous):
            for sample in anomalous:
                if sample.mask is None:
                    yield Fault(sample, "mask", str(sample.image), "anomalous, but has no mask")


def _mask_fault(sample: Sample) -> str | None:
    """Return the reason why a mask cannot be used, or None; an unreadable image is found elsewhere."""
    if sample.mask is None:
        return None
    try:
        mask_size(sample.mask)
    except ZsadError as error:
        return str(error)
    try:
        check_mask(sample)
    except ImageError:
        pass
    except ZsadError as error:
        return str(error)
    return _looks_like_a_photo(sample.mask)


def _crossed(data: DataSet) -> Iterator[Sample]:
    """Yield samples with the mask of another image, in classes whose masks mostly have the names of their images."""
    for group in data.groups().values():
        crossed = list(misnamed(group))
        if 2 * len(crossed) <= sum(sample.mask is not None for sample in group):
            yield from crossed


def _not_its_own(sample: Sample) -> str:
    return f"{sample.mask} is by its name not the mask of {sample.image}: swapped?"


def _looks_like_a_photo(mask: Path) -> str | None:
    """Return the reason if a "mask" has many grey levels and hardly a zero: picture and mask are swapped."""
    from PIL import Image

    if mask.is_dir() or mask.suffix.lower() == ".json":
        return None
    try:
        with Image.open(mask) as picture:
            levels = np.bincount(np.asarray(picture.convert("L")).ravel(), minlength=256)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{mask} cannot be read as a mask ({error}): export it again"
    filled = 1 - levels[0] / levels.sum()
    if int((levels > 0).sum()) < _PHOTO_LEVELS or filled < _PHOTO_SHARE:
        return None
    return (
        f"{mask} has {int((levels > 0).sum())} grey levels and {100 * filled:.0f} % of it is not 0: "
        f"no mask but a picture; are image and mask swapped?"
    )


def _name(sample: Sample, data: DataSet) -> str:
    """Return a mask's name relative to its data set."""
    return "" if sample.mask is None else relative(sample.mask, data)


def relative(path: Path, data: DataSet) -> str:
    """Return a file's path from its data set's folder, with forward slashes."""
    base = data.root if data.root.is_dir() else data.root.parent
    try:
        return Path(os.path.relpath(path, base)).as_posix()
    except ValueError:  # another drive on Windows
        return path.as_posix()


def _kept(path: Path) -> dict[str, str] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
