"""Many images: the files that a user names, and reading ahead of them in constant memory.

Files are named by paths, folders and patterns. Threads decode ahead, results and batches come out in order.
"""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from zsad.errors import ConfigError, DataError, InputWarning, ZsadError
from zsad.images.decode import read_image
from zsad.images.open import (
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    LABELME_FOLDER,
    MASK_ENDINGS,
    VIDEO_SUFFIXES,
    content_format,
    is_heat_map,
    numbered,
    page_count,
    split_address,
)
from zsad.images.picture import Preprocess
from zsad.images.pixels import PLAIN, Reading
from zsad.types import Sample

_MASKS = {"masks", "mask", "gt", "testmask", "testmasks", "label", "labels", "annotations", "segmentation"}
_MASKS |= {"anomalymask", "anomalymasks"}
# Folders that operating systems and network storage keep for themselves: thumbnails, deleted files.
_SYSTEM = {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information"}
_SYSTEM |= {"lost+found", "@tmp", "#snapshot", "@sharebin"}
# Files of which one alone (or all together) say that zsad wrote the folder.
_RESULTS = (("run.json", "predictions.jsonl"), ("run.json", "log.jsonl"), ("explain.json",), ("cells.json",))
_SHOWN = 5
_PREFETCHED_BATCHES = 2

Pixels = npt.NDArray[np.float32]
Size = tuple[int, int]
Item = TypeVar("Item")
Result = TypeVar("Result")
_Readable = tuple[Pixels, Size]
_Reader = Callable[[Sample], _Readable | ZsadError]


@dataclass(slots=True)
class LeftOut:
    """Files and folders that were seen and not taken as images, by reason."""

    paths: dict[str, list[Path]] = field(default_factory=dict)

    def add(self, reason: str, path: Path) -> None:
        """Count one more file or folder."""
        self.paths.setdefault(reason, []).append(path)

    def notes(self) -> list[str]:
        """Return one line for each reason, the first files named; files of unknown formats are counted by suffix."""
        lines = []
        for reason, paths in self.paths.items():
            if reason == _UNKNOWN:
                suffixes = Counter(path.suffix.lower() or "without suffix" for path in paths)
                what = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))
            else:
                what = ", ".join(str(path) for path in paths[:_SHOWN])
                what += f" and {len(paths) - _SHOWN} more" * (len(paths) > _SHOWN)
            lines.append(f"left out, {reason}: {what}")
        return lines


_UNKNOWN = "of no known image format"
_HEIF = "HEIC is read where the package pillow-heif is installed (pip install pillow-heif)"


def expand_inputs(inputs: Sequence[str | Path]) -> list[Sample]:
    """Return one sample an image file for images, folders (searched to the bottom) and glob patterns.

    The result is sorted by path and holds every real file once, of TIFF and DICOM files with several pictures an
    address for each (`scan.tif#2`). Of folders are left out: hidden and system files, folders of masks (masks,
    ground_truth, ...), masks beside their images, and what zsad wrote (runs, reports, heat maps). A file that exists
    is taken by its name even if that looks like a pattern. An `InputWarning` names what was left out.

    Raises:
        DataError: an input that does not exist, or holds or matches no image.
    """
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    if not inputs:
        raise DataError("no input given: name images, folders or patterns such as 'parts/*.png'")
    left_out = LeftOut()
    files: dict[str, Path] = {}
    images = (path for given in inputs for path in _images_of(given, left_out))
    for path in sorted(images, key=lambda p: p.as_posix()):
        files.setdefault(os.path.normcase(os.path.realpath(path)), path)
    for line in left_out.notes():
        warnings.warn(line, InputWarning, stacklevel=2)
    samples = []
    for path in files.values():
        count = page_count(path)
        addresses = [path] if count == 1 else [Path(numbered(path, page + 1)) for page in range(count)]
        samples += [Sample(address) for address in addresses]
    return samples


def _images_of(given: str | Path, left_out: LeftOut) -> list[Path]:
    path = Path(given).expanduser()
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises on impossible names)
        images = list(walk_images(path, skip_masks=True, left_out=left_out))
        if not images:
            rest = "".join(f"; {note}" for note in left_out.notes())
            raise DataError(f"{path} holds no images: name a folder with images{rest}")
        return images
    if os.path.lexists(path) or split_address(path)[1] is not None:
        return [path]  # also of another kind, or a link that leads nowhere: the reader says what it is
    if not glob.has_magic(str(path)):
        raise DataError(f"{path} does not exist: check the path")
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (absolute patterns)
    images = [match for match in matches if is_image(match)]
    for folder in matches if not images else ():
        if folder.is_dir():
            images += walk_images(folder, skip_masks=True, left_out=left_out)
    if not images:
        raise DataError(f"no image matches {path}: check the pattern")
    return images


