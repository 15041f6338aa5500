"""From small score grids to smooth maps: constant operators instead of image filters.

Bilinear interpolation and Gaussian smoothing are linear and separable, so each is one constant matrix a side:
a map is `K_h A K_w^T`. The matrices equal `torch.nn.functional.interpolate` and
`scipy.ndimage.gaussian_filter` (truncated at four deviations, reflecting at the border).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Bands = tuple[tuple[slice, slice, Float32], ...]

_BAND_ROWS = 74
_GAUSSIAN_TRUNCATE = 4.0


class MapSpec(BaseModel):
    """How stored score grids become maps: kept beside every grid, so that a map can be rebuilt anywhere.

    `before_softmax` upsamples the logits, then takes the probability, then the mean over layers (PromptMoE
    Eq. 6); `after_softmax` takes probability and mean on the grid and upsamples once (AnomalyCLIP).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] = Field(
        description="Rows and columns of the canonical map, on which metrics are taken."
    )
    order: Literal["before_softmax", "after_softmax"] = "before_softmax"
    sigma: float = Field(
        default=4.0, ge=0, description="Deviation of the Gaussian in pixels of the canonical map."
    )
    align_corners: bool = False
    scale: tuple[float, float] = Field(
        default=(0.0, 1.0), description="Map values that the coldest and the hottest colour stand for."
    )


def interpolation_matrix(grid: int, size: int, *, align_corners: bool) -> Float64:
    """Bilinear interpolation of `grid` samples to `size` as a matrix (size, grid)."""
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


def gaussian_matrix(size: int, sigma: float) -> Float64:
    """Gaussian smoothing of `size` samples as a matrix (size, size); the identity where `sigma` is 0."""
    if sigma == 0:
        return np.eye(size)
    radius = int(_GAUSSIAN_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    # Mirrored at the border with the border sample repeated, as often as the kernel reaches beyond it.
    folded = (np.arange(size)[:, None] + offsets[None, :]) % (2 * size)
    columns = np.where(folded < size, folded, 2 * size - 1 - folded)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], columns), kernel[None, :])
    return matrix


def map_operator(grid: int, size: int, *, sigma: float, align_corners: bool) -> Tensor:
    """The constant (size, grid), float32, that upsamples one side of a grid and smooths the result.

    Args:
        grid: samples along the side, at least 1.
        size: pixels wanted, at least 1.
        sigma: deviation of the Gaussian in pixels; 0 only upsamples.
        align_corners: as in `torch.nn.functional.interpolate`.
    """
    return _tensor(grid, size, size, sigma, align_corners, torch.float32, torch.device("cpu"))


def render_map(
    logits: Tensor, spec: MapSpec, *, size: tuple[int, int] | None = None, smooth: bool = True
) -> Tensor:
    """Maps (..., H, W) in [0, 1] of score grids (..., L, h, w); differentiable.

    Args:
        logits: (..., L, h, w), the sigmoid of which is the probability of abnormal.
        spec: canonical size, order of upsampling and softmax, smoothing.
        size: final rows and columns where not the canonical ones: the canonical map is resized bilinearly.
        smooth: whether to apply the Gaussian.
    """
    final = size or spec.size
    if spec.order == "before_softmax":
        values = upsample(logits, spec.size, align_corners=spec.align_corners).sigmoid().mean(dim=-3)
    else:
        values = logits.sigmoid().mean(dim=-3)
    if spec.order == "before_softmax" and final == spec.size and not (smooth and spec.sigma):
        return values
    rows, columns = (
        _tensor(
            values.shape[axis - 2],
            spec.size[axis],
            final[axis],
            spec.sigma if smooth else 0.0,
            spec.align_corners,
            values.dtype,
            values.device,
        )
        for axis in (0, 1)
    )
    return rows @ values @ columns.T


