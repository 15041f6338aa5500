"""Sliding windows over a grid of patches: which patches each holds, and harmonic means over those that cover one.

A harmonic mean of probabilities is taken on their logits. With p = sigmoid(l), 1/p = 1 + e^-l, so that the harmonic
mean of n of them has the logit -log(mean e^-l): no division by small probabilities, whatever the temperature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from zsad.errors import ConfigError


def check_window(grid: tuple[int, int], size: int) -> None:
    """Refuses a window of `size` x `size` patches that is larger than a grid (h, w).

    Raises:
        ConfigError: it is.

    Example:
        >>> check_window((3, 5), 3)
    """
    if size > min(grid):
        raise ConfigError(
            f"a window of {size} x {size} patches does not fit a grid of {grid[0]} x {grid[1]}; use smaller "
            f"windows or larger images"
        )


def window_table(grid: tuple[int, int], size: int, *, stride: int = 1) -> Tensor:
    """The windows of `size` x `size` patches on a grid (h, w): row-major patch indices (W, size * size).

    The first column is a window's top left patch. Where the stride does not divide the way, a last window stands
    at the far border, so that every patch is covered.

    Args:
        grid: rows and columns.
        size: patches along a window's side.
        stride: patches between neighbouring windows, at most `size`.

    Raises:
        ConfigError: a grid smaller than the window, or a stride that leaves patches out.

    Example:
        >>> window_table((2, 3), 2).tolist()
        [[0, 1, 3, 4], [1, 2, 4, 5]]
    """
    if not 1 <= stride <= size:
        raise ConfigError(
            f"windows of {size} x {size} patches with a stride of {stride} leave patches out; use a stride "
            f"from 1 to {size}"
        )
    check_window(grid, size)
    rows, columns = (torch.tensor(sorted({*range(0, side - size, stride), side - size})) for side in grid)
    corners = (rows[:, None] * grid[1] + columns).flatten()
    steps = torch.arange(size)
    return corners[:, None] + (steps[:, None] * grid[1] + steps).flatten()


def harmonic_cover(logits: Tensor, size: int, *, stride: int = 1) -> Tensor:
    """For each patch the harmonic mean of the windows that cover it (WinCLIP, Eq. 3), as logits (..., h, w).

    Args:
        logits: (..., h, w), each window's at its top left patch; what stands elsewhere is not read.
        size: patches along a window's side.
        stride: as in `window_table`.

    Raises:
        ConfigError: as `window_table`.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])  # two windows of 2 x 2
        >>> [round(value, 2) for value in harmonic_cover(logits, 2)[0].tolist()]
        [0.0, 0.57, 2.0]
    """
    grid = int(logits.shape[-2]), int(logits.shape[-1])
    corners = window_table(grid, size, stride=stride)[:, 0].to(logits.device)
    absent = torch.ones(math.prod(grid), dtype=logits.dtype, device=logits.device)
    absent = absent.scatter(0, corners, 0.0).view(grid)
    # Of no weight in a sum of exponentials, yet finite.
    nothing = torch.finfo(logits.dtype).min / 2
    against = _cover((-logits).masked_fill(absent > 0, nothing), size, outside=nothing)
    count = size**2 - _cover(absent, size, outside=1.0).sum(dim=-1)
    return count.log() - _log_sum_exp(against, dim=-1)


def harmonic_mean(logits: Tensor, *, dim: int) -> Tensor:
    """Harmonic mean of the probabilities along a dimension, logits in and logits out.

    Example:
        >>> probabilities = torch.tensor([0.2, 0.5])
        >>> round(float(harmonic_mean(probabilities.logit(), dim=0).sigmoid()), 4)  # 2 / (1 / 0.2 + 1 / 0.5)
        0.2857
    """
    return math.log(int(logits.shape[dim])) - _log_sum_exp(-logits, dim=dim)


def _log_sum_exp(values: Tensor, *, dim: int) -> Tensor:
    """`logsumexp` of finite values in steps of its own: as one operator, OpenVINO reads it without its axis."""
    peak = values.detach().amax(dim=dim, keepdim=True)
    return (values - peak).exp().sum(dim=dim).log() + peak.squeeze(dim)


def _cover(values: Tensor, size: int, *, outside: float) -> Tensor:
    """For each patch (..., h, w, size * size) the values at the corners of all windows that would hold it."""
    height, width = int(values.shape[-2]), int(values.shape[-1])
    padded = F.pad(values, (size - 1, 0, size - 1, 0), value=outside)
    shifts = [
        padded[..., row : row + height, column : column + width]
        for row in range(size)
        for column in range(size)
    ]
    return torch.stack(shifts, dim=-1)