def is_hidden(name: str) -> bool:
    """True for what operating systems and network storage leave behind: dot files, `__MACOSX`, `@eaDir`."""
    return name.startswith(".") or name.lower() in _SYSTEM


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
    """Return the visible folders directly inside a folder that zsad did not write, sorted by name."""
    return [path for path in entries(folder) if path.is_dir() and not is_result_folder(path)]


def is_result_folder(folder: Path) -> bool:
    """True for a folder that zsad wrote: a run with its heat maps, an explanation, a benchmark."""
    return any(all((folder / name).is_file() for name in names) for names in _RESULTS)


def is_image(path: Path) -> bool:
    """True for a file in one of the known image formats: by its suffix, without one by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and find_spec("pillow_heif") is not None):
        return path.is_file()
    if suffix in VIDEO_SUFFIXES | HEIF_SUFFIXES or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False  # DICOMDIR is the index of a disc
    kind = content_format(path)
    # A suffix that is a number is part of a name such as a DICOM UID. Other suffixes are those of other formats, of
    # which raw photos begin as TIFF and hold a thumbnail first.
    return kind == "DICOM" or (kind is not None and (not suffix or suffix[1:].isdecimal()))


def _is_dead_link(path: Path) -> bool:
    """True for a link of an image's name that leads nowhere: to be reported, not passed over."""
    return path.is_symlink() and path.suffix.lower() in IMAGE_SUFFIXES and not os.path.exists(path)  # noqa: PTH110


def walk_images(folder: Path, *, skip_masks: bool = False, left_out: LeftOut | None = None) -> Iterator[Path]:
    """Yield the images below a folder in a fixed order; every real folder is entered once, so loops end.

    Links that lead nowhere are yielded, so that whoever reads them says so.

    Args:
        folder: searched to the bottom, but for folders that zsad wrote.
        skip_masks: leave out folders of masks, and masks beside their images.
        left_out: receives what was seen and not yielded.
    """
    for image, mask in walk_pairs(folder, skip_masks=skip_masks, left_out=left_out):
        yield image
        if mask is not None and left_out is not None:
            left_out.add("masks beside their images", mask)


def walk_pairs(
    folder: Path, *, skip_masks: bool = True, left_out: LeftOut | None = None
) -> Iterator[tuple[Path, Path | None]]:
    """Yield the images below a folder with the masks beside them; see `walk_images`."""
    left_out = LeftOut() if left_out is None else left_out
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        inside = entries(current)
        images = list(_images_among(inside, left_out))
        masks = _masks_beside(images) if skip_masks else {}
        beside = set(masks.values())
        yield from ((path, masks.get(path)) for path in images if path not in beside)
        deeper = [path for path in inside if path.is_dir() and _is_entered(path, left_out, skip_masks)]
        pending.extend(reversed(deeper))


def _masks_beside(images: list[Path]) -> dict[Path, Path]:
    """Return the masks among images of one folder, which are looked into only where a name suggests it."""
    stems = [path.stem.lower() for path in images]
    named = any(stem.endswith(MASK_ENDINGS) or stem == LABELME_FOLDER[-1] for stem in stems)
    if len(set(stems)) == len(stems) and not named:
        return {}
    from zsad.images.masks import masks_beside

    return masks_beside(images)


def _images_among(paths: list[Path], left_out: LeftOut) -> Iterator[Path]:
    """Yield the files that are images, and links of such names that lead nowhere."""
    for path in paths:
        if _is_dead_link(path):
            yield path
        elif is_image(path):
            if is_heat_map(path):
                left_out.add("heat maps of an earlier run", path)
            else:
                yield path
        elif path.is_file():
            suffix = path.suffix.lower()
            if suffix in HEIF_SUFFIXES:
                left_out.add(_HEIF, path)
            elif suffix in VIDEO_SUFFIXES:
                left_out.add("videos are read where they are named themselves", path)
            else:
                left_out.add(_UNKNOWN, path)


