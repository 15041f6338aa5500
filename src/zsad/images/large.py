"""Large pictures: decoded once, as bytes, never as floats; parts of them upright and as RGB.

A decoded picture takes four bytes a pixel (one where it is grey), 1.6 GB for 20,000 x 20,000: Pillow cannot decode
parts of a file. A TIFF without compression is not decoded at all but mapped, and takes no memory to speak of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from zsad.images.decode import Source, read_image
from zsad.images.open import opened
from zsad.images.pixels import (
    ORIENTATION_TAG,
    PLAIN,
    TRANSPOSED,
    Reading,
    check_sides,
    decoding,
    is_wide,
    orientation,
    to_rgb,
    value_span,
    wide_values,
)

Box = tuple[float, float, float, float]
"""Top, left, bottom, right in pixels of the upright picture."""

_STRIP_PIXELS = 4_000_000


class LargePicture:
    """A picture of which parts are taken.

    Args:
        image: decoded, in the mode of its file.
        name: for messages.
        reading: how depth and transparency are read.
        mapped: (H,W) or (H,W,3) uint8 of the file itself, where `image` is only its header.

    Attributes:
        size: (H,W) of the upright picture.
    """

    def __init__(
        self,
        image: Image.Image,
        name: str,
        reading: Reading = PLAIN,
        *,
        mapped: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        self._image, self._name, self._reading, self._mapped = image, name, reading, mapped
        self._turn = orientation(image)
        self._stored = (image.height, image.width)
        self.size = self._stored[::-1] if self._turn in TRANSPOSED else self._stored
        wide = mapped is None and is_wide(image)
        self._span = _span(image, name, reading) if wide and image.mode != "F" else None

    def part(self, box: Box, size: tuple[int, int], *, resample: Image.Resampling) -> Image.Image:
        """Return a box of the upright picture as RGB of `size` (H,W)."""
        top, left, bottom, right = _stored_box(box, self._turn, self.size)
        y0, x0 = max(0, int(np.floor(top))), max(0, int(np.floor(left)))
        y1 = min(self._stored[0], int(np.ceil(bottom)))
        x1 = min(self._stored[1], int(np.ceil(right)))
        cut = self._cut(y0, x0, y1, x1)
        inner = (max(left - x0, 0.0), max(top - y0, 0.0), min(right, x1) - x0, min(bottom, y1) - y0)
        turned = size[::-1] if self._turn in TRANSPOSED else size
        if inner != (0.0, 0.0, float(cut.width), float(cut.height)) or cut.size != turned[::-1]:
            cut = cut.resize(turned[::-1], resample, box=inner)
        return _turned(cut, self._turn)

    def whole(self, target: tuple[int, int]) -> Image.Image:
        """Return all of it as RGB: as it is where that costs nothing, else shrunk to at least twice `target` (H,W)."""
        plain = self._image.mode == "RGB" and "transparency" not in self._image.info
        if plain and self._turn == 1 and self._mapped is None:
            return self._image
        factor = max(1, min(self.size[0] // (2 * target[0]), self.size[1] // (2 * target[1])))
        return self._reduced(factor)

    def preview(self, longest: int) -> Image.Image:
        """Return all of it as a new RGB image, shrunk by a whole number so that no side exceeds `longest`."""
        return self._reduced(max(1, -(-max(self.size) // longest)))

    def _reduced(self, factor: int) -> Image.Image:
        height, width = self._stored
        rows = max(1, _STRIP_PIXELS // (width * factor)) * factor
        canvas = Image.new("RGB", (-(-width // factor), -(-height // factor)))
        for top in range(0, height, rows):
            strip = self._cut(top, 0, min(height, top + rows), width)
            canvas.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
        return _turned(canvas, self._turn)

    def _cut(self, top: int, left: int, bottom: int, right: int) -> Image.Image:
        """A new RGB image of a part of the stored picture."""
        if self._mapped is not None:
            return Image.fromarray(np.ascontiguousarray(self._mapped[top:bottom, left:right])).convert("RGB")
        with decoding(self._name):
            cut = self._image.crop((left, top, right, bottom))
            return to_rgb(cut, self._name, self._reading, span=self._span)


@contextmanager
def open_large(source: Source, *, reading: Reading = PLAIN) -> Iterator[LargePicture]:
    """Open a picture of any kind that `read_image` takes, decoded once.

    Raises:
        ImageError: as `load_image`.
    """
    if not isinstance(source, str | Path):
        image, _ = read_image(source, reading=reading)
        yield LargePicture(image, "the image", reading)
        return
    name = str(source)
    with opened(Path(source), reading) as image:
        with decoding(name):
            check_sides(image.size, name)
            mapped = _mapped(image)
            if mapped is None:
                image.load()
        yield LargePicture(image, name, reading, mapped=mapped)


def _mapped(image: Image.Image) -> npt.NDArray[np.uint8] | None:
    """Return the pixels of a TIFF file without compression as they lie in it, where they lie in one piece."""
    tiles, path = getattr(image, "tile", []), getattr(image, "filename", "")
    if image.format != "TIFF" or image.mode not in ("L", "RGB") or not path or not tiles:
        return None
    row = image.width * len(image.getbands())
    expected = int(tiles[0][2])
    for codec, (left, top, right, bottom), offset, arguments in tiles:
        plain = codec == "raw" and (arguments[0] if isinstance(arguments, tuple) else arguments) == image.mode
        flags = arguments[1:] if isinstance(arguments, tuple) else ()
        whole_rows = left == 0 and right == image.width and offset == expected
        if not plain or not whole_rows or any(flag not in (0, row, 1) for flag in flags) or -1 in flags:
            return None
        expected = offset + (bottom - top) * row
    if int(tiles[0][2]) + image.height * row > Path(path).stat().st_size:
        return None  # cut off: the decoder says so
    shape = (image.height, image.width) + ((3,) if image.mode == "RGB" else ())
    return np.memmap(path, dtype=np.uint8, mode="r", offset=int(tiles[0][2]), shape=shape)


def _span(image: Image.Image, name: str, reading: Reading) -> tuple[float, float]:
    """Return `value_span` of all of a picture of 16 bits, from a histogram made strip by strip."""
    counts = np.zeros(65536, dtype=np.int64)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        values = wide_values(image.crop((0, top, image.width, min(image.height, top + rows))), name)
        counts += np.bincount(values.ravel(), minlength=65536)
    if isinstance(reading.levels, str):
        return value_span(np.flatnonzero(counts).astype(np.uint16), reading.levels)
    reached = np.cumsum(counts) / counts.sum()
    low, high = (float(np.searchsorted(reached, level / 100)) for level in reading.levels)
    return low, high


def _stored_box(box: Box, turn: int, size: tuple[int, int]) -> Box:
    """Return a box of the upright picture of `size` in the stored one, by EXIF's orientation."""
    top, left, bottom, right = box
    height, width = size
    if turn in (2, 3, 6, 7):  # mirrored left to right on the way
        left, right = width - right, width - left
    if turn in (3, 4, 7, 8):  # mirrored upside down
        top, bottom = height - bottom, height - top
    return (left, top, right, bottom) if turn in TRANSPOSED else (top, left, bottom, right)


def _turned(image: Image.Image, turn: int) -> Image.Image:
    if turn == 1:
        return image
    exif: Any = image.getexif()
    exif[ORIENTATION_TAG] = turn
    return ImageOps.exif_transpose(image)
