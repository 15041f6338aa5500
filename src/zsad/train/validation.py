"""Validation: the image AUROC on other data after every epoch of a training, which never learns from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from zsad.datasets.manifest import DataSet
from zsad.errors import DataError
from zsad.files import content_hash
from zsad.metrics.functional import auroc
from zsad.train.distributed import Worker
from zsad.train.features import FeatureSource, Report
from zsad.train.samples import Item, TrainingSet, chunked

VALIDATION_METRIC = "image_auroc"
"""Name of the measurement in a run's log."""


class Validation:
    """Labelled images that a training does not see.

    Args:
        source: of their features: the training's own.
        sets: their data sets; images that are also trained on are left out, and those without a label.
        training: what is trained on.
        worker: this process.
        report: called with images read and in all.

    Raises:
        DataError: no class of them has normal and anomalous images.
        StorageError: their features do not fit into the cache.
    """

    def __init__(
        self,
        source: FeatureSource,
        sets: Sequence[DataSet],
        training: TrainingSet,
        *,
        worker: Worker,
        report: Report,
    ) -> None:
        trained = {item.digest for item in training.items}
        samples = [sample for dataset in sets for sample in dataset.samples if sample.label is not None]
        digests = [content_hash(sample.image) for sample in samples]
        items = [
            Item(sample, digest, None)
            for sample, digest in zip(samples, digests, strict=True)
            if digest is not None and digest not in trained
        ]
        self._check(items, sets)
        self.source = source
        self.images = source.usable(TrainingSet(items, (1, 1)), worker=worker, report=report)
        self._check(self.images.items, sets)

    def _check(self, items: Sequence[Item], sets: Sequence[DataSet]) -> None:
        if not _classes(items):
            names = ", ".join(dataset.name for dataset in sets)
            raise DataError(
                f"no class of {names} has normal and anomalous images that are not "
                f"trained on, so its image AUROC cannot be watched; give labelled data of other objects"
            )

    @torch.no_grad()
    def image_auroc(self) -> float:
        """Return the mean over classes, in [0, 1], of the source's method as it is now; its mode is left as it was."""
        method, items = self.source.method, self.images.items
        rows = list(range(len(items)))
        training = method.training
        method.eval()
        try:
            batches = self.source.batches(self.images, chunked(rows, self.source.config.batch_size))
            scores = torch.cat([method(batch.features).score.float().cpu() for batch in batches]).numpy()
        finally:
            method.train(training)
        labels = self.images.labels(rows).numpy()
        return float(np.mean([auroc(scores[members], labels[members]) for members in _classes(items)]))


def _classes(items: Sequence[Item]) -> list[list[int]]:
    """Return the rows of each class of each data set, of those that have both labels."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, item in enumerate(items):
        rows.setdefault(item.group[:2], []).append(row)
    return [members for members in rows.values() if len({items[row].sample.label for row in members}) > 1]
