"""Where a training step's image features come from: the disk, or the backbone anew."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from zsad.clip.vision import Pixels
from zsad.errors import DataError
from zsad.images.loader import iter_batches
from zsad.images.preprocess import Preprocess
from zsad.methods.base import ImageFeatures, Method
from zsad.nn.oddness import CUES
from zsad.train.augment import Augmenter
from zsad.train.distributed import Worker
from zsad.train.feature_cache import FeatureCache, RecordLayout
from zsad.train.samples import Item, Skipped, TrainingSet
from zsad.train.train_config import TrainConfig
from zsad.types import Sample

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What a step sees: features of B images, masks (B, H, W) and labels (B,) in {0, 1}, on the method's device."""

    features: ImageFeatures
    masks: Tensor
    labels: Tensor


_CHANGED = "the image changed while it was being read"


class FeatureSource:
    """Features of training samples by row; `usable` first finds out which samples have any.

    Args:
        method: whose frozen side is asked.
        preprocess: of the images.
        config: for cache settings, workers and batch size.
        cache: None computes features whenever they are asked for.
    """

    def __init__(
        self, method: Method, preprocess: Preprocess, *, config: TrainConfig, cache: FeatureCache | None
    ) -> None:
        self.method = method
        self.preprocess = preprocess
        self.config = config
        self.cache = cache
        self.device = next(method.parameters()).device

    def usable(self, training: TrainingSet, *, worker: Worker, report: Report) -> TrainingSet:
        """The set less the images that cannot be decoded; fills the cache where there is one.

        Raises:
            DataError: nothing to learn from is left.
            StorageError: the cache does not fit; said before the bulk is computed.
        """
        if self.cache is None:
            bad = self._decode_all(training, report)
        else:
            self._extract(training.items, self.cache, worker, report)
            worker.barrier()
            self.cache.refresh()
            missing = [item.sample for item in training.items if item.digest not in self.cache]
            bad = self._why(missing)
        return training.without(bad)

    def batches(
        self, training: TrainingSet, order: Sequence[Sequence[int]], *, augmenter: Augmenter | None = None
    ) -> Generator[TrainingBatch, None, None]:
        """Each batch of rows in turn, all but the last of one size.

        Args:
            training: the samples.
            order: rows of each batch.
            augmenter: changes images and masks; not with a cache.

        Raises:
            DataError: an image that could be read before cannot any more.
        """
        if augmenter is not None:
            yield from self._augmented(training, order, augmenter)
            return
        for rows, features in zip(order, self._plain(training, order), strict=True):
            yield self._shown(features, training, rows, training.masks(rows))

    def _plain(
        self, training: TrainingSet, order: Sequence[Sequence[int]]
    ) -> Generator[ImageFeatures, None, None]:
        if self.cache is not None:
            for rows in order:
                yield self.cache.read([training.items[row].digest for row in rows], device=self.device)
            return
        flat = [training.items[row].sample for rows in order for row in rows]
        for pixels in self._pixels(flat, size=max((len(rows) for rows in order), default=1)):
            yield self._compute(pixels)

    def _augmented(
        self, training: TrainingSet, order: Sequence[Sequence[int]], augmenter: Augmenter
    ) -> Generator[TrainingBatch, None, None]:
        plans = [augmenter.plan(step, rows) for step, rows in enumerate(order)]
        flat = [training.items[row].sample for plan in plans for parts in plan for row in parts]
        with closing(self._pixels(flat, size=1)) as images:
            for step, (rows, plan) in enumerate(zip(order, plans, strict=True)):
                made = [
                    augmenter.combine(
                        step,
                        place,
                        torch.cat([next(images) for _ in parts]),
                        training.masks(parts),
                    )
                    for place, parts in enumerate(plan)
                ]
                pixels, masks = (torch.stack(own) for own in zip(*made, strict=True))
                shown = self._shown(self._compute(pixels), training, rows, masks)
                # One defective quarter makes a mosaic defective.
                labels = torch.stack([training.labels(parts).amax() for parts in plan])
                yield replace(shown, labels=labels.to(self.device))

    def _pixels(self, samples: Sequence[Sample], *, size: int) -> Generator[Tensor, None, None]:
        """Pixels (size, 3, H, W) of samples in turn, the last ones fewer; DataError where one cannot be read."""
        for batch in iter_batches(samples, self.preprocess, batch_size=size, workers=self.config.workers):
            if batch.errors:
                sample, error = batch.errors[0]
                raise DataError(
                    f"{sample.image} could be read before and now cannot ({error}): restore it, then resume"
                )
            yield torch.from_numpy(batch.pixels)

    def _shown(
        self, features: ImageFeatures, training: TrainingSet, rows: Sequence[int], masks: Tensor
    ) -> TrainingBatch:
        words = tuple(training.items[row].sample.word for row in rows)
        labels = training.labels(rows).to(self.device)
        return TrainingBatch(replace(features, words=words), masks.to(self.device), labels)

    def _compute(self, pixels: torch.Tensor) -> ImageFeatures:
        with torch.no_grad():
            return self.method.encode_image(pixels.to(self.device))

    def _extract(self, items: Sequence[Item], cache: FeatureCache, worker: Worker, report: Report) -> None:
        digests = {item.sample: item.digest for item in items}
        extract(
            [(self.method, cache)],
            [item.sample for item in items],
            self.preprocess,
            digest=digests.__getitem__,
            batch_size=self.config.batch_size,
            workers=self.config.workers,
            worker=worker,
            report=report,
        )
        cache.close()

    def _decode_all(self, training: TrainingSet, report: Report) -> list[Skipped]:
        bad: list[Skipped] = []
        done = 0
        samples = [item.sample for item in training.items]
        for batch in iter_batches(samples, self.preprocess, batch_size=16, workers=self.config.workers):
            bad += [Skipped(sample, str(error), broken=True) for sample, error in batch.errors]
            done += len(batch.samples) + len(batch.errors)
            report(done, len(samples))
        return bad

    def _why(self, samples: list[Sample]) -> list[Skipped]:
        """Reads what has no features once more, for the reason."""
        bad: list[Skipped] = []
        for batch in iter_batches(samples, self.preprocess, batch_size=1, workers=self.config.workers):
            bad += [Skipped(sample, str(error), broken=True) for sample, error in batch.errors]
            bad += [Skipped(sample, _CHANGED, broken=True) for sample in batch.samples]
        return bad


