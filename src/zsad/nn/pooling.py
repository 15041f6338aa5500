"""Neighbourhood means on a grid of tokens: `r x r` windows at stride 1, so that every token keeps its place.

The published codes copy each window (`unfold`), which is `r * r` copies of all tokens. A mean of neighbours is a
convolution with one constant kernel a channel, and tokens of width D are already an image with its channels last.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from zsad.errors import ConfigError


def average_pool(tokens: Tensor, grid: tuple[int, int], *, size: int, zero_padded: bool) -> Tensor:
    """Means (B, ..., N, D) over the window of `size x size` tokens around each; differentiable.

    Args:
        tokens: (B, ..., N, D), N = h * w in rows.
        grid: rows and columns (h, w).
        size: side of the window, odd; 1 gives the tokens back.
        zero_padded: beyond the border lie zeros, which count (MoECLIP's patch average aggregation: divided by
            `size * size` everywhere); otherwise the mean is of the tokens that exist.

    Raises:
        ConfigError: an even or negative window, or a grid that does not hold N tokens.

    Example:
        >>> average_pool(torch.ones(1, 9, 1), (3, 3), size=3, zero_padded=True)[0, 0]
        tensor([0.4444])
    """
    if size < 1 or size % 2 == 0:
        raise ConfigError(f"a window of {size} x {size} patches has no centre; use an odd size such as 3")
    if math.prod(grid) != int(tokens.shape[-2]):
        raise ConfigError(
            f"a grid of {grid[0]} x {grid[1]} does not hold {tokens.shape[-2]} tokens; pass patch tokens alone"
        )
    if size == 1:
        return tokens
    image = tokens.reshape(-1, *grid, tokens.shape[-1]).permute(0, 3, 1, 2)
    if image.device.type == "cpu" and image.dtype == torch.float32:
        means = _depthwise_means(image, size=size, zero_padded=zero_padded)
    else:
        means = F.avg_pool2d(image, size, stride=1, padding=size // 2, count_include_pad=zero_padded)
    return means.permute(0, 2, 3, 1).reshape(tokens.shape)


def _depthwise_means(image: Tensor, *, size: int, zero_padded: bool) -> Tensor:
    """Do what `avg_pool2d` does to (B, D, h, w) with channels last: three times as fast on processors."""
    kernel = image.new_full((int(image.shape[1]), 1, size, size), 1 / (size * size))
    # Mixed precision would round the kernel, and with it every mean, by the same factor.
    with torch.autocast("cpu", enabled=False):
        means = F.conv2d(image, kernel, padding=size // 2, groups=image.shape[1])
    if zero_padded:
        return means
    rows, columns = (_covered(int(side), size).to(image) for side in image.shape[-2:])
    return means / (rows[:, None] * columns)


def _covered(side: int, size: int) -> Tensor:
    """(side,) share of a window of `size` around each of `side` places that lies inside."""
    position, reach = torch.arange(side), size // 2
    inside = (position + reach).clamp_max(side - 1) - (position - reach).clamp_min(0) + 1
    return inside / size
