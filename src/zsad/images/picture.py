"""An open picture, and the one preprocessing that turns it into the numbers a model sees.

Its size is known, and its pixels are decoded when they are asked for, upright and as RGB.

Nothing needs all of a large picture as RGB: it is resized, shrunk or cut strip by strip. What a decoder must hold in
memory is bounded where the file is opened.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.errors import ConfigError
from zsad.images.pixels import (
    MAX_PIXELS,
    PLAIN,
    TRANSPOSED,
    Reading,
    Samples,
    Span,
    check_sides,
    decoding,
    find_span,
    samples_of,
    to_rgb,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Box = tuple[float, float, float, float]
"""Top, left, bottom, right in pixels of the upright picture."""

_STRIP_PIXELS = 4_000_000
_ALONE_FROM = 16_000_000
_alone = threading.Lock()
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Stored(Protocol):
    """Pixels as they are stored: not upright, in the file's own colour model."""

    @property
    def size(self) -> tuple[int, int]:
        """(W,H)."""

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image | Samples:
        """Return a part (left, top, right, bottom)."""


class ImagePixels:
    """Stored pixels of a Pillow image, loaded at the first use; not copied where all are asked for.

    Attributes:
        image: the image.
        shared: whether it belongs to the caller, so that nobody may be handed it.
    """

    def __init__(self, image: Image.Image, *, shared: bool = False) -> None:
        self.image, self.shared = image, shared
        self.size: tuple[int, int] = image.size

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """Return a part (left, top, right, bottom)."""
        self.image.load()
        return self.image if box == (0, 0, *self.image.size) else self.image.crop(box)


