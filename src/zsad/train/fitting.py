"""Numbers fitted to a trained model: scales of the oddness fusion, and the map values for cold and hot."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from zsad.errors import ConfigError
from zsad.methods.fusion import FusionData
from zsad.nn.filters import render_map
from zsad.train.features import FeatureSource, Report
from zsad.train.samples import TrainingBatch, TrainingSet, chunked

_BINS = 8192
_SCALE_IMAGES = 256  # of each label: the quantiles of their millions of pixels move no more
_COLD_QUANTILE = 0.99
_HOT_QUANTILE = 0.75  # things never seen light up less than what was trained on
_LEAST_SPAN = 0.02


class Histogram:
    """Histogram of values in [0, 1]: quantiles of any number of values in constant memory."""

    def __init__(self, bins: int = _BINS) -> None:
        self.counts = torch.zeros(bins, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count values of any shape."""
        bins = len(self.counts)
        indices = (values.detach().float() * bins).long().clamp_(0, bins - 1)
        self.counts += torch.bincount(indices.flatten(), minlength=bins).cpu()

    def quantile(self, share: float) -> float | None:
        """Return the value below which `share` of all lie, to within a bin; None of nothing."""
        total = int(self.counts.sum())
        if not total:
            return None
        reached = torch.searchsorted(self.counts.cumsum(0), torch.tensor(max(1, round(share * total))))
        return (int(reached) + 0.5) / len(self.counts)


@torch.no_grad()
def fit_fusion(source: FeatureSource, training: TrainingSet, *, report: Report) -> None:
    """Fit how the cues of oddness are fused in, to at most 256 images of each label; nothing where they are not.

    Args:
        source: of the features, with cues; its method is trained and in evaluation mode.
        training: the samples.
        report: called with batches done and in all.

    Raises:
        ConfigError: the training has no normal images.
    """
    method = source.method
    if method.fusion is None:
        return
    logits, cues, labels = [], [], []
    for batch in _batches(source, training, report):
        if batch.features.cues is None:
            raise ConfigError("features without cues: oddness was off when they were computed; compute anew")
        logits.append(method(batch.features).logits.float().mean(dim=1).flatten(1))
        cues.append(batch.features.cues)
        labels.append(batch.labels)
    method.fusion.fit(FusionData(torch.cat(logits), torch.cat(cues), torch.cat(labels)))


def _batches(
    source: FeatureSource, training: TrainingSet, report: Report
) -> Generator[TrainingBatch, None, None]:
    """Yield at most 256 images of each label, in batches."""
    rows = training.scale_rows(source.config, most=_SCALE_IMAGES)
    order = chunked(rows, source.config.batch_size)
    for done, batch in enumerate(source.batches(training, order), 1):
        yield batch
        report(done, len(order))


@torch.no_grad()
def colour_scale(source: FeatureSource, training: TrainingSet, *, report: Report) -> tuple[float, float]:
    """Return the map values (low, high) for the coldest and the hottest colour.

    Low is what 99 % of the pixels of normal images stay below, so that these are cold also on things of another
    kind, whose maps lie higher; high is what a quarter of the anomalous pixels exceed, and at least 0.02 more than low.
    Arguments are those of `fit_fusion`.
    """
    method, normal, anomalous = source.method, Histogram(), Histogram()
    for batch in _batches(source, training, report):
        logits = method.predict(batch.features).logits.float()
        maps = render_map(logits, method.map_spec, size=training.size)
        normal.add(maps[batch.labels == 0])
        anomalous.add(maps[batch.masks > 0])
    low = normal.quantile(_COLD_QUANTILE) or 0.0
    high = anomalous.quantile(_HOT_QUANTILE)
    return low, max(high if high is not None else 1.0, low + _LEAST_SPAN)
