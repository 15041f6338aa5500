"""The one preprocessing that turns an image into the numbers a model sees."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.errors import ConfigError
from zsad.images.decode import load_image
from zsad.images.pixels import MAX_PIXELS, decoding

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


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

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return the normalised float32 (3,H,W) of a Pillow image."""
        if image.mode != "RGB":
            image = load_image(image)
        height, width = self.image_size
        with decoding("image given as an object"):
            resized = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
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
