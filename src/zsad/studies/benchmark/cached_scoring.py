"""Scores of images by their cached features: the frozen side of a method is computed once for all variants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from zsad.backends.torch import TorchBackend
from zsad.files import content_hash
from zsad.images.decode import image_size
from zsad.methods.base import Method
from zsad.predict.pipeline import OnError, stream
from zsad.predict.prediction import Prediction
from zsad.predict.view import Model, View
from zsad.train.feature_cache import FeatureCache, RecordLayout
from zsad.train.training_card import CardParts, card_of
from zsad.types import Sample

# Kinds of features with a grid for each tapped layer, whatever else is tapped.
_BY_TAP = ("projected", "normed")


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
    """A method that scores images by their cached features; others go the way of all predictions.

    Args:
        method: in evaluation mode.
        parts: backbone and preprocessing.
        cache: of the features, filled before; None: there is none.
        digests: shared by all that score the same images.
        batch_size: images a pass.
        workers: threads that read files.
        on_error: called with each sample that cannot be read, which is then skipped.
    """

    def __init__(
        self,
        method: Method,
        parts: CardParts,
        *,
        cache: FeatureCache | None,
        digests: Digests,
        batch_size: int,
        workers: int,
        on_error: OnError,
    ) -> None:
        self.method, self.cache, self.digests = method, cache, digests
        self._model = Model(TorchBackend(method), card_of(method, parts, created=""))
        self._batch_size, self._workers, self._on_error = batch_size, workers, on_error

    def predict_samples(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """Yield predictions in the order of the samples."""
        if self.cache is None:
            yield from self._read(samples)
            return
        rest = iter(samples)
        while chunk := list(islice(rest, self._batch_size)):
            cached = [sample for sample in chunk if self.digests(sample) in self.cache]
            predictions = {id(p.sample): p for p in self._score(cached, self.cache)}
            missing = [sample for sample in chunk if id(sample) not in predictions]
            predictions |= {id(p.sample): p for p in self._read(missing)}
            yield from (predictions[id(sample)] for sample in chunk if id(sample) in predictions)

    def _read(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """Yield predictions from the images themselves."""
        return stream(
            self._model,
            samples,
            View(),
            on_error=self._on_error,
            batch_size=self._batch_size,
            workers=self._workers,
        )

    @torch.inference_mode()
    def _score(self, samples: list[Sample], cache: FeatureCache) -> list[Prediction]:
        """Return predictions from cached features."""
        if not samples:
            return []
        device = next(self.method.parameters()).device
        features = cache.read([str(self.digests(sample)) for sample in samples], device=device)
        words = tuple(sample.word_for(self.method.name) for sample in samples)
        output = self.method.predict(replace(features, object_names=words))
        grids = output.logits.float().cpu().numpy()
        scores, spec = output.score.float().cpu().tolist(), self.method.map_spec
        return [
            Prediction(
                source=str(sample.image),
                size=image_size(sample.image),
                score=score,
                verdict=None,
                seconds=0.0,
                grid=np.ascontiguousarray(grid),
                spec=spec,
                sample=sample,
            )
            for sample, score, grid in zip(samples, scores, grids, strict=True)
        ]


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
