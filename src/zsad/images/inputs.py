"""Many images: the files that a user names, and reading ahead of them in constant memory.

Files are named by paths, folders and patterns. Threads decode ahead, results and batches come out in order.
"""

from __future__ import annotations

import glob
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from zsad.errors import ConfigError, DataError, ZsadError
from zsad.images.decode import Preprocess, read_image
from zsad.images.open import IMAGE_SUFFIXES, numbered, page_count, split_address
from zsad.images.pixels import PLAIN, Reading
from zsad.types import Sample

_MASKS = {"masks", "mask", "gt", "testmask", "testmasks", "label", "labels", "annotations", "segmentation"}
_MASKS |= {"anomalymask", "anomalymasks"}
_PREFETCHED_BATCHES = 2

Pixels = npt.NDArray[np.float32]
Size = tuple[int, int]
Item = TypeVar("Item")
Result = TypeVar("Result")
_Readable = tuple[Pixels, Size]
_Reader = Callable[[Sample], _Readable | ZsadError]


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
