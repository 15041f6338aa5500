"""Decoding of images and masks, and the one preprocessing that turns an image into the numbers a model sees.

Whatever is wrong with a file ends as an `ImageError` of one line; no exception of the decoder ever leaves
this module. Pillow's own refusal of truncated files (`ImageFile.LOAD_TRUNCATED_IMAGES = False`) is relied on
and never changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.errors import ConfigError
from zsad.images.open import Source, open_picture
from zsad.images.picture import ImagePixels, Picture
from zsad.images.pixels import MAX_PIXELS, PLAIN, Reading

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_image(
    source: Source, *, target: tuple[int, int] | None = None, reading: Reading = PLAIN
) -> Image.Image:
    """Return `source` as an upright RGB image.

    EXIF orientation is applied, an animation gives its first frame, a page or a frame has an address such as
    `scan.tif#2` (`zsad.images.open`).

    Args:
        source: a path, the content of an image file as bytes, a Pillow image, or an array (H,W), (H,W,1), (H,W,3) or
            (H,W,4) of uint8, uint16, bool, or float in [0,1].
        target: (H,W) the image will be resized to; JPEGs are then decoded at the smallest of the scales 1,
            1/2, 1/4, 1/8 that keeps both sides at least twice as large. None decodes in full.
        reading: depth, transparency, DICOM window, largest number of pixels.

    Raises:
        ImageError: missing, empty, truncated, not an image, a side below 8 px, or (TooManyPixelsError) too large.
        ConfigError: a DICOM file or a video, and the package that reads it is not installed.
    """
    return read_image(source, target=target, reading=reading)[0]


def read_image(
    source: Source,
    *,
    target: tuple[int, int] | None = None,
    name: str = "image given as bytes",
    reading: Reading = PLAIN,
) -> tuple[Image.Image, tuple[int, int]]:
    """Return what `load_image` does, and the (H,W) of the upright image before any reduced decoding.

    `name` is the name in messages of an image given as bytes.
    """
    with open_picture(source, reading, name=name) as picture:
        size = picture.size
        if target is not None:
            picture.draft((2 * target[0], 2 * target[1]))
        return picture.rgb(), size


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (H,W) of the upright image from its header alone, without decoding pixels.

    Raises:
        ImageError: as `load_image`, except that a truncated body goes unnoticed.
    """
    with open_picture(path) as picture:
        return picture.size


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
