"""Opening of image files with nothing trusted: formats on a list, sizes checked before pixels, errors of one line."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from zsad.errors import ConfigError, DataError, ImageError, TooManyPixelsError
from zsad.images.address import DICOM_SUFFIXES, is_video, split_address
from zsad.images.pixels import MAX_PIXELS, Reading

# An allow-list: decoders of documents (EPS starts Ghostscript) have no business with data sets.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
_PAGED = frozenset({".tif", ".tiff"}) | DICOM_SUFFIXES
_MIN_SIDE = 8
_limit = threading.Lock()


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageError`.

    Decoders fed with broken files raise nearly anything (OSError, SyntaxError, ValueError, struct.error,
    zlib.error, IndexError, and warnings where these are errors), hence the wide net.
    """
    try:
        yield
    except (ImageError, DataError, ConfigError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = "has more pixels than Pillow's limit: tile it or make it smaller"
        raise TooManyPixelsError(f"{name} {reason}") from error
    except MemoryError as error:
        raise ImageError(f"{name} does not fit into memory: tile it or make it smaller") from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read: check the permissions of the file") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image of a known format: remove it or save it as PNG or JPEG"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"{name} is damaged or truncated ({reason}): copy or export the file again"
        ) from error


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


def check_file(path: Path) -> None:
    """Raises an ImageError where there is no file with content."""
    if path.is_dir():
        raise ImageError(f"{path} is a folder, expected an image file")
    if not os.path.exists(path):  # noqa: PTH110 (Path.exists raises on links in a circle)
        if path.is_symlink():
            raise ImageError(f"{path} is a link that leads nowhere: remove it or restore its target")
        raise ImageError(f"{path} does not exist: check the path")
    if not path.is_file():
        raise ImageError(f"{path} is not a regular file, expected an image file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes): copy or export the file again")


def page_count(path: Path) -> int:
    """Pictures in a TIFF or DICOM file; 1 for others, and for those that cannot be read."""
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
        return 1  # whoever reads it says what is wrong


def check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raises a TooManyPixelsError for a larger image of `size` (W,H)."""
    if size[0] * size[1] > max_pixels:
        pixels = size[0] * size[1]
        raise TooManyPixelsError(
            f"{name} has {size[0]}x{size[1]} = {pixels:,} pixels, at most {max_pixels:,} are read: "
            "tile it, make it smaller, or raise max_pixels"
        )


def check_sides(size: tuple[int, int], name: str) -> None:
    """Raises an ImageError for an image that is too small to show anything."""
    if min(size) < _MIN_SIDE:
        raise ImageError(f"{name} is {size[0]}x{size[1]} px, expected at least {_MIN_SIDE} px on each side")


def _open(file: Path, max_pixels: int) -> Image.Image:
    if max_pixels <= MAX_PIXELS:
        return Image.open(file, formats=_formats())
    # Pillow's limit is one for the process: it is lifted while a header is read, then ours is applied.
    with _limit:
        own, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = own


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
