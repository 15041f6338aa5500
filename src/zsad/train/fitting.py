"""What is fitted to a trained model: the scales of the oddness fusion, and which map values are cold and hot."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zsad.errors import ConfigError
from zsad.methods.base import Method
from zsad.methods.fusion import FusionData
from zsad.nn.filters import render_map
from zsad.train.features import FeatureSource
from zsad.train.samples import TrainingSet
from zsad.train.train_config import TrainConfig

_BINS = 8192
_SCALE_IMAGES = 256  # of each label: the quantiles of their millions of pixels move no more
_COLD_QUANTILE = 0.99
_HOT_QUANTILE = 0.75  # things never seen light up less than what was trained on
_LEAST_SPAN = 0.02


class Histogram:
    """Counts of values in [0, 1] in equal bins: quantiles of any number of values in constant memory."""

    def __init__(self, bins: int = _BINS) -> None:
        self.counts = torch.zeros(bins, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Counts values of any shape."""
        bins = len(self.counts)
        places = (values.detach().float() * bins).long().clamp_(0, bins - 1)
        self.counts += torch.bincount(places.flatten(), minlength=bins).cpu()

    def quantile(self, share: float) -> float | None:
        """The value below which `share` of all lie, to within a bin; None of nothing."""
        total = int(self.counts.sum())
        if not total:
            return None
        reached = torch.searchsorted(self.counts.cumsum(0), torch.tensor(max(1, round(share * total))))
        return (int(reached) + 0.5) / len(self.counts)


def fit_fusion(
    method: Method,
    source: FeatureSource,
    training: TrainingSet,
    *,
    config: TrainConfig,
    report: Callable[[int, int], None],
) -> None:
    """Fits how the cues of oddness are fused in, to at most 256 images of each label; nothing where they are not.

    Args:
        method: trained, in evaluation mode.
        source: of the features, with cues.
        training: the samples.
        config: for batch size and seed.
        report: called with batches done and in all.

    Raises:
        ConfigError: the training has no normal images.
    """
    if method.fusion is None:
        return
    logits, cues, labels = [], [], []
    batches = _batches(training, config)
    with torch.no_grad():
        for done, shown in enumerate(source.batches(training, batches), 1):
            if shown.features.cues is None:
                raise ConfigError(
                    "features without cues: oddness was off when they were computed; compute anew"
                )
            logits.append(method(shown.features).logits.float().mean(dim=1).flatten(1))
            cues.append(shown.features.cues)
            labels.append(shown.labels)
            report(done, len(batches))
    method.fusion.fit(FusionData(torch.cat(logits), torch.cat(cues), torch.cat(labels)))


def _batches(training: TrainingSet, config: TrainConfig) -> list[list[int]]:
    rows = training.scale_rows(config, most=_SCALE_IMAGES)
    return [rows[start : start + config.batch_size] for start in range(0, len(rows), config.batch_size)]


def colour_scale(
    method: Method,
    source: FeatureSource,
    training: TrainingSet,
    *,
    config: TrainConfig,
    report: Callable[[int, int], None],
) -> tuple[float, float]:
    """The map values (low, high) for the coldest and the hottest colour.

    Low is what 99 % of the pixels of normal images stay below, so that these are cold also on things of another
    kind, whose maps lie higher; high is what a quarter of the anomalous pixels exceed, and at least 0.02 more than low.

    Args:
        method: trained, in evaluation mode.
        source: of the features.
        training: the samples.
        config: for batch size and seed.
        report: called with batches done and in all.
    """
    batches = _batches(training, config)
    normal, anomalous = Histogram(), Histogram()
    with torch.no_grad():
        for done, shown in enumerate(source.batches(training, batches), 1):
            maps = render_map(
                method.predict(shown.features).logits.float(), method.map_spec, size=training.size
            )
            normal.add(maps[shown.labels == 0])
            anomalous.add(maps[shown.masks > 0])
            report(done, len(batches))
    low = normal.quantile(_COLD_QUANTILE) or 0.0
    high = anomalous.quantile(_HOT_QUANTILE)
    return low, max(high if high is not None else 1.0, low + _LEAST_SPAN)
