"""A backbone with the cached features of images: what all methods on one backbone share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zsad.clip.weights import Backbone
from zsad.images.picture import Preprocess
from zsad.methods.base import Method, MethodConfig
from zsad.methods.registry import build
from zsad.predict.pipeline import OnError
from zsad.studies.benchmark.cached_scoring import Digests, FeatureCacheScorer, copy_layers, is_part
from zsad.train.distributed import Worker
from zsad.train.feature_cache import FeatureCache
from zsad.train.features import extract, open_cache
from zsad.train.train_config import TrainConfig
from zsad.train.training_card import CardParts
from zsad.types import Sample

Report = Callable[[int, int], None]


@dataclass(slots=True)
class BackboneContext:
    """A backbone and the cached features of images, which all methods on it share.

    Attributes:
        backbone: loaded, on its device.
        folder: of the cached features.
        execution: a configuration of which only the cache, its limit and the threads that read files are used.
        source: name or path by which the backbone is loaded.
        weights: file of its weights, where it was given apart.
        batch_size: images a pass, which decides the last bits of features; 0: what suits the device.
    """

    backbone: Backbone
    folder: Path
    execution: TrainConfig = field(default_factory=TrainConfig)
    source: str = ""
    weights: Path | None = None
    batch_size: int = 0
    digests: Digests = field(default_factory=Digests)

    def __post_init__(self) -> None:
        if not self.batch_size:
            self.batch_size = 16 if self.device.type == "cpu" else 32

    @property
    def device(self) -> torch.device:
        """The device of the backbone."""
        return next(self.backbone.clip.parameters()).device

    def build(self, name: str, config: MethodConfig | dict[str, Any]) -> Method:
        """Build a method on the backbone and its device."""
        return build(name, config, self.backbone).to(self.device)

    def parts(self, method: Method) -> CardParts:
        """Return what a model's card says of the backbone and of the images."""
        return CardParts.of(method, self.backbone)

    def settled(self, training: TrainConfig) -> TrainConfig:
        """Return settings of a training with the cache and the threads of this context."""
        shared = {name: getattr(self.execution, name) for name in ("cache", "cache_limit_gb", "workers")}
        folder = self.execution.cache_folder or self.folder
        return training.model_copy(update={**shared, "cache_folder": folder})

    def open_cache(self, method: Method) -> FeatureCache | None:
        """Open the cache of a method's features; None where caching is off."""
        return open_cache(
            method,
            self.parts(method).preprocess,
            backbone_sha256=self.backbone.sha256,
            config=self.settled(TrainConfig()),
            out=self.folder,
        )

    def fill(self, methods: Sequence[Method], samples: Sequence[Sample], *, report: Report) -> None:
        """Compute the features of images for methods, each image read once; does nothing without a cache.

        Methods that read the tower alike share a cache; one that taps some of the layers of another gets a copy.

        Args:
            methods: of any image size.
            samples: the images; those that cannot be read are left out.
            report: called with images done and in all.

        Raises:
            StorageError: the features do not fit.
        """
        readers: dict[Path, tuple[Method, FeatureCache]] = {}
        for method in sorted(methods, key=lambda method: -len(method.config.layers)):
            if (cache := self.open_cache(method)) is not None:
                readers.setdefault(cache.folder, (method, cache))
        sizes: dict[Preprocess, list[tuple[Method, FeatureCache]]] = {}
        copies: list[tuple[tuple[Method, FeatureCache], tuple[Method, FeatureCache]]] = []
        for reader in readers.values():
            computed = sizes.setdefault(self.parts(reader[0]).preprocess, [])
            wider = next((other for other in computed if is_part(reader[0], other[0])), None)
            if wider is None:
                computed.append(reader)
            else:
                copies.append((wider, reader))
        for preprocess, group in sizes.items():
            extract(
                group,
                samples,
                preprocess,
                digest=self.digests,
                batch_size=self.batch_size,
                workers=self.execution.workers,
                worker=Worker(),
                report=report,
            )
        digests = [digest for digest in map(self.digests, samples) if digest is not None] if copies else []
        for (source, source_cache), (method, cache) in copies:
            tapped, chosen_layers = source.config.layers, method.config.layers
            copy_layers(source_cache, cache, digests, tapped=tapped, chosen_layers=chosen_layers)
        for _, cache in readers.values():
            cache.close()

    def scorer(self, method: Method, *, on_error: OnError) -> FeatureCacheScorer:
        """Return a scorer of images by their cached features.

        Args:
            method: trained.
            on_error: called with each sample that cannot be read.
        """
        return FeatureCacheScorer(
            method.eval(),
            self.parts(method),
            cache=self.open_cache(method),
            digests=self.digests,
            batch_size=self.batch_size,
            workers=self.execution.workers,
            on_error=on_error,
        )
