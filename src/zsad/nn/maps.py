"""Specification of maps, the constant operators that make them, and maps of arrays. Needs NumPy alone.

Bilinear interpolation and Gaussian smoothing are linear and separable, so each is one constant matrix a side:
a map is `K_h A K_w^T`. The matrices equal `torch.nn.functional.interpolate` and
`scipy.ndimage.gaussian_filter` (truncated at four deviations, mirrored with the border sample repeated), or, where
asked for, `kornia.filters.gaussian_blur2d` as MoECLIP's released code calls it (three deviations, mirrored without).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Bands = tuple[tuple[slice, slice, Float32], ...]
MapOrder = Literal["before_softmax", "after_softmax", "mean_logits"]
Smoothed = Literal["map", "grid", "grid_reflect"]

# Of a matrix that upsamples: what it makes stays in the processor's cache. Of one that smooths, whose rows read their
# neighbours, too: fewer rows together read fewer of these in vain.
_BAND_ROWS, _SMOOTHED_ROWS = 37, 16
_GAUSSIAN_TRUNCATE, _REFLECT_TRUNCATE = 4.0, 3.0


class MapSpec(BaseModel):
    """Rules by which score grids become maps: stored beside every grid, so that a map can be rebuilt anywhere.

    `before_softmax` upsamples the logits, then takes the probability, then the mean over layers (PromptMoE
    Eq. 6); `after_softmax` takes probability and mean on the grid and upsamples once (AnomalyCLIP);
    `mean_logits` upsamples the layers' mean logit and takes its probability (AdaCLIP; for MoECLIP, which sums
    similarities without a softmax, a monotone function of that sum). Then the map is smoothed, or, with
    `smooth` set to `grid`, the grid is, before it is upsampled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] = Field(
        description="Rows and columns of the canonical map, on which metrics are taken."
    )
    order: MapOrder = "before_softmax"
    sigma: float = Field(
        default=4.0, ge=0, description="Deviation of the Gaussian in pixels of the canonical map."
    )
    smooth: Smoothed = Field(
        default="map",
        description="What is smoothed; with `grid`, sigma counts patches instead of pixels. `grid_reflect` does not "
        "repeat the border sample where it mirrors, and ends at three deviations.",
    )
    align_corners: bool = False
    scale: tuple[float, float] = Field(
        default=(0.0, 1.0), description="Map values that the coldest and the hottest colour stand for."
    )


@dataclass(frozen=True, slots=True)
class MapPath:
    """Steps from a grid to pixels: smoothing of the grid, interpolation, smoothing of the map."""

    map_sigma: float = 0.0
    align_corners: bool = False
    grid_sigma: float = 0.0
    reflect: bool = False

    @classmethod
    def of(cls, spec: MapSpec, *, smooth: bool) -> MapPath:
        """Return the path of a map, with or without its smoothing."""
        sigma = spec.sigma if smooth else 0.0
        on_map, on_grid = (sigma, 0.0) if spec.smooth == "map" else (0.0, sigma)
        return cls(on_map, spec.align_corners, on_grid, spec.smooth == "grid_reflect")

    @property
    def to_pixels(self) -> MapPath:
        """The part before a softmax that is taken at pixels."""
        return replace(self, map_sigma=0.0)

    @property
    def from_pixels(self) -> MapPath:
        """The part behind it."""
        return MapPath(map_sigma=self.map_sigma)


