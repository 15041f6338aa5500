"""Cheap random fields: smooth noise, fractals, Voronoi cells, and the small array tools that drawing needs.

Fine noise is cut from tables that are made once from fixed seeds; coarse noise is a small random grid,
upsampled by Pillow. Both are far cheaper than Perlin noise for every pixel and look the same at these scales.
All fields are float32 (H, W); shapes are (H, W) in pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]
Shape = tuple[int, int]

_TABLE = 768
_BANK_CELLS = (1, 2, 3, 4, 6, 8)


def upsample(
    field: FloatArray, shape: Shape, *, box: tuple[float, float, float, float] | None = None
) -> FloatArray:
    """Resize a float field (h, w) to `shape` (H, W); `box` is the part used: left, top, right, bottom."""
    resized = Image.fromarray(field).resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, dtype=np.float32)


@lru_cache(maxsize=8)
def _table(cell: int) -> FloatArray:
    """A (768, 768) noise table of about zero mean and unit deviation whose grains are `cell` pixels wide."""
    rng = np.random.default_rng(20_240 + cell)
    if cell == 1:
        return rng.standard_normal((_TABLE, _TABLE), dtype=np.float32)
    cells = _TABLE // cell
    field = upsample(rng.standard_normal((cells, cells), dtype=np.float32), (_TABLE, _TABLE))
    scaled: FloatArray = ((field - field.mean()) / field.std()).astype(np.float32)
    return scaled


@lru_cache(maxsize=4)
def _voronoi_table(width: int) -> tuple[Image.Image, Image.Image]:
    """Distance to the cell wall (0 at the wall) and a random tone per cell, for cells `width` pixels wide."""
    rng = np.random.default_rng(77 + width)
    cells = _TABLE // width
    points = rng.random((cells, cells, 2), dtype=np.float32)
    tones = rng.random((cells, cells), dtype=np.float32)
    row = np.arange(_TABLE, dtype=np.float32)[:, None] / width
    column = np.arange(_TABLE, dtype=np.float32)[None, :] / width
    cell_row, cell_column = np.floor(row).astype(int), np.floor(column).astype(int)
    first = np.full((_TABLE, _TABLE), 9.0, np.float32)
    second, tone = first.copy(), np.zeros_like(first)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            near = (cell_row + down) % cells, (cell_column + right) % cells
            point = points[near]
            away_row = cell_row + down + point[..., 0] - row
            away_column = cell_column + right + point[..., 1] - column
            distance = np.sqrt(away_row**2 + away_column**2).astype(np.float32)
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            tone = np.where(nearer, tones[near], tone)
            first = np.minimum(first, distance)
    return Image.fromarray((second - first).astype(np.float32)), Image.fromarray(tone.astype(np.float32))


def _crop(table: FloatArray, rng: np.random.Generator, shape: Shape) -> FloatArray:
    """A random piece (H, W) of a table, turned over at random; wraps around where the table is too small."""
    height, width = shape
    if height > _TABLE or width > _TABLE:
        rows = (np.arange(height) + int(rng.integers(_TABLE))) % _TABLE
        columns = (np.arange(width) + int(rng.integers(_TABLE))) % _TABLE
        return table[np.ix_(rows, columns)]
    top, left = int(rng.integers(_TABLE - height + 1)), int(rng.integers(_TABLE - width + 1))
    piece = table[top : top + height, left : left + width]
    turn = int(rng.integers(4))
    return piece[:: 1 - 2 * (turn & 1), :: 1 - (turn & 2)]


def white(rng: np.random.Generator, shape: Shape) -> FloatArray:
    """Independent Gaussian noise of unit deviation."""
    return _crop(_table(1), rng, shape)


def smooth(rng: np.random.Generator, shape: Shape, cell: float) -> FloatArray:
    """Smooth noise of about zero mean and unit deviation whose grains are `cell` pixels wide."""
    if cell < 10:
        return _crop(_table(min(_BANK_CELLS, key=lambda size: abs(size - cell))), rng, shape)
    return smooth_stretched(rng, shape, cell, cell)


def smooth_stretched(rng: np.random.Generator, shape: Shape, down: float, across: float) -> FloatArray:
    """Smooth noise with grains `down` pixels tall and `across` pixels wide: streaks, fibres, folds."""
    rows, columns = shape[0] / max(down, 1.0), shape[1] / max(across, 1.0)
    grid = rng.standard_normal((int(rows) + 3, int(columns) + 3), dtype=np.float32)
    top, left = rng.random(), rng.random()
    box = (left, top, left + max(columns, 0.05), top + max(rows, 0.05))
    if min(down, across) < 24:
        return np.asarray(upsample(grid, shape, box=box) * np.float32(1.25), dtype=np.float32)
    # Grains this wide lose nothing by a cheap last step.
    small = upsample(grid, (shape[0] // 4 + 1, shape[1] // 4 + 1), box=box) * np.float32(1.25)
    wide = Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(wide, dtype=np.float32)


def fractal(rng: np.random.Generator, shape: Shape, cell: float, *, octaves: int = 4) -> FloatArray:
    """A sum of smooth noises of halving grain and amplitude, from `cell` pixels down."""
    total: FloatArray = smooth(rng, shape, cell) * np.float32(0.75)
    weight = 0.75
    for octave in range(1, octaves):
        if cell / 2**octave < 1:
            break
        weight *= 0.55
        total = total + smooth(rng, shape, cell / 2**octave) * np.float32(weight)
    return total


def voronoi(rng: np.random.Generator, shape: Shape, cell: float) -> tuple[FloatArray, FloatArray]:
    """Cells about `cell` pixels wide: (distance to the wall in cell widths, a tone in [0, 1] per cell)."""
    width_of_cells = next((size for size in (24, 12) if size <= cell), 6)
    walls, tones = _voronoi_table(width_of_cells)
    zoom = cell / width_of_cells
    height = min(float(_TABLE), max(shape[0] / zoom, 2.0))
    width = min(float(_TABLE), max(shape[1] / zoom, 2.0))
    left, top = rng.random() * (_TABLE - width), rng.random() * (_TABLE - height)
    box = (left, top, left + width, top + height)
    size = (shape[1], shape[0])
    wall = walls.resize(size, Image.Resampling.BILINEAR, box=box)
    tone = tones.resize(size, Image.Resampling.NEAREST, box=box)
    return np.asarray(wall, dtype=np.float32), np.asarray(tone, dtype=np.float32)


def axes(shape: Shape) -> tuple[FloatArray, FloatArray]:
    """Pixel rows (H, 1) and columns (1, W) as float32."""
    rows = np.arange(shape[0], dtype=np.float32)[:, None]
    return rows, np.arange(shape[1], dtype=np.float32)[None, :]


def turned(
    shape: Shape, angle: float, *, centre: tuple[float, float] | None = None
) -> tuple[FloatArray, FloatArray]:
    """Coordinates along and across a direction, in pixels from `centre` (row, column); `angle` in radians."""
    row, column = axes(shape)
    middle = centre if centre is not None else ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    row, column = row - np.float32(middle[0]), column - np.float32(middle[1])
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return column * cosine + row * sine, row * cosine - column * sine


def step(field: FloatArray, low: float, high: float) -> FloatArray:
    """0 below `low`, 1 above `high`, a straight ramp between."""
    return np.asarray(
        np.clip((field - np.float32(low)) * np.float32(1.0 / (high - low)), 0, 1), dtype=np.float32
    )


def magnitude(first: FloatArray, second: FloatArray) -> FloatArray:
    """Length of a vector field; several times faster than `numpy.hypot`."""
    return np.sqrt(first * first + second * second)


def planes(shape: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """An empty image, as its planes (3, H, W) and as the view (H, W, 3) on them.

    Images are kept plane by plane while they are drawn: NumPy then runs along rows, not along three channels.
    """
    empty = np.empty((3, shape[0], shape[1]), np.float32)
    return empty, empty.transpose(1, 2, 0)


def mix(first: FloatArray, second: FloatArray, amount: FloatArray) -> FloatArray:
    """Blend colours (3,) or images (H, W, 3) by `amount` (H, W): 0 gives the first, 1 the second."""
    out, view = planes(amount.shape)
    for channel in range(3):
        below, above = first[..., channel], second[..., channel]
        np.multiply(amount, above - below, out=out[channel])
        out[channel] += below
    return view


def tint(base: FloatArray, tone: FloatArray) -> FloatArray:
    """A colour (3,) or an image (H, W, 3) times a brightness field (H, W)."""
    out, view = planes(tone.shape)
    for channel in range(3):
        np.multiply(tone, base[..., channel], out=out[channel], casting="same_kind")
    return view


def grey(image: FloatArray) -> FloatArray:
    """Brightness (H, W) of an image (H, W, 3)."""
    return image @ np.array([0.299, 0.587, 0.114], np.float32)


def soften(field: FloatArray, radius: float) -> FloatArray:
    """Gaussian blur of a field in [0, 1]; eight bits are enough for what is drawn with it."""
    image = Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
    factor = int(min(radius / 1.5, min(field.shape) / 6))
    if factor >= 2:
        small = image.reduce(factor).filter(ImageFilter.GaussianBlur(float(radius) / factor))
        image = small.resize(image.size, Image.Resampling.BICUBIC)
    else:
        image = image.filter(ImageFilter.GaussianBlur(float(radius)))
    return from_bytes(image)


def grow(mask: BoolArray, radius: int = 1) -> BoolArray:
    """Dilate a mask by a square of side 2 radius + 1."""
    grown: BoolArray = mask.copy()
    for _ in range(radius):
        tall = grown.copy()
        tall[1:] |= grown[:-1]
        tall[:-1] |= grown[1:]
        grown = tall.copy()
        grown[:, 1:] |= tall[:, :-1]
        grown[:, :-1] |= tall[:, 1:]
    return grown


def shrink(mask: BoolArray, radius: int = 1) -> BoolArray:
    """Erode a mask by a square of side 2 radius + 1; the image border does not erode it."""
    return ~grow(~mask, radius)


def colour(
    rng: np.random.Generator,
    *,
    brightness: tuple[float, float] = (0.1, 0.9),
    saturation: tuple[float, float] = (0.0, 0.6),
    hue: float | None = None,
) -> FloatArray:
    """A random colour (3,) in [0, 1]; `hue` in [0, 1) fixes the hue up to a small change."""
    angle = rng.random() if hue is None else hue + rng.normal(0, 0.02)
    value, chroma = rng.uniform(*brightness), rng.uniform(*saturation)
    wheel = np.clip(np.abs((angle + np.array([0.0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    shade: FloatArray = value * (1 - chroma + chroma * wheel)
    return shade.astype(np.float32)


def from_bytes(image: Image.Image | ByteArray) -> FloatArray:
    """Return an eight-bit image as float32 in [0, 1]."""
    values: FloatArray = np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
    return values


def to_bytes(image: FloatArray) -> ByteArray:
    """An image in [0, 1] as uint8, clipped and rounded."""
    scaled = image * np.float32(255)
    scaled += np.float32(0.5)
    return np.ascontiguousarray(np.clip(scaled, 0, 255, out=scaled).astype(np.uint8))
