"""Pixels: how pictures may be read, bounds of their size, and how values become RGB of eight bits.

A file and an array of the same numbers are the same `Samples`, so they give the same picture.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
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


Model = Literal["grey", "inverted", "rgb", "cmyk", "ycbcr", "lab"]
Alpha = Literal["none", "straight", "premultiplied"]
Span = tuple[float, float, float]
"""Values that become black and white, and the alpha that is opaque."""

_DEPTHS = (8, 10, 12, 14, 16)
_FLOAT_SLACK = 1e-6
# From CIE XYZ under D50 to linear sRGB, the primaries adapted by Bradford's method (ICC's profile of sRGB, inverted).
_XYZ_TO_SRGB = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)
_D50 = np.array([0.9642, 1.0, 0.8249])


@dataclass(frozen=True, slots=True)
class Samples:
    """Values of pixels.

    Attributes:
        values: (H,W) or (H,W,C) of uint8, uint16, bool, or float in [0,1].
        model: meaning of the channels; "inverted" is grey of which zero is white, "lab" CIE L*a*b* as floats.
        alpha: meaning of the last channel; "premultiplied" where the colours are multiplied by it.
    """

    values: npt.NDArray[Any]
    model: Model = "grey"
    alpha: Alpha = "none"

    @property
    def colours(self) -> npt.NDArray[Any]:
        """Values without alpha."""
        return self.values if self.alpha == "none" else self.values[..., :-1]


def samples_of_array(array: npt.NDArray[Any], name: str) -> Samples:
    """Return an array (H,W), (H,W,1), (H,W,3) or (H,W,4) as samples.

    Raises:
        ImageError: another shape.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"{name} is no image, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), channels last"
        )
    if array.ndim == 2 or array.shape[2] == 1:
        return Samples(array.reshape(array.shape[:2]))
    return Samples(array, "rgb", "straight" if array.shape[2] == 4 else "none")


def samples_to_rgb(
    samples: Samples, name: str, reading: Reading = PLAIN, *, span: Span | None = None
) -> Image.Image:
    """Return samples as a new RGB image; `span` as of `find_span`, where they are part of a picture.

    Raises:
        ImageError: values that no rule brings to 8 bits.
    """
    if samples.model == "lab":
        return Image.fromarray(lab_to_srgb(samples.values))
    span = span or find_span([samples], reading.levels)
    colours = to_bytes(samples.colours, name, reading, span)
    if samples.model == "inverted":
        colours = 255 - colours
    rgb = _rgb(colours, samples.model)
    if samples.alpha == "none":
        return rgb
    top = None if span is None else (0.0, span[2], span[2])
    alpha = to_bytes(samples.values[..., -1], name, PLAIN, top)
    layer = rgb.convert("RGBA")
    layer.putalpha(Image.fromarray(alpha))
    if samples.alpha == "premultiplied":
        layer = Image.frombytes("RGBa", layer.size, layer.tobytes()).convert("RGBA")
    return on_matte(layer, reading)


def on_matte(layer: Image.Image, reading: Reading) -> Image.Image:
    """Return an RGBA image laid on the matte."""
    return Image.alpha_composite(Image.new("RGBA", layer.size, reading.matte), layer).convert("RGB")


def _rgb(values: npt.NDArray[np.uint8], model: Model) -> Image.Image:
    values = np.ascontiguousarray(values if values.ndim == 2 or values.shape[2] > 1 else values[..., 0])
    if model in ("cmyk", "ycbcr"):
        mode = "CMYK" if model == "cmyk" else "YCbCr"
        return Image.frombytes(mode, (values.shape[1], values.shape[0]), values.tobytes()).convert("RGB")
    return Image.fromarray(values).convert("RGB")