def interpolation_matrix(grid: int, size: int, *, align_corners: bool) -> Float64:
    """Bilinear interpolation of `grid` samples to `size` as a matrix (size, grid).

    Example:
        >>> interpolation_matrix(2, 3, align_corners=True).tolist()
        [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    steps = np.arange(size, dtype=np.float64)
    if align_corners:
        source = steps * ((grid - 1) / (size - 1)) if size > 1 else np.zeros(1)
    else:
        source = np.clip((steps + 0.5) * (grid / size) - 0.5, 0, grid - 1)
    low = np.minimum(np.floor(source).astype(np.int64), grid - 1)
    high = np.minimum(low + 1, grid - 1)
    matrix = np.zeros((size, grid))
    rows = np.arange(size)
    np.add.at(matrix, (rows, low), 1 - (source - low))
    np.add.at(matrix, (rows, high), source - low)
    return matrix


def gaussian_matrix(size: int, sigma: float, *, reflect: bool = False) -> Float64:
    """Gaussian smoothing of `size` samples as a matrix (size, size); the identity where `sigma` is 0.

    Args:
        size: samples.
        sigma: deviation in samples.
        reflect: mirror without repeating the border sample, and end at three deviations instead of four.

    Example:
        >>> bool(np.allclose(gaussian_matrix(9, 2.0).sum(axis=1), 1))
        True
    """
    if sigma == 0:
        return np.eye(size)
    radius = int(_REFLECT_TRUNCATE * sigma) if reflect else int(_GAUSSIAN_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    # Mirrored at the border, as often as the kernel reaches beyond it; by default with the border sample repeated.
    period = max(2 * size - 2, 1) if reflect else 2 * size
    folded = (np.arange(size)[:, None] + offsets[None, :]) % period
    columns = np.where(folded < size, folded, period - folded - (0 if reflect else 1))
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], columns), kernel[None, :])
    return matrix


def render_map_numpy(
    logits: Float32, spec: MapSpec, *, size: tuple[int, int] | None = None, smooth: bool = True
) -> Float32:
    """Do what `render_map` does for arrays (..., L, h, w), without PyTorch: some milliseconds for 518 x 518.

    Example:
        >>> render_map_numpy(np.zeros((4, 5, 6), np.float32), MapSpec(size=(70, 84))).shape
        (70, 84)
    """
    final = size or spec.size
    path = MapPath.of(spec, smooth=smooth)
    layers = np.moveaxis(np.asarray(logits, dtype=np.float32), -3, 0)
    if spec.order == "mean_logits":
        layers = layers.mean(axis=0, keepdims=True)
    if spec.order == "after_softmax":
        values = _sigmoid_of(np.negative(layers)).mean(axis=0)
        return _separable(values, spec.size, final, path)
    values = _mean_probability(layers, spec.size, path.to_pixels)
    if not path.map_sigma and final == spec.size:
        return values
    return _separable(values, spec.size, final, path.from_pixels)


def _mean_probability(layers: Float32, size: tuple[int, int], path: MapPath) -> Float32:
    """Mean over layers of the probabilities (..., H, W) of logits (L, ..., h, w) that are upsampled first."""
    height, width = layers.shape[-2:]
    columns = path_matrix(width, size[1], size[1], path).T.astype(np.float32)
    negative = np.negative(layers) @ columns
    values = np.empty((*layers.shape[1:-2], *size), dtype=np.float32)
    # Band by band: what the exponential and its reciprocal pass over stays in the processor's cache.
    for target, source, block in _bands(height, size[0], size[0], path):
        band = _sigmoid_of(block @ negative[0][..., source, :])
        for layer in negative[1:]:
            band += _sigmoid_of(block @ layer[..., source, :])
        np.multiply(band, np.float32(1 / len(layers)), out=values[..., target, :])
    return values


def _sigmoid_of(negative: Float32) -> Float32:
    """The logistic function of what this is the negative of, in its place.

    Where the exponential overflows, its reciprocal is the 0 it should be.
    """
    with np.errstate(over="ignore", under="ignore"):
        np.exp(negative, out=negative)
    negative += np.float32(1)
    return np.reciprocal(negative, out=negative)


def _separable(values: Float32, size: tuple[int, int], final: tuple[int, int], path: MapPath) -> Float32:
    """One operator a side over (..., h, w), without the zeros that make up most of a Gaussian's matrix.

    Columns first, while there are few rows; then bands of whole rows, which lie side by side in memory.
    """
    height, width = values.shape[-2:]
    wide = np.empty((*values.shape[:-1], final[1]), dtype=np.float32)
    for target, source, block in _bands(width, size[1], final[1], path, transposed=True):
        np.matmul(values[..., source], block, out=wide[..., target])
    tall = np.empty((*values.shape[:-2], *final), dtype=np.float32)
    for target, source, block in _bands(height, size[0], final[0], path):
        np.matmul(block, wide[..., source, :], out=tall[..., target, :])
    return tall


@lru_cache(maxsize=8)
def path_matrix(grid: int, size: int, final: int, path: MapPath) -> Float64:
    """The whole path from a grid's side over `size` to `final` pixels: one matrix (final, grid)."""
    matrix = interpolation_matrix(grid, size, align_corners=path.align_corners)
    smoothing = gaussian_matrix(grid, path.grid_sigma, reflect=path.reflect)
    matrix = gaussian_matrix(size, path.map_sigma) @ matrix @ smoothing
    return matrix if final == size else interpolation_matrix(size, final, align_corners=False) @ matrix


@lru_cache(maxsize=32)
def _bands(grid: int, size: int, final: int, path: MapPath, *, transposed: bool = False) -> Bands:
    """The matrix cut into blocks of rows, each with the range of columns that are not zero; perhaps transposed."""
    matrix = path_matrix(grid, size, final, path)
    rows = _BAND_ROWS if final > grid else _SMOOTHED_ROWS
    bands = []
    for start in range(0, final, rows):
        block = matrix[start : start + rows]
        used = np.flatnonzero(block.any(axis=0))
        source = slice(int(used[0]), int(used[-1]) + 1)
        target = slice(start, start + len(block))
        used_block = block[:, source].T if transposed else block[:, source]
        bands.append((target, source, np.ascontiguousarray(used_block, dtype=np.float32)))
    return tuple(bands)
