"""Conversion of any pixel values to upright RGB of eight bits: depth, transparency, palettes, inks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from zsad.errors import ConfigError, DataError, ImageError, TooManyPixelsError

MAX_PIXELS = 120_000_000
ORIENTATION_TAG = 0x0112
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_DEPTHS = (8, 10, 12, 14, 16)
_FLOAT_SLACK = 1e-6
_MIN_SIDE = 8

Levels = Literal["depth", "full"] | tuple[float, float]


@dataclass(frozen=True, slots=True)
class Reading:
    """Options for files that can be read in several ways.

    Attributes:
        levels: what becomes black and white of grey values of more than 8 bits. "depth": 0 and the smallest of
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


def check_sides(size: tuple[int, int], name: str) -> None:
    """Raise an ImageError for an image that is too small to show anything."""
    if min(size) < _MIN_SIDE:
        raise ImageError(f"{name} is {size[0]}x{size[1]} px, expected at least {_MIN_SIDE} px on each side")


def is_wide(image: Image.Image) -> bool:
    """Return True for a Pillow image with grey values of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def to_rgb(
    image: Image.Image, name: str, reading: Reading = PLAIN, *, span: tuple[float, float] | None = None
) -> Image.Image:
    """Return a new RGB image of one of any mode; `span` as of `value_span`, where the image is part of another.

    Raises:
        ImageError: values that no rule brings to 8 bits.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if is_wide(image):
        values = wide_values(image, name)
        return Image.fromarray(to_bytes(values, name, reading, span=span)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, reading.matte), layer).convert("RGB")


def wide_values(image: Image.Image, name: str) -> npt.NDArray[Any]:
    """Return the values of a Pillow image of mode F, I or I;16 as float or uint16 (H,W)."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        return values
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{name} holds values {low} to {high}, expected 0 to 65535: save it with 16 bits")
    return values.astype(np.uint16)


def value_span(values: npt.NDArray[Any], levels: Levels) -> tuple[float, float]:
    """Return the values of uint16, or of any other kind for percentiles, that become black and white.

    Example:
        >>> value_span(np.array([[0, 900]], np.uint16), "depth"), value_span(np.array([[0, 900]], np.uint16), "full")
        ((0.0, 1023.0), (0.0, 65535.0))
    """
    if levels == "full":
        return 0.0, 65535.0
    if levels == "depth":
        top = int(values.max())
        return 0.0, float(next(2**depth - 1 for depth in _DEPTHS if top < 2**depth))
    low, high = np.percentile(values, levels)
    return float(low), float(high)


def stretched(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Return values as bytes: `low` and below is 0, `high` and above 255; all 0 where these are equal."""
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.asarray(np.rint(np.clip((values - low) * scale, 0, 255)), dtype=np.uint8)


def to_bytes(
    values: npt.NDArray[Any], name: str, reading: Reading = PLAIN, *, span: tuple[float, float] | None = None
) -> npt.NDArray[np.uint8]:
    """Return uint8, uint16, bool or float-in-[0,1] values as uint8; `span` where they are part of an image."""
    if values.dtype == np.uint8:
        return np.asarray(values, dtype=np.uint8)
    if values.dtype == np.bool_:
        return np.asarray(np.where(values, 255, 0), dtype=np.uint8)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return stretched(values, *(span or value_span(values, reading.levels)))
    if values.dtype.kind != "f":
        raise ImageError(
            f"{name} has unusable values, expected uint8, uint16, bool or float in [0, 1]: convert it"
        )
    low, high = float(values.min()), float(values.max())
    if isinstance(reading.levels, tuple) and np.isfinite((low, high)).all():
        return stretched(values.astype(np.float64), *(span or value_span(values, reading.levels)))
    if not (low >= -_FLOAT_SLACK and high <= 1 + _FLOAT_SLACK):  # also true of NaN
        raise ImageError(
            f"{name} holds values from {low:g} to {high:g}, float images must lie in [0, 1]: divide first"
        )
    return np.asarray(np.rint(np.clip(values.astype(np.float64), 0, 1) * 255), dtype=np.uint8)


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation; 1 where there is none that can be read."""
    # An unreadable EXIF block says nothing about the orientation and is no reason to refuse good pixels.
    try:
        turn = int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:
        return 1
    return turn if 1 <= turn <= 8 else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (H,W) of the upright image."""
    width, height = image.size
    return (width, height) if orientation(image) in TRANSPOSED else (height, width)


def oriented(image: Image.Image) -> Image.Image:
    """Return the image upright."""
    return ImageOps.exif_transpose(image) if orientation(image) > 1 else image
