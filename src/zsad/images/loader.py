"""Reading many images in constant memory: threads decode ahead, batches come out in order."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from zsad.datasets.layouts import is_image, walk_images
from zsad.errors import ConfigError, DataError, ZsadError
from zsad.images.address import numbered, split_address
from zsad.images.decode import Preprocess, read_image
from zsad.images.open import page_count
from zsad.images.pixels import PLAIN, Reading
from zsad.types import Sample

_PREFETCHED_BATCHES = 2

Pixels = npt.NDArray[np.float32]
Size = tuple[int, int]
Item = TypeVar("Item")
Result = TypeVar("Result")
_Reader = Callable[[Sample], "tuple[Pixels, Size] | ZsadError"]


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
    decode: Literal["full", "fast"] = "full",
    max_pixels: int | None = None,
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
        decode: "fast" lets large JPEGs be decoded at reduced scale, at least twice the model's size.
        max_pixels: larger images are reported as errors; None: what `reading` says.
        reading: depth, transparency, DICOM window.
        patch: side of the patches in whole numbers of which images are resized to their own proportions (see
            `Preprocess.fitted`); None: all to one size. Neighbours of different shapes then come in separate batches.

    Raises:
        ConfigError: at the call, for an impossible batch_size, workers or decode.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
    if workers < 0:
        raise ConfigError(f"workers is {workers}, expected 0 (no threads) or more")
    if decode not in ("full", "fast"):
        raise ConfigError(f"decode is {decode!r}, expected 'full' or 'fast'")
    target = preprocess.image_size if decode == "fast" else None

    def read(sample: Sample) -> tuple[Pixels, Size] | ZsadError:
        try:
            image, size = read_image(sample.image, max_pixels=max_pixels, target=target, reading=reading)
            fitted = preprocess if patch is None else preprocess.fitted(size, patch)
            return fitted(image), size
        except ZsadError as error:
            return error

    return _batches(samples, read, batch_size, workers, preprocess.image_size)


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
    found: dict[str, Path] = {}
    for path in sorted((p for given in inputs for p in _images_of(given)), key=lambda p: p.as_posix()):
        found.setdefault(os.path.normcase(os.path.realpath(path)), path)
    return [Sample(picture) for path in found.values() for picture in _pictures(path)]


def _pictures(file: Path) -> list[Path]:
    """The file, or the addresses of the pictures in it where it holds several."""
    count = page_count(file)
    return [file] if count == 1 else [Path(numbered(file, number)) for number in range(1, count + 1)]


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


def _batches(
    samples: Iterable[Sample], read: _Reader, batch_size: int, workers: int, size: Size
) -> Generator[Batch, None, None]:
    ahead = _PREFETCHED_BATCHES * batch_size + workers
    results = read_ahead(samples, read, ahead=ahead, workers=workers)
    try:
        while group := list(islice(results, batch_size)):
            for part in _alike(group):
                yield _collate(part, size)
    finally:
        results.close()


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
        for item in islice(remaining, max(1, ahead)):
            pending.append((item, pool.submit(read, item)))
        while pending:
            item, future = pending.popleft()
            result = future.result()
            del future  # the pixels live in the batch alone
            yield item, result
            for following in islice(remaining, 1):
                pending.append((following, pool.submit(read, following)))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_Read = tuple[Sample, "tuple[Pixels, Size] | ZsadError"]


def _alike(group: list[_Read]) -> Iterator[list[_Read]]:
    """Yields runs of pixels of one shape; an error goes with the run before it."""
    run: list[_Read] = []
    shape: tuple[int, ...] | None = None
    for item in group:
        own = None if isinstance(item[1], ZsadError) else item[1][0].shape
        if own is not None and shape not in (None, own):
            yield run
            run = []
        shape = own or shape
        run.append(item)
    yield run


def _collate(group: list[tuple[Sample, tuple[Pixels, Size] | ZsadError]], size: Size) -> Batch:
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
