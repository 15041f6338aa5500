"""Reading of images and masks, and the one preprocessing that turns an image into the numbers a model sees.

Whatever is wrong with a file ends as an `ImageError` of one line; no exception of the decoder ever leaves
this module. Pillow's own refusal of truncated files (`ImageFile.LOAD_TRUNCATED_IMAGES = False`) is relied on
and never changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from zsad.data.address import split_address
from zsad.data.pixels import MAX_PIXELS, PLAIN, Reading, oriented, to_bytes, to_rgb, upright_size
from zsad.errors import ConfigError, DataError, ImageError, TooManyPixelsError

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".png",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
        ".avif",
    }
)
"""File suffixes (lower case) that count as images when a folder is searched."""

# An allow-list: decoders of documents (EPS starts Ghostscript) have no business with data sets.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
_MIN_SIDE = 8

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Source = str | Path | bytes | Image.Image | npt.NDArray[Any]


def load_image(
    source: Source, *, max_pixels: int = MAX_PIXELS, target: tuple[int, int] | None = None
) -> Image.Image:
    """Return `source` as an upright RGB image.

    EXIF orientation is applied, transparency is laid on white, an animation gives its first frame. Grey
    values of more than 8 bits are divided by the smallest of 2^8-1, 2^10-1, 2^12-1, 2^14-1, 2^16-1 that
    holds the image's maximum, so a 12-bit camera stored in 16 bits keeps its contrast.

    Args:
        source: a path, the content of an image file as bytes, a Pillow image, or an array (H,W), (H,W,1), (H,W,3) or
            (H,W,4) of uint8, uint16, bool, or float in [0,1].
        max_pixels: refuse larger images, before they are decoded.
        target: (H,W) the image will be resized to; JPEGs are then decoded at the smallest of the scales 1,
            1/2, 1/4, 1/8 that keeps both sides at least twice as large. None decodes in full.

    Raises:
        ImageError: missing, empty, truncated, not an image, a side below 8 px, or (TooManyPixelsError) too large.
    """
    return read_image(source, max_pixels=max_pixels, target=target)[0]


def read_image(
    source: Source,
    *,
    max_pixels: int = MAX_PIXELS,
    target: tuple[int, int] | None = None,
    name: str = "image given as bytes",
) -> tuple[Image.Image, tuple[int, int]]:
    """Like `load_image`, and also return the (H,W) of the upright image before any reduced decoding.

    `name` is what messages call an image given as bytes.
    """
    if isinstance(source, bytes):
        with _opened_content(source, name, max_pixels) as image:
            return _upright_rgb(image, name, max_pixels, target)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        with _decoding("image given as an object"):
            return _upright_rgb(source, "image given as an object", max_pixels)
    if not isinstance(source, str | Path):
        raise ImageError(
            f"cannot use {type(source).__name__} as an image: give a path, bytes, a PIL image or a NumPy array"
        )
    with _opened(Path(source), max_pixels) as image:
        return _upright_rgb(image, str(source), max_pixels, target)


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (H,W) of the upright image from its header alone, without decoding pixels.

    Raises:
        ImageError: as `load_image`, except that a truncated body goes unnoticed.
    """
    with _opened(Path(path), max_pixels) as image:
        return upright_size(image)


def load_mask(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    image: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
) -> npt.NDArray[np.bool_]:
    """Return a mask as bool (H,W); any value above 0 is foreground, alpha is ignored.

    With `size` the mask (as 0/255) is resized by Pillow's bilinear filter and cut at more than half, as the
    field's common protocol does. Defects thinner than about half an output pixel can vanish that way.

    Args:
        path: the mask file.
        size: (H,W) of the result; None keeps the file's own size.
        image: path of the image the mask belongs to, for the message.
        image_size: (H,W) of that image; when given, a mask of another size is refused.

    Raises:
        ImageError: the file cannot be read.
        DataError: the mask has another size than its image.
    """
    foreground = mask_values(path) > 0
    if image_size is not None and foreground.shape != tuple(image_size):
        own, full = (f"{width}x{height} px" for height, width in (foreground.shape, image_size))
        raise DataError(
            f"mask {path} is {own} but its image {image or ''} is {full}: "
            "a mask must have the size of its image, export the mask again"
        )
    return foreground if size is None else resize_mask(foreground, size)


