"""Training images changed anew at every step; what happens to one depends on seed, step and place alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zsad.errors import ConfigError
from zsad.train.config import TrainConfig
from zsad.train.samples import AUGMENT, TrainingSet, stream
from zsad.train.transforms import MOSAIC_SHARE, draw_motion, mosaic, move


class Augmenter:
    """The recipe `TrainConfig.augment` on a training set.

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
        """For each row of the `step`-th batch asked for the rows of the images that it is made of: itself, or four."""
        return [self._parts(row, self._stream(step, place)) for place, row in enumerate(rows)]

    def _parts(self, row: int, generator: torch.Generator) -> list[int]:
        if self.recipe != "mosaic" or float(torch.rand((), generator=generator)) >= MOSAIC_SHARE:
            return [row]
        alike = self._of_class[self._training.items[row].group[:2]]
        others = torch.randint(len(alike), (3,), generator=generator).tolist()
        return [row, *(alike[other] for other in others)]

    def combine(self, step: int, place: int, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) and its mask (h, w) in {0, 1}.

        Args:
            step: as in `plan`.
            place: of the image in its batch.
            pixels: (1 or 4, 3, H, W) of its parts.
            masks: (1 or 4, h, w) of its parts.
        """
        if self.recipe == "moeclip":
            motion = draw_motion(self._stream(step, place))
            return move(pixels[0], motion), move(masks[:1], motion)[0]
        if len(pixels) == 1:
            return pixels[0], masks[0]
        joined = mosaic(list(masks[:, None]))[0]
        return mosaic(list(pixels)), (joined >= 0.5).float()

    def _stream(self, step: int, place: int) -> torch.Generator:
        # Far more places than a batch has, and processes than there are.
        return stream(self.seed, AUGMENT, ((self._step + step) * 65_536 + place) * 65_536 + self._rank)


def check_augment(config: TrainConfig) -> None:
    """ConfigError where images are to change at every step, but their features to be kept."""
    if config.augment != "none" and config.cache:
        raise ConfigError(
            f"augment = {config.augment!r} changes images at every step, but kept features are of the images as "
            f"they are; add --no-cache (cache = false), which computes features at every step"
        )
