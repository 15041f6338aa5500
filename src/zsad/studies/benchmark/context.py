"""A backbone and the kept features of images on it: where methods are built, trained and asked for scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zsad.clip.weights import Backbone
from zsad.images.preprocess import Preprocess
from zsad.methods.base import Method, MethodConfig
from zsad.methods.registry import build
from zsad.studies.benchmark.cached_scoring import Digests, FeatureCacheScorer, OnError
from zsad.train.distributed import Worker
from zsad.train.feature_cache import FeatureCache
from zsad.train.features import extract, open_cache
from zsad.train.train_config import TrainConfig
from zsad.train.training_card import CardParts
from zsad.types import Sample


@dataclass(slots=True)
class BackboneContext:
    """What all methods on one backbone share.

    Attributes:
        backbone: loaded, on its device.
        folder: of the kept features.
        carried: how work is carried out: the cache, its limit, the threads that read files.
    """

    backbone: Backbone
    folder: Path
    carried: TrainConfig = field(default_factory=TrainConfig)
    digests: Digests = field(default_factory=Digests)

    @property
    def device(self) -> torch.device:
        """Where the backbone lives."""
        return next(self.backbone.clip.parameters()).device

    @property
    def batch_size(self) -> int:
        """Images a pass where the backbone runs: part of what decides the last bits of features."""
        return 16 if self.device.type == "cpu" else 32

    def build(self, name: str, config: MethodConfig | dict[str, Any]) -> Method:
        """A method on the backbone and its device."""
        return build(name, config, self.backbone).to(self.device)

    def parts(self, method: Method) -> CardParts:
        """What a model's card says of the backbone and of the images."""
        return CardParts.of(method, self.backbone)

    def settled(self, training: TrainConfig) -> TrainConfig:
        """Settings of a training as it is carried out here: features go where all keep theirs."""
        carried = {name: getattr(self.carried, name) for name in ("cache", "cache_limit_gb", "workers")}
        folder = self.carried.cache_folder or self.folder
        return training.model_copy(update={**carried, "cache_folder": folder})

    def open_cache(self, method: Method) -> FeatureCache | None:
        """The cache of a method's features; None where none are kept."""
        return open_cache(
            method,
            self.parts(method).preprocess,
            backbone_sha256=self.backbone.sha256,
            config=self.settled(TrainConfig()),
            out=self.folder,
        )

    def fill(
        self, methods: Sequence[Method], samples: Sequence[Sample], *, report: Callable[[int, int], None]
    ) -> None:
        """Computes the features of images for methods, each image read once; nothing where none are kept.

        Args:
            methods: of any image size; those that read the tower alike share a cache.
            samples: the images; those that cannot be read are left out.
            report: called with images done and in all.

        Raises:
            StorageError: the features do not fit.
        """
        sizes: dict[Preprocess, dict[Path, tuple[Method, FeatureCache]]] = {}
        for method in methods:
            if (cache := self.open_cache(method)) is not None:
                own = sizes.setdefault(self.parts(method).preprocess, {})
                own.setdefault(cache.folder, (method, cache))
        for preprocess, readers in sizes.items():
            extract(
                list(readers.values()),
                samples,
                preprocess,
                digest=self.digests,
                batch_size=self.batch_size,
                workers=self.carried.workers,
                worker=Worker(),
                report=report,
            )
            for _, cache in readers.values():
                cache.close()

    def scorer(
        self,
        method: Method,
        *,
        on_error: OnError,
        cache: FeatureCache | None = None,
        batch_size: int | None = None,
    ) -> FeatureCacheScorer:
        """A method that scores images by their kept features.

        Args:
            method: trained.
            on_error: called with each sample that cannot be read.
            cache: of its features, opened; None opens it.
            batch_size: images a pass.
        """
        return FeatureCacheScorer(
            method.eval(),
            self.parts(method).preprocess,
            cache=self.open_cache(method) if cache is None else cache,
            digests=self.digests,
            batch_size=batch_size or self.batch_size,
            workers=self.carried.workers,
            on_error=on_error,
        )