def _is_entered(folder: Path, left_out: LeftOut, skip_masks: bool) -> bool:
    if is_result_folder(folder):
        left_out.add("results that zsad wrote", folder)
        return False
    if skip_masks and is_mask_folder(folder):
        left_out.add("folders of masks", folder)
        return False
    return True


def is_mask_folder(path: Path) -> bool:
    """True for the folder names under which masks are published (masks, ground_truth, GT, Label, ...)."""
    name = re.sub(r"[^a-z0-9]", "", path.name.lower())
    return name in _MASKS or "groundtruth" in name


@dataclass(slots=True)
class Batch:
    """The readable images of up to `batch_size` consecutive samples, and the errors of the others.

    `pixels` is float32 (B,3,H,W); `samples` and `sizes` (H,W of each original image) have B entries. B is 0
    when none of them could be read.
    """

    pixels: Pixels
    samples: list[Sample]
    sizes: list[Size]
    errors: list[tuple[Sample, ZsadError]]


def iter_batches(
    samples: Iterable[Sample],
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int = 2,
    reading: Reading = PLAIN,
    patch: int | None = None,
) -> Generator[Batch, None, None]:
    """Yield the samples as batches, in order; a file that cannot be read is reported, never raised.

    At most three batches and one image a worker are in memory, however many samples there are; closing the
    generator (also by leaving its loop, or Ctrl-C) ends the threads.

    Args:
        samples: any iterable, read as far as needed.
        preprocess: applied in the threads.
        batch_size: samples per batch, at least 1; the last batch can be smaller.
        workers: decoding threads; 0 decodes in the calling thread.
        reading: depth, transparency, DICOM window, largest number of pixels.
        patch: side of the patches in whole numbers of which images are resized to their own proportions (see
            `Preprocess.fitted`); None: all to one size. Neighbours of different shapes then come in separate batches.

    Raises:
        ConfigError: at the call, for an impossible batch_size or workers.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
    if workers < 0:
        raise ConfigError(f"workers is {workers}, expected 0 (no threads) or more")

    def read(sample: Sample) -> _Readable | ZsadError:
        try:
            image, size = read_image(sample.image, reading=reading)
            fitted = preprocess if patch is None else preprocess.fitted(size, patch)
            return fitted(image), size
        except ZsadError as error:
            return error

    return _batches(samples, read, batch_size, workers, preprocess.image_size)


def _batches(
    samples: Iterable[Sample], read: _Reader, batch_size: int, workers: int, size: Size
) -> Generator[Batch, None, None]:
    ahead = _PREFETCHED_BATCHES * batch_size + workers
    with closing(read_ahead(samples, read, ahead=ahead, workers=workers)) as results:
        while group := list(islice(results, batch_size)):
            for part in _alike(group):
                yield _collate(part, size)


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], *, ahead: int, workers: int
) -> Generator[tuple[Item, Result], None, None]:
    """Yield (item, result of `read`) in order while threads read at most `ahead` items further.

    Args:
        items: any iterable, consumed as far as needed.
        read: called in the threads; what it raises ends the iteration.
        ahead: results that may wait in memory.
        workers: threads; 0 reads in the calling one, when asked.
    """
    if workers == 0:
        for item in items:
            yield item, read(item)
        return
    remaining: Iterator[Item] = iter(items)
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="zsad-read")
    try:
        pending.extend((item, pool.submit(read, item)) for item in islice(remaining, max(1, ahead)))
        while pending:
            item, future = pending.popleft()
            result = future.result()
            del future  # the pixels live in the batch alone
            yield item, result
            pending.extend((following, pool.submit(read, following)) for following in islice(remaining, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_Read = tuple[Sample, _Readable | ZsadError]


def _alike(group: list[_Read]) -> Iterator[list[_Read]]:
    """Yield runs of pixels of one shape; an error goes with the run before it."""
    run: list[_Read] = []
    shape: tuple[int, ...] | None = None
    for item in group:
        if not isinstance(item[1], ZsadError):
            if shape not in (None, item[1][0].shape):
                yield run
                run = []
            shape = item[1][0].shape
        run.append(item)
    yield run


def _collate(group: list[_Read], size: Size) -> Batch:
    batch = Batch(np.empty((0, 3, *size), np.float32), [], [], [])
    pixels = []
    for sample, result in group:
        if isinstance(result, ZsadError):
            batch.errors.append((sample, result))
        else:
            pixels.append(result[0])
            batch.samples.append(sample)
            batch.sizes.append(result[1])
    if pixels:
        batch.pixels = np.stack(pixels)
    return batch
