"""Opening of image files with nothing trusted: formats on a list, sizes checked before pixels, errors of one line."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import Image

from zsad.errors import ConfigError, ImageError
from zsad.images.address import DICOM_SUFFIXES, check_file, is_video, split_address
from zsad.images.pixels import MAX_PIXELS, Reading, check_pixels, decoding

# An allow-list: decoders of documents (EPS starts Ghostscript) have no business with data sets.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
_PAGED = frozenset({".tif", ".tiff"}) | DICOM_SUFFIXES
_limit = threading.Lock()


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()  # builds of Pillow differ in the decoders they have
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def opened(path: Path, reading: Reading) -> Iterator[Image.Image]:
    """Open a file, or the picture in it that an address names, with its size checked, pixels mostly not yet decoded."""
    with decoding(str(path)):
        file, number = split_address(path)
        check_file(file)
        if file.suffix.lower() in DICOM_SUFFIXES or _is_dicom(file):
            from zsad.images.dicom import read_dicom

            yield read_dicom(file, number or 1, reading)
            return
        if number is not None and is_video(file):
            from zsad.images.video import read_frame

            yield read_frame(file, number)
            return
        with _open(file, reading.max_pixels) as image:
            check_pixels(image.size, str(path), reading.max_pixels)
            if number is not None:
                _turn_to(image, number, file)
                check_pixels(image.size, str(path), reading.max_pixels)
            yield image


@contextmanager
def opened_content(content: bytes, name: str, reading: Reading) -> Iterator[Image.Image]:
    """Open the content of a file with its size checked, pixels not yet decoded."""
    with decoding(name):
        if not content:
            raise ImageError(f"{name} is empty (0 bytes): copy or export the file again")
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            check_pixels(image.size, name, reading.max_pixels)
            yield image


def page_count(path: Path) -> int:
    """Return the number of pictures in a TIFF or DICOM file; 1 for others, and for those that cannot be read."""
    suffix = path.suffix.lower()
    if suffix not in _PAGED:
        return 1
    try:
        with decoding(str(path)):
            if suffix in DICOM_SUFFIXES:
                from zsad.images.dicom import frame_count

                return frame_count(path)
            with _open(path, MAX_PIXELS) as image:
                return max(1, int(getattr(image, "n_frames", 1)))
    except (ImageError, ConfigError):
        return 1  # its reader says what is wrong


def _open(file: Path, max_pixels: int) -> Image.Image:
    if max_pixels <= MAX_PIXELS:
        return Image.open(file, formats=_formats())
    # Pillow's limit is one for the process: it is lifted while a header is read, then ours is applied.
    with _limit:
        pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit


def _turn_to(image: Image.Image, number: int, file: Path) -> None:
    count = int(getattr(image, "n_frames", 1))
    if number > count:
        raise ImageError(f"{file} has {count} page{'s' * (count > 1)}, there is no page {number}")
    image.seek(number - 1)


def _is_dicom(file: Path) -> bool:
    if file.suffix:
        return False  # a picture of another kind: one opening fewer
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
