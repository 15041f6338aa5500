"""Contents of images and masks: fingerprints of decoded pixels, values of masks, duplicates among many images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.errors import ZsadError
from zsad.images.decode import read_image
from zsad.images.inputs import read_ahead
from zsad.images.masks import mask_values, resize_mask
from zsad.types import Sample

_BLOCK = 1024  # images compared at once: 1024 x 1024 distances of one byte are 1 MB


Pair = tuple[Sample, Sample, int]
"""Two samples with similar images, and how many of 64 bits of their difference hashes differ."""


@dataclass(slots=True)
class Content:
    """The content of the files of one sample.

    Attributes:
        sample: whose files these are.
        pixels: 64 bits of the SHA-256 of the decoded RGB image and its size; None when it cannot be read.
        difference_hash: 64 bits, see the function of this name; similar images differ in few of them.
        size: (H,W) of the image in pixels.
        mask_size: (H,W) of the mask, None without one.
        border: share of the mask's outermost pixels that are foreground.
        values: how often each value stands in the mask.
        emptied: the mask has foreground, but none at the model's size.
        problems: (path, reason) of files that cannot be read.
    """

    sample: Sample
    pixels: int | None = None
    difference_hash: int = 0
    size: tuple[int, int] | None = None
    mask_size: tuple[int, int] | None = None
    border: float = 0.0
    values: dict[float, int] = field(default_factory=dict)
    emptied: bool = False
    problems: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def foreground(self) -> int:
        """Pixels of the mask that are not 0."""
        return sum(count for value, count in self.values.items() if value > 0)


def read_contents(
    samples: Sequence[Sample],
    *,
    size: tuple[int, int],
    masks: bool = True,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> list[Content]:
    """Decode every image, and every mask, of the samples; the result names unreadable files.

    Args:
        samples: in any order, kept.
        size: (H,W) that masks are resized to when looking for those that vanish.
        masks: False reads images only.
        workers: decoding threads.
        progress: called with 1 for every sample.
    """

    contents = []
    read = partial(read_content, size=size, masks=masks)
    with closing(read_ahead(samples, read, ahead=2 * workers, workers=workers)) as results:
        for _, content in results:
            contents.append(content)
            if progress is not None:
                progress(1)
    return contents


def read_content(sample: Sample, *, size: tuple[int, int], masks: bool = True) -> Content:
    """Decode the files of one sample; see `read_contents`."""
    content = Content(sample)
    try:
        image, content.size = read_image(sample.image)
        content.pixels, content.difference_hash = pixel_hash(image), difference_hash(image)
    except ZsadError as error:
        content.problems.append((sample.image, str(error)))
    if sample.mask is None or not masks:
        return content
    try:
        values = mask_values(sample.mask)
    except ZsadError as error:
        content.problems.append((sample.mask, str(error)))
        return content
    content.mask_size = (int(values.shape[0]), int(values.shape[1]))
    content.values = _count(values)
    content.border = float(_rim(values > 0).mean())
    content.emptied = content.foreground > 0 and not resize_mask(values > 0, size).any()
    return content


def _rim(foreground: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the outermost pixels of a mask (H, W), the corners twice."""
    return np.concatenate((foreground[0], foreground[-1], foreground[:, 0], foreground[:, -1]))


def pixel_hash(image: Image.Image) -> int:
    """Return 64 bits of the SHA-256 over size and RGB values: equal for files that decode to the same image."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.convert("RGB").tobytes())
    return int.from_bytes(digest.digest()[:8], "big")


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits: the signs of the horizontal steps of a grey image of 8 x 9 pixels, blind to anything small."""
    grey = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(grey).astype(np.int16)
    bits = np.packbits((values[:, 1:] > values[:, :-1]).ravel())
    return int.from_bytes(bits.tobytes(), "big")


def same_pixels(first: Sequence[Content], second: Sequence[Content] | None = None) -> list[Pair]:
    """Return images with the same pixels: across two lists or, with one, each with the first of its kind."""
    known: dict[int, Sample] = {}
    pairs: list[Pair] = []
    for content in second or ():
        if content.pixels is not None:
            known.setdefault(content.pixels, content.sample)
    for content in first:
        if content.pixels is None:
            continue
        if content.pixels in known:
            pairs.append((content.sample, known[content.pixels], 0))
        elif second is None:
            known[content.pixels] = content.sample
    return pairs


def similar_looks(first: Sequence[Content], second: Sequence[Content], *, max_bits: int) -> list[Pair]:
    """Return images across two lists whose difference hashes differ in at most `max_bits` of 64 bits.

    Each image of `first` is paired with its nearest one of `second`; pairs with the same pixels are left out.
    """
    left, right = ([each for each in contents if each.pixels is not None] for contents in (first, second))
    if not left or not right:
        return []
    rows, columns = (
        np.array([each.difference_hash for each in contents], dtype=np.uint64) for contents in (left, right)
    )
    pairs: list[Pair] = []
    for start in range(0, len(left), _BLOCK):
        nearest, distance = _nearest(rows[start : start + _BLOCK], columns)
        for content, position, bits in zip(left[start:], nearest.tolist(), distance.tolist(), strict=False):
            if bits <= max_bits and right[position].pixels != content.pixels:
                pairs.append((content.sample, right[position].sample, bits))
    return pairs


def _nearest(
    rows: npt.NDArray[np.uint64], columns: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint8]]:
    """Position and Hamming distance of the nearest of `columns` for each of `rows`."""
    best = np.zeros(len(rows), dtype=np.intp)
    distance = np.full(len(rows), 255, dtype=np.uint8)
    for start in range(0, len(columns), _BLOCK):
        distances = _bits(rows[:, None] ^ columns[None, start : start + _BLOCK])
        position = distances.argmin(axis=1)
        least = distances[np.arange(len(rows)), position]
        better = least < distance
        best[better], distance[better] = position[better] + start, least[better]
    return best, distance


def _bits(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Number of set bits of each value."""
    table = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
    octets = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, 8)
    return np.asarray(table[octets].sum(axis=-1, dtype=np.uint8))


def _count(values: npt.NDArray[np.generic]) -> dict[float, int]:
    if values.dtype.kind in "bu":
        counts = np.bincount(values.ravel().astype(np.int64))
        return {float(value): int(counts[value]) for value in np.flatnonzero(counts)}
    distinct, counts = np.unique(values, return_counts=True)
    return {float(value): int(count) for value, count in zip(distinct.tolist(), counts.tolist(), strict=True)}
