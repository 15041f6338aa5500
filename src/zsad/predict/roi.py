"""Regions of interest, in which anomalies count: a region to include, a region to ignore, from mask files or polygons.

A region of interest changes what is scored. Maps are zero outside it, and the image score is the highest map value
inside: the part of a method's score that sees the picture as a whole cannot be confined, so it is left out. Hence
a calibration holds for the region it was made with, and carries it.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field

from zsad.errors import ConfigError, ImageError
from zsad.files import parse_json

Point = tuple[float, float]
Polygon = tuple[Point, ...]
Mask = NDArray[np.bool_]

_FINE = 4  # pixels are cut into so many a side when a polygon is drawn
_FINE_UP_TO = 1024  # larger maps need no finer drawing


class Area(BaseModel):
    """A part of a picture: polygons in pixels of the original image, or a mask as lengths of runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] | None = Field(
        default=None,
        description="(H, W) of the images it is made for; None: polygons for images of any size.",
    )
    polygons: tuple[Polygon, ...] = Field(default=(), description="Each of (x, y) points.")
    runs: tuple[int, ...] = Field(
        default=(), description="Lengths of runs of the mask, row by row, outside and inside by turns."
    )

    @classmethod
    def from_mask(cls, mask: Mask) -> Area:
        """The area of a mask (H, W)."""
        flat = mask.ravel()
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        lengths = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
        first = [0] if flat[0] else []  # runs begin with the outside
        return cls(size=(mask.shape[0], mask.shape[1]), runs=tuple(first + lengths))

    def rendered(self, image: tuple[int, int], size: tuple[int, int]) -> Mask:
        """The area as a mask (H, W) of `size`, for an image of size `image`.

        Raises:
            ImageError: it is made for images of another size.
        """
        if self.size is not None and self.size != image:
            raise ImageError(
                f"the image is {image[1]}x{image[0]} px but the region of interest is made for "
                f"{self.size[1]}x{self.size[0]} px; give a polygon file without size, or a mask of the image's size"
            )
        if self.runs:
            inside = np.arange(len(self.runs)) % 2 == 1
            full = np.repeat(inside, self.runs).reshape(image)
            return _resized(Image.fromarray(full.astype(np.uint8) * 255), size)
        fine = _FINE if max(size) <= _FINE_UP_TO else 1
        canvas = Image.new("L", (size[1] * fine, size[0] * fine))
        draw = ImageDraw.Draw(canvas)
        across, down = canvas.width / image[1], canvas.height / image[0]
        for polygon in self.polygons:
            # The centre of a pixel lies half a pixel behind its corner, at which Pillow counts.
            draw.polygon([(x * across - 0.5, y * down - 0.5) for x, y in polygon], fill=255)
        return _resized(canvas, size)


class RegionOfInterest(BaseModel):
    """Part of a picture in which anomalies count: inside `include` (or everywhere), but not inside `ignore`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include: Area | None = Field(default=None, description="None: the whole picture.")
    ignore: Area | None = Field(default=None, description="None: nothing.")

    def mask(self, image: tuple[int, int], size: tuple[int, int]) -> Mask:
        """(H, W) of `size`, true where an image of size `image` is looked at; not to be written to.

        Raises:
            ImageError: made for images of another size, or nothing of the image is left.
        """
        return _mask(self, image, size)

    def digest(self) -> str:
        """16 hexadecimal digits that are the same for equal regions."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


@lru_cache(maxsize=16)
def _mask(region: RegionOfInterest, image: tuple[int, int], size: tuple[int, int]) -> Mask:
    inside = np.ones(size, dtype=np.bool_)
    if region.include is not None:
        inside &= region.include.rendered(image, size)
    if region.ignore is not None:
        inside &= ~region.ignore.rendered(image, size)
    if not inside.any():
        raise ImageError(
            f"nothing of the {image[1]}x{image[0]} px image lies in the region of interest; check --roi and --ignore"
        )
    inside.setflags(write=False)
    return inside


def _resized(picture: Image.Image, size: tuple[int, int]) -> Mask:
    if picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(picture) > 127


def read_region(include: str | Path | None, ignore: str | Path | None) -> RegionOfInterest | None:
    """The region of interest of two files; None where neither is given.

    Args:
        include: mask file (above 0 counts), or a .json with polygons in pixels of the image: `[[x, y], ...]`, a list
            of such, or `{"polygons": [...], "size": [H, W]}`.
        ignore: the same for what is left out.

    Raises:
        ConfigError: a polygon file that is broken, or an empty area.
        ImageError: a mask that cannot be read.
    """
    if include is None and ignore is None:
        return None
    areas = [None if path is None else _read_area(Path(path)) for path in (include, ignore)]
    return RegionOfInterest(include=areas[0], ignore=areas[1])


def _read_area(path: Path) -> Area:
    if path.suffix.lower() != ".json":
        from zsad.images.masks import load_mask
        from zsad.images.open import check_file

        check_file(path)
        mask = load_mask(path)
        if not mask.any():
            raise ConfigError(f"mask {path} is all zero, so it marks no area; draw the area in white")
        return Area.from_mask(mask)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise ConfigError(
            f"polygon file {path} cannot be read ({reason}); expected [[x, y], ...] in pixels"
        ) from error
    size = content.get("size") if isinstance(content, dict) else None
    polygons = content.get("polygons") if isinstance(content, dict) else content
    if _is_polygon(polygons):
        polygons = [polygons]
    sized = size is None or _is_size(size)
    if not (isinstance(polygons, list) and polygons and all(map(_is_polygon, polygons)) and sized):
        raise ConfigError(
            f"polygon file {path} holds no polygons, expected [[x, y], ...] with 3 points or more, a list of such, "
            'or {"polygons": [...], "size": [H, W]}'
        )
    outlines = tuple(tuple((float(x), float(y)) for x, y in polygon) for polygon in polygons)
    return Area(size=None if size is None else (size[0], size[1]), polygons=outlines)


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 3 and all(_is_pair(point) for point in value)


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, int | float) and abs(part) < 1e7 for part in value)
    )


def _is_size(value: Any) -> bool:
    return _is_pair(value) and all(isinstance(part, int) and part > 0 for part in value)
