"""Changes of training images and their masks, drawn anew at every step, as published trainings make them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zsad.errors import ConfigError
from zsad.train.samples import AUGMENT, TrainingSet, stream
from zsad.train.train_config import TrainConfig

TURN = 30.0
"""Degrees that MoECLIP's released code turns images by at most, to either side."""
SHIFT = 0.15
"""Part of a side that it shifts them by at most."""
MOSAIC_SHARE = 0.2
"""Share of images that APRIL-GAN's public code makes of four, on MVTec AD."""


def draw_motion(generator: torch.Generator) -> Tensor:
    """Draw a motion as MoECLIP's released code does: (2, 3), from positions in the moved image to the original's.

    A turn of up to 30 degrees, a shift of up to 0.15 of each side, a mirroring left to right and one upside down,
    each with probability 1/2. Positions are in [-1, 1], x before y; the image is square.
    """
    chance, amount = torch.rand(4, generator=generator), torch.rand(3, generator=generator) * 2 - 1
    turn, shift, mirror, flip = (chance < 0.5).tolist()
    angle = math.radians(TURN) * float(amount[0]) * turn
    sides = torch.tensor([-1.0 if mirror else 1.0, -1.0 if flip else 1.0])
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[cos, -sin], [sin, cos]]) * sides
    # Positions run over two units a side.
    return torch.cat([rotation, 2 * SHIFT * amount[1:, None] * shift], dim=1)


def move(image: Tensor, motion: Tensor) -> Tensor:
    """Move an image (C, H, W) by (2, 3) of `draw_motion`: the nearest pixel of the original, 0 where there is none.

    Example:
        >>> mirror = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> move(torch.tensor([[[1.0, 2.0, 3.0]] * 3]), mirror)[0, 0]
        tensor([3., 2., 1.])
    """
    positions = F.affine_grid(motion[None], [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], positions, mode="nearest", padding_mode="zeros", align_corners=False)[0]


def mosaic(tiles: Sequence[Tensor]) -> Tensor:
    """Join four images (C, H, W) of one size as the quarters of one of that size, averaged down; row by row.

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


class Augmenter:
    """Augmentation of a training set by the recipe `TrainConfig.augment`; random numbers depend on seed and step.

    `plan` says which rows to read for the images of a batch, `combine` makes each of them.

    Args:
        training: the samples.
        config: for the recipe and the seed.
        step: the first step that is asked for.
        rank: of this process.
    """

    def __init__(self, training: TrainingSet, config: TrainConfig, *, step: int, rank: int) -> None:
        self.recipe, self.seed = config.augment, config.seed
        self._step, self._rank, self._training = step, rank, training
        self._of_class: dict[tuple[str, str], list[int]] = {}
        for row, item in enumerate(training.items):
            self._of_class.setdefault(item.group[:2], []).append(row)

    def plan(self, step: int, rows: Sequence[int]) -> list[list[int]]:
        """Return for each row of the `step`-th batch the rows that its image is made of: itself, or four."""
        return [self._parts(row, self._stream(step, position)) for position, row in enumerate(rows)]

    def _parts(self, row: int, generator: torch.Generator) -> list[int]:
        if self.recipe != "mosaic" or float(torch.rand((), generator=generator)) >= MOSAIC_SHARE:
            return [row]
        alike = self._of_class[self._training.items[row].group[:2]]
        others = torch.randint(len(alike), (3,), generator=generator).tolist()
        return [row, *(alike[other] for other in others)]

    def combine(self, step: int, position: int, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return an image (3, H, W) and its mask (h, w) in {0, 1}.

        Args:
            step: as in `plan`.
            position: of the image in its batch.
            pixels: (1 or 4, 3, H, W) of its parts.
            masks: (1 or 4, h, w) of its parts.
        """
        if self.recipe == "moeclip":
            motion = draw_motion(self._stream(step, position))
            return move(pixels[0], motion), move(masks[:1], motion)[0]
        if len(pixels) == 1:
            return pixels[0], masks[0]
        joined = mosaic(list(masks[:, None]))[0]
        return mosaic(list(pixels)), (joined >= 0.5).float()

    def _stream(self, step: int, position: int) -> torch.Generator:
        # Far more positions than a batch has, and processes than there are.
        return stream(self.seed, AUGMENT, ((self._step + step) * 65_536 + position) * 65_536 + self._rank)


def check_augment(config: TrainConfig) -> None:
    """Refuse to change images at every step but cache their features; raises ConfigError."""
    if config.augment != "none" and config.cache:
        raise ConfigError(
            f"augment = {config.augment!r} changes images at every step, but kept features are of the images as "
            f"they are; add --no-cache (cache = false), which computes features at every step"
        )