def extract(
    readers: Sequence[tuple[Method, FeatureCache]],
    samples: Sequence[Sample],
    preprocess: Preprocess,
    *,
    digest: Callable[[Sample], str | None],
    batch_size: int,
    workers: int,
    worker: Worker,
    report: Report,
) -> None:
    """Fills caches with what they lack, one for each way of reading the tower; every image is read once.

    Images that cannot be read stay missing.

    Args:
        readers: methods of one image size on one device, each with its cache.
        samples: the images.
        preprocess: of the images.
        digest: an image's content hash, by which caches know it; None where it cannot be read.
        batch_size: images a pass.
        workers: threads that read images.
        worker: this process among those that share the work.
        report: called with images done and in all.

    Raises:
        StorageError: a cache does not fit; said before the bulk is computed.
        DataError: features that do not fit into fp16.
    """
    # Batches are cut from the full list, whatever is there already: a record then has the same bits
    # whether or not the extraction was interrupted.
    chunks = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]

    def lacks(cache: FeatureCache, chunk: Sequence[Sample]) -> int:
        return sum(found is not None and found not in cache for found in map(digest, chunk))

    # Dealt out before looking what is there: a process that starts late sees what others have written by
    # then, and would deal out another list.
    own = chunks[worker.rank :: worker.world_size]
    todo = [chunk for chunk in own if any(lacks(cache, chunk) for _, cache in readers)]
    missing = [sum(lacks(cache, chunk) for chunk in todo) * worker.world_size for _, cache in readers]
    for (_, cache), count in zip(readers, missing, strict=True):
        cache.check_space(count)
    flat = [sample for chunk in todo for sample in chunk]
    done = 0
    for batch in iter_batches(flat, preprocess, batch_size=batch_size, workers=workers):
        if batch.samples:
            hashes = [str(digest(sample)) for sample in batch.samples]
            _add_features(readers, torch.from_numpy(batch.pixels), hashes, missing=missing)
        done += len(batch.samples) + len(batch.errors)
        report(done, len(flat))


def _add_features(
    readers: Sequence[tuple[Method, FeatureCache]],
    pixels: Tensor,
    hashes: Sequence[str],
    *,
    missing: Sequence[int],
) -> None:
    """Features of a batch into every cache that lacks some; `missing` says how many each lacks in all."""
    pixels = pixels.to(next(readers[0][0].parameters()).device)
    cut: dict[int, Pixels] = {}  # a tower's patches, computed once for all methods that read it
    with torch.no_grad():
        for (method, cache), count in zip(readers, missing, strict=True):
            if all(digest in cache for digest in hashes):
                continue
            tower = method.clip.visual
            if len(readers) > 1 and id(tower) not in cut:
                cut[id(tower)] = tower.patch_tokens(pixels)
            features = method.encode_image(cut.get(id(tower), pixels))
            if not cache.record_bytes:
                cache.check_space(count, record_bytes=RecordLayout.of(features).record_bytes)
            cache.add(hashes, features)


def open_cache(
    method: Method, preprocess: Preprocess, *, backbone_sha256: str, config: TrainConfig, out: Path
) -> FeatureCache | None:
    """The cache that a run's settings ask for, addressed by all that its features depend on."""
    if not config.cache:
        return None
    parts = cache_key(method, preprocess, backbone_sha256=backbone_sha256, cues=method.fusion is not None)
    folder = config.cache_folder if config.cache_folder is not None else out / "features"
    return FeatureCache(folder.expanduser(), key_parts=parts, max_bytes=int(config.cache_limit_gb * 1e9))


def cache_key(
    method: Method, preprocess: Preprocess, *, backbone_sha256: str, cues: bool
) -> dict[str, object]:
    """All that a method's kept features depend on besides the image; `cues`: whether cues are kept with them."""
    parts: dict[str, object] = {
        "backbone": backbone_sha256,
        "kind": method.feature_kind,
        "settings": feature_settings(method),
        "preprocess": preprocess.fingerprint(),
        "dtype": str(next(method.clip.parameters()).dtype),
    }
    return {**parts, "cues": CUES} if cues else parts


def feature_settings(method: Method) -> dict[str, object]:
    """The settings on which `method.features` depends."""
    settings = method.config.model_dump(mode="json")
    return {name: settings[name] for name in method.feature_fields}
