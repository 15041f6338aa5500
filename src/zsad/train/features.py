"""Features of training images, out of the cache on disk or computed by the backbone at every step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from zsad.clip.vision import Pixels
from zsad.errors import DataError
from zsad.images.inputs import iter_batches
from zsad.images.picture import Preprocess
from zsad.methods.base import ImageFeatures, Method
from zsad.nn.oddness import CUES
from zsad.train.augment import Augmenter
from zsad.train.distributed import Worker
from zsad.train.feature_cache import FeatureCache, RecordLayout
from zsad.train.samples import Item, Skipped, TrainingBatch, TrainingSet, chunked
from zsad.train.train_config import TrainConfig
from zsad.types import Sample

Report = Callable[[int, int], None]


class FeatureSource:
    """Features of training samples by row; `usable` must first find out which samples have any.

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
        """Return the set without the images that cannot be decoded, having filled the cache where there is one.

        Raises:
            DataError: nothing to learn from is left.
            StorageError: the cache does not fit; said before the bulk is computed.
        """
        if self.cache is None:
            return training.without(self._undecodable([item.sample for item in training.items], report))
        self._extract(training.items, self.cache, worker, report)
        worker.barrier()
        self.cache.refresh()
        missing = [item.sample for item in training.items if item.digest not in self.cache]
        changed = "the image changed while it was being read"
        return training.without(self._undecodable(missing, otherwise=changed))

    def batches(
        self, training: TrainingSet, order: Sequence[Sequence[int]], *, augmenter: Augmenter | None = None
    ) -> Generator[TrainingBatch, None, None]:
        """Yield each batch of rows in turn, all but the last of one size.

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
            yield self._batch(features, training, rows, training.masks(rows), training.labels(rows))

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
                changed = [
                    augmenter.combine(
                        step, position, torch.cat([next(images) for _ in parts]), training.masks(parts)
                    )
                    for position, parts in enumerate(plan)
                ]
                pixels, masks = (torch.stack(tensors) for tensors in zip(*changed, strict=True))
                # One defective quarter makes a mosaic defective.
                labels = torch.stack([training.labels(parts).amax() for parts in plan])
                yield self._batch(self._compute(pixels), training, rows, masks, labels)

    def _pixels(self, samples: Sequence[Sample], *, size: int) -> Generator[Tensor, None, None]:
        """Yield pixels (size, 3, H, W) of samples in turn, the last ones fewer; DataError where one cannot be read."""
        for batch in iter_batches(samples, self.preprocess, batch_size=size, workers=self.config.workers):
            if batch.errors:
                sample, error = batch.errors[0]
                raise DataError(
                    f"{sample.image} could be read before and now cannot ({error}): restore it, then resume"
                )
            yield torch.from_numpy(batch.pixels)

    def _batch(
        self,
        features: ImageFeatures,
        training: TrainingSet,
        rows: Sequence[int],
        masks: Tensor,
        labels: Tensor,
    ) -> TrainingBatch:
        words = tuple(training.items[row].sample.word_for(self.method.name) for row in rows)
        return TrainingBatch(
            replace(features, object_names=words), masks.to(self.device), labels.to(self.device)
        )

    def _compute(self, pixels: torch.Tensor) -> ImageFeatures:
        with torch.no_grad():
            return self.method.encode_image(pixels.to(self.device))

    def _extract(self, items: Sequence[Item], cache: FeatureCache, worker: Worker, report: Report) -> None:
        digests = {item.sample: item.digest for item in items}
        extract(
            [(self.method, cache)],
            list(digests),
            self.preprocess,
            digest=digests.__getitem__,
            batch_size=self.config.batch_size,
            workers=self.config.workers,
            worker=worker,
            report=report,
        )
        cache.close()

    def _undecodable(
        self, samples: Sequence[Sample], report: Report | None = None, *, otherwise: str | None = None
    ) -> list[Skipped]:
        """Decode images and return those that fail, and, with the reason `otherwise`, those that do not."""
        skipped: list[Skipped] = []
        done = 0
        size = 16 if otherwise is None else 1
        for batch in iter_batches(samples, self.preprocess, batch_size=size, workers=self.config.workers):
            skipped += [Skipped(sample, str(error), broken=True) for sample, error in batch.errors]
            if otherwise is not None:
                skipped += [Skipped(sample, otherwise, broken=True) for sample in batch.samples]
            done += len(batch.samples) + len(batch.errors)
            if report is not None:
                report(done, len(samples))
        return skipped


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
    """Fill caches with what they lack, one for each way of reading the tower; every image is read once.

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
    chunks = chunked(samples, batch_size)

    def lacks(cache: FeatureCache, chunk: Sequence[Sample]) -> int:
        return sum(known is not None and known not in cache for known in map(digest, chunk))

    # Dealt out before looking what is there: a process that starts late sees what others have written by
    # then, and would deal out another list.
    dealt = chunks[worker.rank :: worker.world_size]
    todo = [chunk for chunk in dealt if any(lacks(cache, chunk) for _, cache in readers)]
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
    """Add features of a batch to every cache that lacks some; `missing` says how many each lacks in all."""
    pixels = pixels.to(next(readers[0][0].parameters()).device)
    patches: dict[int, Pixels] = {}  # a tower's patches, computed once for all methods that read it
    with torch.no_grad():
        for (method, cache), count in zip(readers, missing, strict=True):
            if all(digest in cache for digest in hashes):
                continue
            tower = method.clip.visual
            if len(readers) > 1 and id(tower) not in patches:
                patches[id(tower)] = tower.patch_tokens(pixels)
            features = method.encode_image(patches.get(id(tower), pixels))
            if not cache.record_bytes:
                cache.check_space(count, record_bytes=RecordLayout.of(features).record_bytes)
            cache.add(hashes, features)


def open_cache(
    method: Method, preprocess: Preprocess, *, backbone_sha256: str, config: TrainConfig, out: Path
) -> FeatureCache | None:
    """Open the cache that a run's settings ask for, addressed by all that its features depend on."""
    if not config.cache:
        return None
    parts = cache_key(method, preprocess, backbone_sha256=backbone_sha256, cues=method.fusion is not None)
    folder = config.cache_folder if config.cache_folder is not None else out / "features"
    return FeatureCache(folder.expanduser(), key_parts=parts, max_bytes=int(config.cache_limit_gb * 1e9))


def cache_key(
    method: Method, preprocess: Preprocess, *, backbone_sha256: str, cues: bool
) -> dict[str, object]:
    """Return all that a method's cached features depend on besides the image; `cues`: cues are stored with them."""
    parts: dict[str, object] = {
        "backbone": backbone_sha256,
        "kind": method.feature_kind,
        "settings": feature_settings(method),
        "preprocess": preprocess.fingerprint(),
        "dtype": str(next(method.clip.parameters()).dtype),
    }
    return {**parts, "cues": CUES} if cues else parts


def feature_settings(method: Method) -> dict[str, object]:
    """Return the settings on which `method.features` depends."""
    settings = method.config.model_dump(mode="json")
    return {name: settings[name] for name in method.feature_fields}
