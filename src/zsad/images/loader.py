"""Reading many images in constant memory: threads decode ahead, batches come out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from zsad.errors import ConfigError, ZsadError
from zsad.images.decode import Preprocess, read_image
from zsad.images.pixels import PLAIN, Reading
from zsad.types import Sample

_PREFETCHED_BATCHES = 2

Pixels = npt.NDArray[np.float32]
Size = tuple[int, int]
Item = TypeVar("Item")
Result = TypeVar("Result")
_Readable = tuple[Pixels, Size]
_Reader = Callable[[Sample], _Readable | ZsadError]


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
