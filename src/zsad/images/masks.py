"""Masks: reading, their forms (an image, a folder of images, labelme's polygons), and those beside their images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from zsad.errors import DataError, ImageError, ZsadError
from zsad.files import parse_document
from zsad.images.decode import image_size
from zsad.images.open import LABELME_FOLDER, open_picture, split_mask_stem
from zsad.images.pixels import MAX_PIXELS, check_pixels

_LOSSLESS = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif", ".webp"})
_FEW_VALUES = 8  # masks of defect numbers have some values, pictures have dozens
_NEARLY = 0.08  # of the range: how far lossy compression moves the two values of a mask
_ALMOST_ALL = 0.97
_SHAPES = {"polygon", "rectangle", "circle", "line", "linestrip", "point"}


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
        mask, full = (f"{width}x{height} px" for height, width in (foreground.shape, image_size))
        raise DataError(
            f"mask {path} is {mask} but its image {image or ''} is {full}: "
            "a mask must have the size of its image, export the mask again"
        )
    return foreground if size is None else resize_mask(foreground, size)


def mask_values(path: str | Path) -> npt.NDArray[Any]:
    """Return the values of a mask (H,W) as they are stored, of colours the largest; alpha is ignored.

    A file of 1 bit a pixel has the values 0 and 255. A folder is one mask in several images (MVTec LOCO): the largest
    value of all. A JSON file holds labelme's shapes, 255 within them.

    Raises:
        ImageError: a file that cannot be read, or parts of different sizes.
    """
    path = Path(path)
    if path.is_dir():
        return _joined(path)
    if path.suffix.lower() == ".json":
        return _drawn(path)
    with open_picture(path) as picture:
        return picture.values()


def resize_mask(foreground: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return a mask as bool of `size` (H,W): bilinear, cut at more than half, see `load_mask`."""
    if tuple(size) == foreground.shape:
        return foreground
    picture = Image.fromarray(foreground.astype(np.uint8) * 255)
    resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized) > 127  # value / 255 > 0.5


def mask_size(path: Path) -> tuple[int, int]:
    """Return (H,W) of a mask of any form, of image files from the header alone.

    Raises:
        ImageError: it cannot be read.
    """
    if path.is_dir():
        parts = mask_parts(path)
        return mask_size(parts[0]) if parts else mask_values(path).shape[:2]
    return _canvas(_labelme(path), path) if path.suffix.lower() == ".json" else image_size(path)


def mask_parts(folder: Path) -> list[Path]:
    """Return the images that a mask in several parts consists of, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _LOSSLESS and path.is_file())


def _joined(folder: Path) -> npt.NDArray[Any]:
    parts = mask_parts(folder)
    if not parts:
        raise ImageError(f"{folder} holds no mask: expected PNG files, unpack the set again")
    values = mask_values(parts[0])
    for part in parts[1:]:
        more = mask_values(part)
        if more.shape != values.shape:
            raise ImageError(
                f"{part} has another size than {parts[0]}: masks of one image must have one size"
            )
        values = np.maximum(values, more)
    return values


def is_labelme(path: Path) -> bool:
    """True for a JSON file of labelme: an image's size and shapes on it."""
    try:
        return path.suffix.lower() == ".json" and path.is_file() and bool(_labelme(path))
    except ImageError:
        return False


def _labelme(path: Path) -> dict[str, Any]:
    try:
        content = parse_document(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be read as JSON ({error}): export the annotation again") from error
    wanted = {"shapes": list, "imageHeight": int, "imageWidth": int}
    if not isinstance(content, dict) or not all(isinstance(content.get(k), t) for k, t in wanted.items()):
        raise ImageError(f"{path} is no annotation of labelme: expected shapes, imageHeight and imageWidth")
    return content


def _canvas(content: dict[str, Any], path: Path) -> tuple[int, int]:
    height, width = int(content["imageHeight"]), int(content["imageWidth"])
    if height < 1 or width < 1:
        raise ImageError(f"{path} is for an image of {width}x{height} px: export the annotation again")
    check_pixels((width, height), str(path), MAX_PIXELS)
    return height, width


def _drawn(path: Path) -> npt.NDArray[np.uint8]:
    """Fill labelme's shapes as labelme itself does: with Pillow, outlines included."""
    content = _labelme(path)
    height, width = _canvas(content, path)
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    for number, shape in enumerate(content["shapes"], start=1):
        try:
            kind = str(shape.get("shape_type") or "polygon")
            points = [(float(x), float(y)) for x, y in shape["points"]]
            if kind not in _SHAPES or not points or not np.isfinite(points).all():
                raise ValueError(f"a {kind} of {len(points)} points")
            _draw_shape(draw, kind, points)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise ImageError(
                f"{path}, shape {number}: cannot be drawn ({error}), expected one of {', '.join(sorted(_SHAPES))}"
            ) from error
    return np.asarray(picture)


def _draw_shape(draw: ImageDraw.ImageDraw, kind: str, points: list[tuple[float, float]]) -> None:
    if kind == "circle":  # the centre and a point of the rim
        (x, y), (rim_x, rim_y) = points
        radius = float(np.hypot(rim_x - x, rim_y - y))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255, outline=255)
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=255, outline=255)
    elif kind in ("line", "linestrip"):
        draw.line(points, fill=255, width=10)  # labelme's own width
    elif kind == "point" or len(points) < 3:
        (x, y) = points[0]
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=255, outline=255)  # labelme's own size
    else:
        draw.polygon(points, fill=255, outline=255)


def masks_beside(images: Sequence[Path]) -> dict[Path, Path]:
    """Return the masks that lie beside their images in one folder, by image.

    `b0_mask.png` beside `b0.jpg` is one if it looks like a mask, and so is `b0.png` beside `b0.jpg` if it has the
    size of that picture and few values (Real-IAD). In a folder that labelme made of one annotation `label.png` is one.

    Args:
        images: the image files of one folder.
    """
    stems: dict[str, list[Path]] = {}
    for path in images:
        stems.setdefault(path.stem.lower(), []).append(path)
    masks: dict[Path, Path] = {}
    for stem, paths in stems.items():
        owner, ending = split_mask_stem(stem)
        owners = stems.get(owner, []) if ending else []
        for path in paths:
            if len(owners) == 1 and looks_like_mask(path):
                masks[owners[0]] = path
        if len(paths) == 2 and not ending:
            masks |= _same_stem(paths)
    if stems.keys() >= set(LABELME_FOLDER):
        image, mask, drawing = (stems[stem][0] for stem in LABELME_FOLDER)
        masks |= {image: mask, mask: drawing}
    return masks


def _same_stem(paths: Sequence[Path]) -> dict[Path, Path]:
    """Two files of one stem: the picture and its mask, if exactly one looks like a mask and their sizes agree."""
    likely = [p for p in paths if p.suffix.lower() in _LOSSLESS and looks_like_mask(p)]
    if len(likely) != 1:
        return {}
    mask, image = likely[0], next(path for path in paths if path != likely[0])
    try:
        return {image: mask} if image_size(image) == image_size(mask) else {}
    except ZsadError:
        return {}


def looks_like_mask(path: Path) -> bool:
    """True for few values, or nearly all pixels close to the lowest or the highest (a mask saved as JPEG)."""
    try:
        values = mask_values(path)
    except ZsadError:
        return False
    if values.dtype.kind == "b" or np.unique(values).size <= _FEW_VALUES:
        return True
    low, high = float(values.min()), float(values.max())
    near = _NEARLY * (high - low)
    return float(np.mean((values <= low + near) | (values >= high - near))) >= _ALMOST_ALL
