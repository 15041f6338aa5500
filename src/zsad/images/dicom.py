"""DICOM files as pictures: the window of values that a radiologist would view. Needs the extra `dicom`.

Stored values become values of the modality (Hounsfield units for CT) by the file's slope and intercept, then a window
of them becomes grey, as PS3.3 of the standard says (C.11.2.1.2): the reader's own window, or the file's first, or the
file's look-up table, or where there is none the levels that `Reading` names, else lowest to highest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.errors import ConfigError, ImageError, TooManyPixelsError
from zsad.images.pixels import Reading, check_memory, stretched
from zsad.images.tiff_tags import MAX_PAGES

_BLOCK = 4_000_000
_BYTES_A_PIXEL = 8  # of the file, its values, and the picture
_FRAGMENT = 8  # bytes of an empty frame in a compressed file


def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise ConfigError("DICOM files need pydicom, get it with: pip install 'zsad[dicom]'") from error
    return pydicom


def frame_count(path: Path) -> int:
    """Return the number of frames in a file, from its header.

    Raises:
        ImageError: more than are read, or than its bytes can hold.
    """
    header = _pydicom().dcmread(path, stop_before_pixels=True)
    return _frames(header, path.stat().st_size, str(path))


def _frames(data: Any, size: int, name: str) -> int:
    """Return how many frames a file of `size` bytes has."""
    frames = max(1, int(data.get("NumberOfFrames", 1) or 1))
    bits = int(data.get("BitsAllocated", 8) or 8) * int(data.get("SamplesPerPixel", 1) or 1)
    bits *= int(data.get("Rows", 0) or 0) * int(data.get("Columns", 0) or 0)
    syntax = data.file_meta.TransferSyntaxUID
    compressed = syntax.is_compressed or syntax.is_deflated
    if frames > 1 and frames * (_FRAGMENT if compressed else bits // 8) > size:
        raise ImageError(f"{name} claims {frames:,} frames in {size:,} bytes: it is damaged, export it again")
    if frames > MAX_PAGES:
        raise ImageError(f"{name} has {frames:,} frames, at most {MAX_PAGES:,} are read: split it")
    return frames


def read_dicom(file: BinaryIO, number: int, reading: Reading, *, name: str) -> Image.Image:
    """Return frame `number`, from 1, as grey or RGB of 8 bits.

    Args:
        file: an open file.
        number: of the frame.
        reading: window, levels, and largest number of pixels.
        name: for messages.

    Raises:
        ImageError: not DICOM, without pixels, without that frame, or compressed in a way that needs a further package.
        ConfigError: pydicom is not installed.
    """
    pydicom = _pydicom()
    try:
        data = pydicom.dcmread(file)
    except pydicom.errors.InvalidDicomError as error:
        raise ImageError(f"{name} is no DICOM file: check its name, or export it again") from error
    rows, columns = int(data.get("Rows", 0) or 0), int(data.get("Columns", 0) or 0)
    if "PixelData" not in data or not rows or not columns:
        raise ImageError(f"{name} holds no pixels (a report or a plan?): name DICOM images")
    if rows * columns > reading.max_pixels:
        raise TooManyPixelsError(
            f"{name} has {columns}x{rows} = {rows * columns:,} pixels, at most {reading.max_pixels:,} are read"
        )
    check_memory(_BYTES_A_PIXEL * rows * columns, name, reading.max_pixels)
    frames = _frames(data, file.seek(0, 2), name)
    if number > frames:
        many = f"{frames} frame{'s' * (frames > 1)}"
        raise ImageError(f"{name.rpartition('#')[0] or name} has {many}, there is no frame {number}")
    return Image.fromarray(_picture(data, _values(pydicom, data, number - 1, name), reading))


def _values(pydicom: Any, data: Any, index: int, name: str) -> npt.NDArray[Any]:
    try:
        values: npt.NDArray[Any] = pydicom.pixels.pixel_array(data, index=index)
    except (RuntimeError, NotImplementedError) as error:
        syntax = data.file_meta.TransferSyntaxUID
        if not syntax.is_compressed:
            raise
        raise ImageError(
            f"{name} is compressed ({syntax.name}), which needs a decoder: pip install pylibjpeg pylibjpeg-openjpeg "
            "pylibjpeg-libjpeg, or export it without compression"
        ) from error
    return values


def _picture(data: Any, values: npt.NDArray[Any], reading: Reading) -> npt.NDArray[np.uint8]:
    """(H,W) or (H,W,3) of 8 bits."""
    pixels = _pydicom().pixels
    kind = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
    if kind == "PALETTE COLOR":
        values = pixels.apply_color_lut(values, data)
    if values.ndim == 3:
        depth = 8 * values.dtype.itemsize if kind == "PALETTE COLOR" else int(data.get("BitsStored", 8))
        return stretched(values, 0, 2**depth - 1)
    # The standard's tables give float64: they are applied to some rows at a time.
    rows = max(1, _BLOCK // values.shape[1])
    blocks = [slice(top, top + rows) for top in range(0, values.shape[0], rows)]
    units = (pixels.apply_modality_lut(values[block], data) for block in blocks)
    span = _span(units, len(blocks), reading)
    grey = np.empty(values.shape, np.uint8)
    for block in blocks:
        grey[block] = _windowed(data, pixels.apply_modality_lut(values[block], data), reading, span)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _span(blocks: Iterable[npt.NDArray[Any]], count: int, reading: Reading) -> tuple[float, float]:
    """Return lowest and highest value, or the percentiles of `reading`, of every `count`-th value."""
    if not isinstance(reading.levels, tuple):
        edges = [(float(block.min()), float(block.max())) for block in blocks]
        return min(low for low, _ in edges), max(high for _, high in edges)
    low, high = np.percentile(np.concatenate([block.ravel()[::count] for block in blocks]), reading.levels)
    return float(low), float(high)


def _windowed(
    data: Any, values: npt.NDArray[Any], reading: Reading, span: tuple[float, float]
) -> npt.NDArray[np.uint8]:
    centre, width = data.get("WindowCenter"), data.get("WindowWidth")
    exact = str(data.get("VOILUTFunction", "LINEAR") or "LINEAR") == "LINEAR_EXACT"
    if reading.window is not None:
        (centre, width), exact = reading.window, False
    elif centre is None or width is None:
        if "VOILUTSequence" in data:
            table = _pydicom().pixels.apply_voi_lut(values, data)
            return stretched(table, 0, 2 ** int(data.VOILUTSequence[0].LUTDescriptor[2]) - 1)
        return stretched(values, *span)
    return window(values, _first(centre), _first(width), exact=exact)


def window(
    values: npt.NDArray[Any], centre: float, width: float, *, exact: bool = False
) -> npt.NDArray[np.uint8]:
    """Values of the modality as bytes through a window: PS3.3 C.11.2.1.2.1 (LINEAR) or .3.2 (LINEAR_EXACT).

    Args:
        values: of any shape.
        centre: the value in the middle of the greys.
        width: how many values the greys cover, at least 1, or above 0 where `exact`.
        exact: the window is [centre - width / 2, centre + width / 2], else half a value lower and one narrower.

    Example:
        >>> window(np.array([-160, 40, 240]), 40, 400).tolist()
        [0, 128, 255]
    """
    half = width / 2 if exact else (max(width, 1) - 1) / 2
    middle = centre if exact else centre - 0.5
    if half == 0:
        return np.asarray(np.where(values > middle, 255, 0), dtype=np.uint8)
    return stretched(values.astype(np.float64), middle - half, middle + half)


def _first(value: Any) -> float:
    """A tag that may hold several windows."""
    return float(value if not hasattr(value, "__len__") or isinstance(value, str) else value[0])