def lab_to_srgb(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return CIE L*a*b* under D50, L* up to 100, (H,W,3) as sRGB.

    Source: CIE 15, and IEC 61966-2-1 for the transfer function.
    """
    lightness, a, b = np.moveaxis(values, 2, 0)
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _D50
    linear = np.clip(xyz @ _XYZ_TO_SRGB.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(encoded * 255), np.uint8)


def find_span(parts: Iterable[Samples], levels: Levels, *, stride: int = 1) -> Span | None:
    """Return the span of a picture given in parts; None where its values have a fixed one (8 bits, floats).

    Percentiles are those of every `stride`-th value.
    """
    top, alpha, taken = 0, 0, []
    for part in parts:
        kind = part.values.dtype
        deep = kind.kind == "u" and kind.itemsize == 2
        if not deep and not (kind.kind == "f" and isinstance(levels, tuple)):
            return None
        if levels == "full":
            return 0.0, 65535.0, 65535.0
        if isinstance(levels, tuple):
            taken.append(part.colours.ravel()[::stride])
        else:
            top = max(top, int(part.colours.max()))
        if part.alpha != "none":
            alpha = max(alpha, int(part.values[..., -1].max()))
    opaque = depth_top(alpha) if alpha > 1 else 1.0
    if not isinstance(levels, tuple):
        return 0.0, depth_top(top), opaque
    low, high = np.percentile(np.concatenate(taken), levels)
    return float(low), float(high), opaque


def depth_top(highest: int) -> float:
    """Return the smallest of 2^8-1, 2^10-1, 2^12-1, 2^14-1, 2^16-1 that is not below a value.

    Example:
        >>> depth_top(200), depth_top(900), depth_top(65535)
        (255.0, 1023.0, 65535.0)
    """
    return float(next(2**depth - 1 for depth in _DEPTHS if highest < 2**depth))


def stretched(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Return values as bytes: `low` and below is 0, `high` and above 255; all 0 where these are equal."""
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.asarray(np.rint(np.clip((values - low) * scale, 0, 255)), dtype=np.uint8)


def to_bytes(
    values: npt.NDArray[Any], name: str, reading: Reading = PLAIN, span: Span | None = None
) -> npt.NDArray[np.uint8]:
    """Return uint8, uint16, bool or float-in-[0,1] values as uint8; `span` as of `find_span`."""
    if values.dtype == np.uint8:
        return np.asarray(values, dtype=np.uint8)
    if values.dtype == np.bool_:
        return np.asarray(np.where(values, 255, 0), dtype=np.uint8)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and span is not None:
        return stretched(values, *span[:2])
    if values.dtype.kind != "f":
        raise ImageError(
            f"{name} has unusable values, expected uint8, uint16, bool or float in [0, 1]: convert it"
        )
    low, high = float(values.min()), float(values.max())
    if span is not None and isinstance(reading.levels, tuple) and np.isfinite((low, high)).all():
        return stretched(values.astype(np.float64), *span[:2])
    if not (low >= -_FLOAT_SLACK and high <= 1 + _FLOAT_SLACK):  # also true of NaN
        raise ImageError(
            f"{name} holds values from {low:g} to {high:g}, float images must lie in [0, 1]: divide first"
        )
    return np.asarray(np.rint(np.clip(values.astype(np.float64), 0, 1) * 255), dtype=np.uint8)


def as_uint16(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint16]:
    """Return whole numbers of any width as uint16.

    Raises:
        ImageError: a value below 0 or above 65535.
    """
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageError(
                f"{name} holds values {low} to {high}, expected 0 to 65535: save it with 16 bits"
            )
    return values.astype(np.uint16)


def to_rgb(
    stored: Image.Image | Samples, name: str, reading: Reading = PLAIN, *, span: Span | None = None
) -> Image.Image:
    """Return pixels of any kind as RGB, an RGB image as it is; `span` as of `find_span`, for parts of a picture.

    Raises:
        ImageError: values that no rule brings to 8 bits.
    """
    pixels = samples_of(stored, name)
    if isinstance(pixels, Samples):
        return samples_to_rgb(pixels, name, reading, span=span)
    if pixels.mode == "RGB" and "transparency" not in pixels.info:
        return pixels
    return (
        on_matte(pixels.convert("RGBA"), reading) if pixels.has_transparency_data else pixels.convert("RGB")
    )


def samples_of(image: Image.Image | Samples, name: str) -> Image.Image | Samples:
    """Return a Pillow image of more than 8 bits, or of Lab, as samples, any other as it is."""
    if isinstance(image, Samples):
        return image
    if image.mode == "LAB":
        return Samples((np.asarray(image, np.float32) - (0, 128, 128)) * (100 / 255, 1, 1), "lab")
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.dtype.kind == "f":
        return Samples(values)
    values = as_uint16(values, name)
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return Samples(values)
    opaque = np.where(values == clear, 0, 65535).astype(np.uint16)
    return Samples(np.dstack([values, opaque]), "grey", "straight")
