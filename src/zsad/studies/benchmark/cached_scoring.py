"""Scores of images by their cached features: the frozen side of a method is computed once for all variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from zsad.errors import ZsadError
from zsad.images.loader import iter_batches
from zsad.images.preprocess import Preprocess
from zsad.methods.base import ImageFeatures, Method, Output
from zsad.nn.maps import MapSpec, render_map_numpy
from zsad.train.feature_cache import FeatureCache, RecordLayout, content_hash
from zsad.types import Sample

OnError = Callable[[Sample, ZsadError], None]
_BY_TAP = (
    "projected",
    "normed",
)  # kinds of features with a grid for each tapped layer, whatever else is tapped


@dataclass(slots=True)
class CachedScore:
    """The result of an image, as an evaluation reads it."""

    source: str
    label: int | None
    score: float
    grid: npt.NDArray[np.float32]
    spec: MapSpec

    def canonical_map(self) -> npt.NDArray[np.float32]:
        """Return the map (H, W) at the model's own size."""
        return render_map_numpy(self.grid, self.spec)


class Digests:
    """Hashes of images' contents, each taken once."""

    def __init__(self) -> None:
        self._known: dict[Path, str | None] = {}

    def __call__(self, sample: Sample) -> str | None:
        """Return the hash of a sample's image; None where the file cannot be read."""
        if sample.image not in self._known:
            self._known[sample.image] = content_hash(sample.image)
        return self._known[sample.image]


class FeatureCacheScorer:
    """A method that scores images by their kept features, and reports those that cannot be read.

    Args:
        method: in evaluation mode.
        preprocess: of images whose features are not there yet.
        cache: of the features; None computes them every time.
        digests: shared by all that score the same images.
        batch_size: images a pass.
        workers: threads that read files.
        on_error: called with each sample that cannot be read, which is then skipped.
    """

    def __init__(
        self,
        method: Method,
        preprocess: Preprocess,
        *,
        cache: FeatureCache | None,
        digests: Digests,
        batch_size: int,
        workers: int,
        on_error: OnError,
    ) -> None:
        self.method, self.preprocess = method, preprocess
        self.cache, self.digests = cache, digests
        self._batch_size, self._workers, self._on_error = batch_size, workers, on_error
        self._device = next(method.parameters()).device

    def predict_samples(self, samples: Sequence[Sample]) -> Iterator[CachedScore]:
        """Results in the order of the samples.

        Raises:
            StorageError: the features of the images do not fit into the cache.
        """
        if self.cache is not None:
            self.cache.check_space(sum(self.digests(sample) not in self.cache for sample in samples))
        rest = iter(samples)
        while chunk := list(islice(rest, self._batch_size)):
            read, features = self._features(chunk) if self.cache is None else self._kept(chunk, self.cache)
            if features is not None:
                yield from self._score(read, features)
        if self.cache is not None:
            self.cache.close()

    @torch.inference_mode()
    def _score(self, samples: list[Sample], features: ImageFeatures) -> list[CachedScore]:
        words = tuple(sample.word for sample in samples)
        output: Output = self.method.predict(replace(features, words=words))
        grids = output.logits.float().cpu().numpy()
        scores, spec = output.score.float().cpu().tolist(), self.method.map_spec
        return [
            CachedScore(str(sample.image), sample.label, score, np.ascontiguousarray(grid), spec)
            for sample, score, grid in zip(samples, scores, grids, strict=True)
        ]

    def _features(self, samples: list[Sample]) -> tuple[list[Sample], ImageFeatures | None]:
        """The readable samples and their features, computed."""
        batches = iter_batches(
            samples, self.preprocess, batch_size=len(samples), workers=min(self._workers, len(samples))
        )
        [batch] = batches
        for sample, error in batch.errors:
            self._on_error(sample, error)
        if not batch.samples:
            return [], None
        with torch.no_grad():
            return batch.samples, self.method.encode_image(torch.from_numpy(batch.pixels).to(self._device))

    def _kept(self, samples: list[Sample], cache: FeatureCache) -> tuple[list[Sample], ImageFeatures | None]:
        """The readable samples and their features, always read back, so that a repeated run sees the same."""
        missing = [sample for sample in samples if self.digests(sample) not in cache]
        if missing:
            computed, features = self._features(missing)
            if features is not None:
                cache.add([str(self.digests(sample)) for sample in computed], features)
        read = [sample for sample in samples if self.digests(sample) in cache]
        if not read:
            return [], None
        return read, cache.read([str(self.digests(sample)) for sample in read], device=self._device)


def copy_layers(
    source: FeatureCache,
    target: FeatureCache,
    digests: Sequence[str],
    *,
    tapped: Sequence[int],
    chosen_layers: Sequence[int],
) -> None:
    """Copy features of some of the layers into a cache that wants only these.

    Args:
        source: features of the layers `tapped`.
        target: takes the layers `chosen_layers`, all of them tapped.
        digests: of the images; those that the source lacks are left out.
        tapped: layers of the source.
        chosen_layers: layers of the target.

    Raises:
        StorageError: they do not fit.
    """
    rows = [tapped.index(layer) for layer in chosen_layers]
    todo = iter([digest for digest in dict.fromkeys(digests) if digest in source and digest not in target])
    while chunk := list(islice(todo, 64)):
        features = source.read(chunk)
        patches = features.patches[:, rows]
        chosen = replace(features, patches=patches)
        target.check_space(len(chunk), record_bytes=RecordLayout.of(chosen).record_bytes)
        target.add(chunk, chosen)
    target.close()


def is_part(method: Method, other: Method) -> bool:
    """Return True if `method` taps some of the layers of `other` and both read the tower alike in all else."""
    if method.feature_kind != other.feature_kind or method.feature_kind not in _BY_TAP:
        return False
    if method.fusion is not None or other.fusion is not None:  # cues may be of the first tapped layer
        return False
    if not set(method.config.layers) < set(other.config.layers):
        return False
    return _other_settings(method) == _other_settings(other)


def _other_settings(method: Method) -> dict[str, object]:
    settings = method.config.model_dump()
    return {name: settings[name] for name in method.feature_fields if name != "layers"}
