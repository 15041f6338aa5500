"""Smooth maps from small score grids, as tensors: constant operators instead of image filters.

The operators, and the same for arrays without PyTorch, are those of `zsad.nn.maps`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from zsad.nn.maps import MapPath, MapSpec, path_matrix


def map_operator(grid: int, size: int, *, sigma: float, align_corners: bool) -> Tensor:
    """The constant (size, grid), float32, that upsamples one side of a grid and smooths the result.

    Args:
        grid: samples along the side, at least 1.
        size: pixels wanted, at least 1.
        sigma: deviation of the Gaussian in pixels; 0 only upsamples.
        align_corners: as in `torch.nn.functional.interpolate`.

    Example:
        >>> map_operator(37, 518, sigma=4.0, align_corners=False).shape
        torch.Size([518, 37])
    """
    path = MapPath(map_sigma=sigma, align_corners=align_corners)
    return _tensor(grid, size, size, path, torch.float32, torch.device("cpu"))


def render_map(
    logits: Tensor, spec: MapSpec, *, size: tuple[int, int] | None = None, smooth: bool = True
) -> Tensor:
    """Maps (..., H, W) in [0, 1] of score grids (..., L, h, w); differentiable.

    Args:
        logits: (..., L, h, w), the sigmoid of which is the probability of abnormal.
        spec: canonical size, order of upsampling and softmax, smoothing.
        size: final rows and columns where not the canonical ones: the canonical map is resized bilinearly.
        smooth: whether to apply the Gaussian.

    Example:
        >>> spec = MapSpec(size=(70, 84), order="after_softmax")
        >>> render_map(torch.zeros(2, 4, 5, 6), spec).shape
        torch.Size([2, 70, 84])
    """
    final = size or spec.size
    path = MapPath.of(spec, smooth=smooth)
    if spec.order == "after_softmax":
        return _apply(logits.sigmoid().mean(dim=-3), spec.size, final, path)
    if spec.order == "mean_logits":
        logits = logits.mean(dim=-3, keepdim=True)
    values = _apply(logits, spec.size, spec.size, path.to_pixels).sigmoid().mean(dim=-3)
    if final == spec.size and not path.map_sigma:
        return values
    return _apply(values, spec.size, final, path.from_pixels)


def upsample(logits: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Grids (..., h, w) interpolated bilinearly to (..., H, W).

    Example:
        >>> upsample(torch.tensor([[0.0, 2.0]]), (1, 3), align_corners=True)
        tensor([[0., 1., 2.]])
    """
    return _apply(logits, size, size, MapPath(align_corners=align_corners))


def gaussian(maps: Tensor, sigma: float) -> Tensor:
    """Maps (..., H, W) smoothed with a Gaussian of `sigma` pixels.

    Example:
        >>> gaussian(torch.ones(3, 20, 30), 2.5).shape
        torch.Size([3, 20, 30])
    """
    size = (maps.shape[-2], maps.shape[-1])
    return _apply(maps, size, size, MapPath(map_sigma=sigma))


@lru_cache(maxsize=32)
def _tensor(
    grid: int, size: int, final: int, path: MapPath, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`path_matrix` as a tensor."""
    # An operator made inside inference mode could not be used in training later.
    with torch.inference_mode(mode=False):
        return torch.tensor(path_matrix(grid, size, final, path), dtype=dtype, device=device)


def _apply(values: Tensor, size: tuple[int, int], final: tuple[int, int], path: MapPath) -> Tensor:
    """Both sides' operators over (..., h, w): (..., H, W) of `final`."""
    rows, columns = (
        _tensor(int(values.shape[axis - 2]), size[axis], final[axis], path, values.dtype, values.device)
        for axis in (0, 1)
    )
    return rows @ values @ columns.T