class SamplePixels:
    """Stored pixels in an array."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.size = (samples.values.shape[1], samples.values.shape[0])

    def crop(self, box: tuple[int, int, int, int]) -> Samples:
        """Return a part (left, top, right, bottom)."""
        left, top, right, bottom = box
        return Samples(self.samples.values[top:bottom, left:right], self.samples.model, self.samples.alpha)


class Picture:
    """An open picture.

    Args:
        stored: its pixels.
        name: for messages.
        reading: how depth and transparency are read.
        turn: EXIF's orientation, 1 to 8.

    Attributes:
        size: (H,W) of the upright picture, the same before and after pixels are read.
    """

    def __init__(self, stored: Stored, name: str, reading: Reading = PLAIN, *, turn: int = 1) -> None:
        self._stored, self._name, self._reading, self._turn = stored, name, reading, turn
        self.size = self._upright(stored.size[::-1])
        self._span: Span | None = None
        self._has_span = False

    def draft(self, target: tuple[int, int]) -> None:
        """Let a JPEG be decoded at the smallest scale, down to 1/8, with sides of at least `target` (H,W)."""
        if isinstance(self._stored, ImagePixels):
            self._stored.image.draft(None, self._upright(target)[::-1])
            self._stored.size = self._stored.image.size

    def rgb(self) -> Image.Image:
        """Return all of it."""
        width, height = self._stored.size
        if not self._is_small and not isinstance(self._stored, ImagePixels):
            return self._shrunk(1)
        image = _turned(self._cut(0, 0, height, width), self._turn)
        shared = isinstance(self._stored, ImagePixels) and self._stored.shared
        return image.copy() if shared and image is self._stored.image else image  # type: ignore[attr-defined]

    def resized(self, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        """Return all of it as RGB of `size` (H,W), as resizing `rgb()` would give it."""
        if self._is_small:
            return self.rgb().resize(size[::-1], resample)
        high, wide = self._upright(size)
        width, height = self._stored.size
        narrow = Image.new("RGB", (wide, height))
        for top, bottom in self._strips():
            strip = self._cut(top, 0, bottom, width)
            narrow.paste(strip.resize((wide, bottom - top), resample), (0, top))
        return _turned(narrow.resize((wide, high), resample), self._turn)

    def preview(self, longest: int) -> Image.Image:
        """Return all of it as a new RGB image of which no side exceeds `longest`."""
        if self._is_small:
            image = self.rgb().copy()
            image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            return image
        factor = max(1, max(self.size) // (2 * longest))
        share = min(1.0, longest / max(self.size))
        target = (max(1, round(self.size[1] * share)), max(1, round(self.size[0] * share)))
        box = (0.0, 0.0, self.size[1] / factor, self.size[0] / factor)
        return self._shrunk(factor).resize(target, Image.Resampling.LANCZOS, box=box)

    def part(self, box: Box, size: tuple[int, int], *, resample: Image.Resampling) -> Image.Image:
        """Return a box of the upright picture as RGB of `size` (H,W)."""
        width, height = self._stored.size
        top, left, bottom, right = _stored_box(box, self._turn, self.size)
        y0, x0 = max(0, int(np.floor(top))), max(0, int(np.floor(left)))
        y1, x1 = min(height, int(np.ceil(bottom))), min(width, int(np.ceil(right)))
        cut = self._cut(y0, x0, y1, x1)
        inner = (max(left - x0, 0.0), max(top - y0, 0.0), min(right, x1) - x0, min(bottom, y1) - y0)
        target = self._upright(size)[::-1]
        if inner != (0.0, 0.0, float(cut.width), float(cut.height)) or cut.size != target:
            cut = cut.resize(target, resample, box=inner)
        return _turned(cut, self._turn)

    def values(self) -> npt.NDArray[Any]:
        """Return the values (H,W) as they are stored but upright, of colours the largest; alpha left out."""
        width, height = self._stored.size
        with decoding(self._name):
            pixels = samples_of(self._stored.crop((0, 0, width, height)), self._name)
            if isinstance(pixels, Samples):
                values = pixels.colours
                if pixels.model == "inverted" and values.dtype.kind in "ub":
                    values = np.iinfo(values.dtype).max - values
            else:
                values = np.asarray(pixels.convert("L" if pixels.mode in ("1", "L") else "RGB"))
        return _upright_array(values if values.ndim == 2 else values.max(axis=2), self._turn)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other large pictures waiting, so that threads do not multiply the memory that decoding takes."""
        if self.size[0] * self.size[1] < _ALONE_FROM:
            yield
            return
        with _alone:
            yield

    @property
    def _is_small(self) -> bool:
        return self._stored.size[0] * self._stored.size[1] <= _STRIP_PIXELS

    def _upright(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[::-1] if self._turn in TRANSPOSED else size

    def _strips(self, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """Yield top and bottom of strips, whole multiples of rows."""
        width, height = self._stored.size
        rows = max(1, _STRIP_PIXELS // (width * multiple)) * multiple
        for top in range(0, height, rows):
            yield top, min(height, top + rows)

    def _shrunk(self, factor: int) -> Image.Image:
        """Return all of it as RGB, shrunk by a whole number."""
        width, height = self._stored.size
        canvas = Image.new("RGB", (-(-width // factor), -(-height // factor)))
        for top, bottom in self._strips(factor):
            strip = self._cut(top, 0, bottom, width)
            canvas.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
        return _turned(canvas, self._turn)

    def _cut(self, top: int, left: int, bottom: int, right: int) -> Image.Image:
        """Return a part of the stored picture as RGB."""
        check_sides(self._stored.size, self._name)
        with decoding(self._name):
            cut = self._stored.crop((left, top, right, bottom))
            return to_rgb(cut, self._name, self._reading, span=self._found_span(cut))

    def _found_span(self, cut: Image.Image | Samples) -> Span | None:
        """Return the span of all of the picture, found at the first cut."""
        if self._has_span or isinstance(samples_of(cut, self._name), Image.Image):
            return self._span
        width = self._stored.size[0]
        strips = list(self._strips())
        parts = (samples_of(self._stored.crop((0, top, width, bottom)), self._name) for top, bottom in strips)
        self._span = find_span(
            (part for part in parts if isinstance(part, Samples)), self._reading.levels, stride=len(strips)
        )
        self._has_span = True
        return self._span


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
    return image if turn == 1 else image.transpose(_TURNS[turn])


def _upright_array(values: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    if turn in TRANSPOSED:
        values = values.T
    if turn in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if turn in (3, 4, 7, 8) else values


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
        sides: tuple[object, ...] = self.image_size  # from a card they may be anything
        whole = all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides)
        if len(self.image_size) != 2 or not whole or min(self.image_size) < 1:
            raise ConfigError(f"image_size is {self.image_size}, expected two positive whole numbers (H, W)")
        if math.prod(self.image_size) > MAX_PIXELS:
            raise ConfigError(
                f"image_size is {self.image_size}, more than {MAX_PIXELS // 10**6} megapixels; expected a smaller one"
            )
        parts: tuple[object, ...] = (*self.mean, *self.std)  # from a card they may be anything
        finite = all(isinstance(part, int | float) and math.isfinite(part) for part in parts)
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ConfigError(f"mean {self.mean} and std {self.std}: expected 3 numbers each, std above 0")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ConfigError(f"interpolation is {self.interpolation!r}, expected 'bicubic' or 'bilinear'")

    def __call__(self, image: Image.Image | Picture) -> npt.NDArray[np.float32]:
        """Return the normalised float32 (3,H,W) of a Pillow image or an open picture."""
        resample = Image.Resampling[self.interpolation.upper()]
        picture = (
            Picture(ImagePixels(image), "image given as an object")
            if isinstance(image, Image.Image)
            else image
        )
        resized = picture.resized(self.image_size, resample)
        pixels = np.asarray(resized, dtype=np.float32) / np.float32(255)
        pixels = (pixels - np.asarray(self.mean, dtype=np.float32)) / np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def fitted(self, size: tuple[int, int], patch: int) -> Preprocess:
        """Return one for an image of `size` (H,W): in its proportions, with about as many pixels and whole patches.

        Neither side gets fewer than a quarter of its patches, so a very thin image is squeezed somewhat.

        Example:
            >>> Preprocess((320, 320)).fitted((1080, 1920), 16).image_size
            (240, 432)
        """
        rows, columns = (max(1, side // patch) for side in self.image_size)
        total, ratio = rows * columns, (size[0] / size[1])
        high = min(max(round((total * ratio) ** 0.5), -(-rows // 4)), 4 * rows)
        wide = min(max(round((total / ratio) ** 0.5), -(-columns // 4)), 4 * columns)
        return replace(self, image_size=(high * patch, wide * patch))

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
