"""Decoding of images.

Whatever is wrong with a file ends as an `ImageError` of one line; no exception of the decoder ever leaves
this module. Pillow's own refusal of truncated files (`ImageFile.LOAD_TRUNCATED_IMAGES = False`) is relied on
and never changed.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from zsad.images.open import Source, open_picture
from zsad.images.pixels import PLAIN, Reading


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
