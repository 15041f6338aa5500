"""How pictures may be read, bounds of their size, and errors of decoders in one line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from zsad.errors import ConfigError, DataError, ImageError, TooManyPixelsError

MAX_PIXELS = 120_000_000
ORIENTATION_TAG = 0x0112
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_MIN_SIDE = 8
_BYTES_A_PIXEL = 4.5

Levels = Literal["depth", "full"] | tuple[float, float]


@dataclass(frozen=True, slots=True)
class Reading:
    """Options for files that can be read in several ways.

    Attributes:
        levels: what becomes black and white of values of more than 8 bits. "depth": 0 and the smallest of
            2^8-1, 2^10-1, 2^12-1, 2^14-1, 2^16-1 that holds the image's maximum, so a 12-bit camera stored in 16 bits
            keeps its contrast. "full": 0 and 65535, the same for every image. Two numbers: these percentiles of the
            image's own values.
        matte: what transparency is laid on.
        window: centre and width of the values shown of a DICOM file, in its own unit (Hounsfield for CT); None: as
            its tags say.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        ConfigError: levels, a matte or a window that make no sense.
    """

    levels: Levels = "depth"
    matte: Literal["white", "black"] = "white"
    window: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        low, high = self.levels if isinstance(self.levels, tuple) else (0, 100)
        if not 0 <= low < high <= 100 or (
            isinstance(self.levels, str) and self.levels not in ("depth", "full")
        ):
            raise ConfigError(
                f"levels is {self.levels!r}, expected 'depth', 'full', or two percentiles such as (0.5, 99.5)"
            )
        if self.matte not in ("white", "black"):
            raise ConfigError(f"matte is {self.matte!r}, expected 'white' or 'black'")
        if self.window is not None and not (np.isfinite(self.window).all() and self.window[1] > 0):
            raise ConfigError(
                f"window is {self.window}, expected a centre and a width above 0, such as (40, 400)"
            )
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels is {self.max_pixels}, expected at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Return the options that differ from the defaults and change pixels, as plain JSON values."""
        values = {name: getattr(self, name) for name in ("levels", "matte", "window")}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value != getattr(PLAIN, name)
        }


PLAIN = Reading()


_limit = threading.Lock()


@contextmanager
def pillow_limit_lifted(pixels: int) -> Iterator[None]:
    """Lift Pillow's limit of pixels, which is one for the process, where `pixels` exceed it; ours are checked apart."""
    if pixels <= MAX_PIXELS:
        yield
        return
    with _limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


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


def check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raise a TooManyPixelsError for a larger image of `size` (W,H)."""
    if size[0] * size[1] > max_pixels:
        pixels = size[0] * size[1]
        raise TooManyPixelsError(
            f"{name} has {size[0]}x{size[1]} = {pixels:,} pixels, at most {max_pixels:,} are read: "
            "tile it, make it smaller, or raise max_pixels"
        )


def check_memory(needed: int, name: str, max_pixels: int) -> None:
    """Raise a TooManyPixelsError where decoding would take more bytes than `max_pixels` of RGB do."""
    most = int(_BYTES_A_PIXEL * max(MAX_PIXELS, max_pixels))
    if needed > most:
        raise TooManyPixelsError(
            f"{name} takes {needed // 10**6:,} MB to decode, at most {most // 10**6:,} MB are spent: save it as tiled "
            "TIFF or baseline JPEG, make it smaller, or raise max_pixels"
        )


def check_sides(size: tuple[int, int], name: str) -> None:
    """Raise an ImageError for an image that is too small to show anything."""
    if min(size) < _MIN_SIDE:
        raise ImageError(f"{name} is {size[0]}x{size[1]} px, expected at least {_MIN_SIDE} px on each side")


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation; 1 where there is none that can be read."""
    # An unreadable EXIF block says nothing about the orientation and is no reason to refuse good pixels.
    try:
        turn = int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:
        return 1
    return turn if 1 <= turn <= 8 else 1
