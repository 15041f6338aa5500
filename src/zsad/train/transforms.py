"""Training images changed together with their masks, as published trainings do it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TURN = 30.0
"""Degrees that MoECLIP's released code turns images by at most, to either side."""
SHIFT = 0.15
"""Part of a side that it shifts them by at most."""
MOSAIC_SHARE = 0.2
"""Share of images that APRIL-GAN's public code makes of four, on MVTec AD."""


def draw_motion(generator: torch.Generator) -> Tensor:
    """How MoECLIP's released code moves an image: (2, 3), from places in the moved image to those in the original.

    A turn of up to 30 degrees, a shift of up to 0.15 of each side, a mirroring left to right and one upside down,
    each with probability 1/2. Places are in [-1, 1], x before y; the image is square.
    """
    chance, amount = torch.rand(4, generator=generator), torch.rand(3, generator=generator) * 2 - 1
    turn, shift, mirror, flip = (chance < 0.5).tolist()
    angle = math.radians(TURN) * float(amount[0]) * turn
    sides = torch.tensor([-1.0 if mirror else 1.0, -1.0 if flip else 1.0])
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[cos, -sin], [sin, cos]]) * sides
    # Places run over two units a side.
    return torch.cat([rotation, 2 * SHIFT * amount[1:, None] * shift], dim=1)


def move(image: Tensor, motion: Tensor) -> Tensor:
    """An image (C, H, W) moved by (2, 3) of `draw_motion`: the nearest pixel of the original, 0 where there is none.

    Example:
        >>> mirror = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> move(torch.tensor([[[1.0, 2.0, 3.0]] * 3]), mirror)[0, 0]
        tensor([3., 2., 1.])
    """
    places = F.affine_grid(motion[None], [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], places, mode="nearest", padding_mode="zeros", align_corners=False)[0]


def mosaic(tiles: Sequence[Tensor]) -> Tensor:
    """Four images (C, H, W) of one size as the quarters of one of that size, averaged down; row by row.

    Example:
        >>> mosaic([torch.full((1, 4, 4), float(number)) for number in range(4)])[0, ::2, ::2]
        tensor([[0., 1.],
                [2., 3.]])
    """
    height, width = tiles[0].shape[-2:]
    top, left = height // 2, width // 2
    sizes = [(h, w) for h in (top, height - top) for w in (left, width - left)]
    parts = [F.adaptive_avg_pool2d(tile, size) for tile, size in zip(tiles, sizes, strict=True)]
    return torch.cat([torch.cat(parts[:2], dim=-1), torch.cat(parts[2:], dim=-1)], dim=-2)