def mask_values(path: str | Path) -> npt.NDArray[Any]:
    """Return the values of a mask file (H,W) as they are stored, of colours the largest; alpha is ignored.

    A file of 1 bit a pixel has the values 0 and 255.

    Raises:
        ImageError: the file cannot be read.
    """
    with _opened(Path(path), MAX_PIXELS) as opened:
        opened.load()
        image = oriented(opened)
        if image.mode == "1":
            image = image.convert("L")
        elif image.mode not in ("L", "F") and not image.mode.startswith("I"):
            image = image.convert("RGB")  # palette indices and alpha are not values
        values = np.asarray(image)
    return values if values.ndim == 2 else np.asarray(values.max(axis=2))


def resize_mask(foreground: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return a mask as bool of `size` (H,W): bilinear, cut at more than half, see `load_mask`."""
    if tuple(size) == foreground.shape:
        return foreground
    picture = Image.fromarray(foreground.astype(np.uint8) * 255)
    resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized) > 127  # value / 255 > 0.5


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Resize to exactly `image_size` (aspect ratio not kept), scale to [0,1], normalise.

    Raises:
        ConfigError: a size or a standard deviation that is not positive, or an unknown interpolation.
    """

    image_size: tuple[int, int]
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ConfigError(f"image_size is {self.image_size}, expected two positive numbers (H, W)")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(f"mean {self.mean} and std {self.std}: expected 3 numbers each, std above 0")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ConfigError(f"interpolation is {self.interpolation!r}, expected 'bicubic' or 'bilinear'")

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return the normalised float32 (3,H,W) of a Pillow image."""
        if image.mode != "RGB":
            image = load_image(image)
        height, width = self.image_size
        with _decoding("image given as an object"):
            resized = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        pixels = np.asarray(resized, dtype=np.float32) / np.float32(255)
        pixels = (pixels - np.asarray(self.mean, dtype=np.float32)) / np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that are the same for equal settings on every machine."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Build from `to_dict()`'s result.

        Raises:
            ConfigError: an unknown or missing key, or a value of the wrong kind.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"preprocessing has the unknown keys {unknown}, expected some of {sorted(known)}"
            )
        try:
            settings: dict[str, Any] = {k: v if isinstance(v, str) else tuple(v) for k, v in values.items()}
            return cls(**settings)
        except TypeError as error:
            raise ConfigError(f"preprocessing cannot be read from {dict(values)}: {error}") from error


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageError`.

    Decoders fed with broken files raise nearly anything (OSError, SyntaxError, ValueError, struct.error,
    zlib.error, IndexError, and warnings where these are errors), hence the wide net.
    """
    try:
        yield
    except (ImageError, DataError):
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
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open a file with its size checked, pixels not yet decoded."""
    with _decoding(str(path)):
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
        with Image.open(path, formats=_formats()) as image:
            _check_pixels(image.size, str(path), max_pixels)
            yield image


@contextmanager
def _opened_content(content: bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open the content of a file with its size checked, pixels not yet decoded."""
    with _decoding(name):
        if not content:
            raise ImageError(f"{name} is empty (0 bytes): copy or export the file again")
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            _check_pixels(image.size, name, max_pixels)
            yield image


def _check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        pixels = size[0] * size[1]
        raise TooManyPixelsError(
            f"{name} has {size[0]}x{size[1]} = {pixels:,} pixels, at most {max_pixels:,} are read: "
            "tile it, make it smaller, or raise max_pixels"
        )


def _check_sides(size: tuple[int, int], name: str) -> None:
    if min(size) < _MIN_SIDE:
        raise ImageError(f"{name} is {size[0]}x{size[1]} px, expected at least {_MIN_SIDE} px on each side")


def _upright_rgb(
    image: Image.Image, name: str, max_pixels: int, target: tuple[int, int] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Return the image as upright RGB, and its full (H,W)."""
    _check_pixels(image.size, name, max_pixels)
    _check_sides(image.size, name)
    size = upright_size(image)
    if target is not None:
        height, width = target if size == image.size[::-1] else target[::-1]
        image.draft(None, (2 * width, 2 * height))
    image.load()
    return to_rgb(oriented(image), name), size


def _from_array(array: npt.NDArray[Any], max_pixels: int) -> tuple[Image.Image, tuple[int, int]]:
    name = f"array of shape {array.shape} and dtype {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"{name} is no image, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), channels last"
        )
    height, width = int(array.shape[0]), int(array.shape[1])
    _check_pixels((width, height), name, max_pixels)
    _check_sides((width, height), name)
    values = to_bytes(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array, name)
    return to_rgb(Image.fromarray(np.ascontiguousarray(values)), name), (height, width)