def upsample(logits: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Grids (..., h, w) interpolated bilinearly to (..., H, W)."""
    rows, columns = (
        _tensor(start, end, end, 0.0, align_corners, logits.dtype, logits.device)
        for start, end in zip(logits.shape[-2:], size, strict=True)
    )
    return rows @ logits @ columns.T


def gaussian(maps: Tensor, sigma: float) -> Tensor:
    """Maps (..., H, W) smoothed with a Gaussian of `sigma` pixels."""
    height, width = maps.shape[-2:]
    rows, columns = (
        _tensor(side, side, side, sigma, False, maps.dtype, maps.device) for side in (height, width)
    )
    return rows @ maps @ columns.T


def render_map_numpy(
    logits: Float32, spec: MapSpec, *, size: tuple[int, int] | None = None, smooth: bool = True
) -> Float32:
    """As `render_map` for arrays (..., L, h, w), without PyTorch: some milliseconds for 518 x 518."""
    final = size or spec.size
    grid = logits.shape[-2:]
    layers = np.moveaxis(np.asarray(logits, dtype=np.float32), -3, 0)
    sides = spec.size if spec.order == "before_softmax" else grid
    values: Float32 = np.zeros((*layers.shape[1:-2], *sides), dtype=np.float32)
    # Layer by layer: one layer's map stays in the processor's cache, four do not.
    for layer in layers:
        if spec.order == "before_softmax":
            layer = _separable(layer, spec.size, spec.size, 0.0, align_corners=spec.align_corners)
        values += _sigmoid(layer)
    values *= np.float32(1 / len(layers))
    sigma = spec.sigma if smooth else 0.0
    if spec.order == "before_softmax" and sigma == 0 and final == spec.size:
        return values
    return _separable(values, spec.size, final, sigma, align_corners=spec.align_corners)


def _sigmoid(values: Float32) -> Float32:
    """The logistic function; where the exponential overflows, its reciprocal is the 0 it should be."""
    result = np.negative(values)
    with np.errstate(over="ignore", under="ignore"):
        np.exp(result, out=result)
    result += np.float32(1)
    return np.reciprocal(result, out=result)


def _separable(
    values: Float32, size: tuple[int, int], final: tuple[int, int], sigma: float, *, align_corners: bool
) -> Float32:
    """One operator a side over (..., h, w), without the zeros that make up most of a Gaussian's matrix."""
    height, width = values.shape[-2:]
    tall = np.empty((*values.shape[:-2], final[0], width), dtype=np.float32)
    for target, source, block in _bands(height, size[0], final[0], sigma, align_corners):
        np.matmul(block, values[..., source, :], out=tall[..., target, :])
    wide = np.empty((*values.shape[:-2], *final), dtype=np.float32)
    for target, source, block in _bands(width, size[1], final[1], sigma, align_corners):
        wide[..., target] = tall[..., source] @ block.T
    return wide


@lru_cache(maxsize=8)
def _matrix(grid: int, size: int, final: int, sigma: float, align_corners: bool) -> Float64:
    """Interpolation to `size`, smoothing there, bilinear resizing to `final`: one matrix (final, grid)."""
    matrix = gaussian_matrix(size, sigma) @ interpolation_matrix(grid, size, align_corners=align_corners)
    return matrix if final == size else interpolation_matrix(size, final, align_corners=False) @ matrix


@lru_cache(maxsize=32)
def _bands(grid: int, size: int, final: int, sigma: float, align_corners: bool) -> Bands:
    """The matrix cut into blocks of rows, each with the range of columns that are not zero."""
    matrix = _matrix(grid, size, final, sigma, align_corners)
    bands = []
    for start in range(0, final, _BAND_ROWS):
        block = matrix[start : start + _BAND_ROWS]
        used = np.flatnonzero(block.any(axis=0))
        source = slice(int(used[0]), int(used[-1]) + 1)
        target = slice(start, start + len(block))
        bands.append((target, source, np.ascontiguousarray(block[:, source], dtype=np.float32)))
    return tuple(bands)


@lru_cache(maxsize=32)
def _tensor(*key: Any) -> Tensor:
    """The matrix of `_matrix`'s arguments as a tensor of a dtype on a device: the last two arguments."""
    *path, dtype, device = key
    # An operator made inside inference mode could not be used in training later.
    with torch.inference_mode(mode=False):
        return torch.tensor(_matrix(*path), dtype=dtype, device=device)
