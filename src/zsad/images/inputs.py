"""Image files: those in folders, and those that a user names by paths, folders and patterns."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from zsad.errors import DataError
from zsad.images.address import IMAGE_SUFFIXES, numbered, split_address
from zsad.images.open import page_count
from zsad.types import Sample

_MASKS = {"masks", "mask", "gt", "testmask", "testmasks", "label", "labels", "annotations", "segmentation"}
_MASKS |= {"anomalymask", "anomalymasks"}


def expand_inputs(inputs: Sequence[str | Path]) -> list[Sample]:
    """Return one sample an image file for images, folders (searched to the bottom) and glob patterns.

    The result is sorted by path and holds every real file once, of TIFF and DICOM files with several pictures an
    address for each (`scan.tif#2`). Left out are hidden files and, inside folders, folders of masks (masks,
    ground_truth, ...). A file that exists is taken by its name even if that looks like a pattern.

    Raises:
        DataError: an input that does not exist, or holds or matches no image.
    """
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    if not inputs:
        raise DataError("no input given: name images, folders or patterns such as 'parts/*.png'")
    files: dict[str, Path] = {}
    for path in sorted((p for given in inputs for p in _images_of(given)), key=lambda p: p.as_posix()):
        files.setdefault(os.path.normcase(os.path.realpath(path)), path)
    samples = []
    for path in files.values():
        count = page_count(path)
        addresses = [path] if count == 1 else [Path(numbered(path, page + 1)) for page in range(count)]
        samples += [Sample(address) for address in addresses]
    return samples


def _images_of(given: str | Path) -> list[Path]:
    path = Path(given).expanduser()
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises on impossible names)
        images = list(walk_images(path, skip_masks=True))
        if not images:
            raise DataError(f"{path} holds no images: name a folder with images")
        return images
    if os.path.lexists(path) or split_address(path)[1] is not None:
        return [path]  # also of another kind, or a link that leads nowhere: the reader says what it is
    if not glob.has_magic(str(path)):
        raise DataError(f"{path} does not exist: check the path")
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (absolute patterns)
    images = [match for match in matches if is_image(match)]
    if not images:
        images = [
            image for match in matches if match.is_dir() for image in walk_images(match, skip_masks=True)
        ]
    if not images:
        raise DataError(f"no image matches {path}: check the pattern")
    return images


def is_hidden(name: str) -> bool:
    """True for what operating systems leave behind: dot files, `._*` twins, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def entries(folder: Path) -> list[Path]:
    """Return the visible entries of a folder, sorted by name.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        return sorted((p for p in folder.iterdir() if not is_hidden(p.name)), key=lambda p: p.name)
    except OSError as error:
        raise DataError(
            f"folder {folder} cannot be listed ({error.strerror}): check its permissions"
        ) from error


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders directly inside a folder, sorted by name."""
    return [path for path in entries(folder) if path.is_dir()]


def is_image(path: Path) -> bool:
    """True for a file whose suffix is one of the known image formats."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _is_dead_link(path: Path) -> bool:
    """True for a link of an image's name that leads nowhere: to be reported, not passed over."""
    return path.is_symlink() and path.suffix.lower() in IMAGE_SUFFIXES and not os.path.exists(path)  # noqa: PTH110


def walk_images(folder: Path, *, skip_masks: bool = False) -> Iterator[Path]:
    """Yield the images below a folder in a fixed order; every real folder is entered once, so loops end.

    Links that lead nowhere are yielded, so that whoever reads them says so.
    """
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        inside = entries(current)
        yield from (path for path in inside if is_image(path) or _is_dead_link(path))
        deeper = [path for path in inside if path.is_dir() and not (skip_masks and is_mask_folder(path))]
        pending.extend(reversed(deeper))


def is_mask_folder(path: Path) -> bool:
    """True for the folder names under which masks are published (masks, ground_truth, GT, Label, ...)."""
    name = re.sub(r"[^a-z0-9]", "", path.name.lower())
    return name in _MASKS or "groundtruth" in name
