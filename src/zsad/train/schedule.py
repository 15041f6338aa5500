"""Schedule of a training: the stage that a step belongs to, and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zsad.errors import ConfigError
from zsad.methods.base import Stage
from zsad.train.train_config import TrainConfig


@dataclass(frozen=True, slots=True)
class Schedule:
    """Epochs of a run, dealt out to the method's stages.

    Attributes:
        stages: of the method.
        ends: for each stage the epoch behind its last.
        steps_per_epoch: optimiser steps in an epoch.
    """

    stages: tuple[Stage, ...]
    ends: tuple[int, ...]
    steps_per_epoch: int

    @classmethod
    def of(cls, stages: Sequence[Stage], config: TrainConfig, *, steps_per_epoch: int) -> Schedule:
        """Give each stage its share of the epochs, rounded, and at least one.

        Raises:
            ConfigError: fewer epochs than stages.
        """
        count, epochs = len(stages), config.epochs
        if epochs < count:
            names = ", then ".join(stage.name for stage in stages)
            raise ConfigError(f"epochs = {epochs} is too few: training goes through {count} stages ({names})")
        total = sum(stage.share for stage in stages)
        ends: list[int] = []
        share = 0.0
        for index, stage in enumerate(stages):
            share += stage.share
            end = math.floor(epochs * share / total + 0.5)
            earliest = (ends[-1] if ends else 0) + 1
            ends.append(min(max(end, earliest), epochs - (count - 1 - index)))
        return cls(tuple(stages), tuple(ends), steps_per_epoch)

    def stage(self, epoch: int) -> int:
        """Return the index of the stage that an epoch belongs to."""
        return next(index for index, end in enumerate(self.ends) if epoch < end)

    def learning_rate(self, config: TrainConfig, step: int) -> float:
        """Return the rate of a step (from 0): rising over each stage's warm-up, then constant but for milestones."""
        index = self.stage(step // self.steps_per_epoch)
        inside = step - (self.ends[index - 1] * self.steps_per_epoch if index else 0)
        rate = config.learning_rate * self.stages[index].learning_rate
        rate *= config.decay ** sum(inside >= milestone for milestone in config.milestones)
        warmup = config.warmup_epochs * self.steps_per_epoch
        return rate * min(1.0, (inside + 1) / warmup) if warmup else rate
