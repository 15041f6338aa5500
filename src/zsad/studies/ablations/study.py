"""A study: every variant of a table trained with every seed and measured on every target, cell by cell.

What is finished lies in the study's folder under a name made of all that decides it (configuration, backbone, data,
training settings, version), so that a study goes on where it stopped and tables share the variants they have in
common.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zsad
from zsad.clip.weights import Backbone
from zsad.datasets.manifest import DataSet
from zsad.errors import ConfigError, ZsadError
from zsad.files import write_json
from zsad.methods.base import Method, MethodConfig
from zsad.methods.registry import build, find
from zsad.metrics.classes import EXACT_HINT
from zsad.metrics.evaluation import check_measurable, evaluate
from zsad.metrics.table import ResultTable
from zsad.studies.ablations import Row, Table
from zsad.studies.benchmark.cached_scoring import copy_layers, is_part
from zsad.studies.benchmark.context import BackboneContext
from zsad.studies.benchmark.listener import Listener, Told
from zsad.train.checkpoint import load_checkpoint
from zsad.train.feature_cache import FeatureCache
from zsad.train.loop import train
from zsad.train.train_config import RUN_FIELDS, TrainConfig
from zsad.types import Sample

Metrics = dict[str, float]

# Settings for all variants that mean the same in a row of another method.
_OF_THE_IMAGE = ("image_size", "activation", "positions")


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the table on this backbone; `trained` says whether there is something to train."""

    row: Row
    method: str
    config: MethodConfig
    trained: bool


@dataclass(frozen=True, slots=True)
class VariantCell:
    """A variant with a seed; None where the seed decides nothing."""

    variant: Variant
    seed: int | None

    @property
    def title(self) -> str:
        """As a human is told of it."""
        return self.variant.row.label + ("" if self.seed is None else f", seed {self.seed}")


@dataclass(slots=True)
class Study:
    """All that a table's cells depend on.

    Attributes:
        method: name of the full method.
        table: what is varied.
        backbone: loaded, on its device.
        settings: of the method, for all variants.
        training: settings of the training; its seed is not used.
        seeds: each variant is trained once with each.
        auxiliary: the sets to train on.
        targets: the sets to measure on, by name.
        folder: of the study.
        broken: files that could not be read, so far.
        notes: what was remarked of the data, so far, each line once.
    """

    method: str
    table: Table
    backbone: Backbone
    settings: dict[str, Any]
    training: TrainConfig
    seeds: tuple[int, ...]
    auxiliary: list[DataSet]
    targets: dict[str, DataSet]
    folder: Path
    variants: list[Variant] = field(init=False)
    broken: int = 0
    notes: list[str] = field(default_factory=list)
    _context: BackboneContext = field(init=False)
    _readers: list[Method] = field(default_factory=list)  # one for each way of reading the tower, so far

    def __post_init__(self) -> None:
        """Builds every variant once.

        Raises:
            ConfigError: a variant that is impossible on this backbone, or settings that the table varies itself.
            DataError: a target that cannot be measured.
        """
        folder = self.training.cache_folder or self.folder / "features"
        self._context = BackboneContext(self.backbone, folder, self.training)
        for name in self.settings:
            if all(name in row.settings for row in self.table.rows):
                raise ConfigError(f"setting {name!r} is what this table varies; leave it out of --set")
        for target in self.targets.values():
            check_measurable(target)
        self.variants = [self._variant(row) for row in self.table.rows]

    def _variant(self, row: Row) -> Variant:
        name = row.method or self.method
        own = self.settings
        if row.method is not None:
            own = {name: own[name] for name in own if name in _OF_THE_IMAGE}
        taps = tuple(own.get("layers", self.backbone.preset.taps))
        config = build(name, row.resolve(own, taps=taps), self.backbone).config
        return Variant(row, name, config, find(name).needs_training)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images."""
        return self.variants[-1].config.image_size

    def cells(self) -> list[VariantCell]:
        """In the order of working: seed by seed; what taps more layers first, as others can use its features."""
        order = sorted(self.variants, key=lambda variant: -len(variant.config.layers))
        once = [VariantCell(variant, None) for variant in order if not variant.trained]
        return once + [
            VariantCell(variant, seed) for seed in self.seeds for variant in order if variant.trained
        ]

    def run(self, cell: VariantCell, listener: Listener) -> dict[str, Metrics]:
        """The metrics of a cell in [0, 1], NaN where undefined, by target; computed where not there yet.

        Raises:
            TrainingError: a loss that is not finite.
            DataError: nothing to learn from, or no image of a target can be read.
            StorageError: the disk is full.
        """
        key = self._key(cell)
        model = self._train(cell, key, listener) if cell.variant.trained else None
        return {name: self._measure(cell, key, model, name, listener) for name in self.targets}

    def _key(self, cell: VariantCell) -> dict[str, Any]:
        """All that decides what the trained variant is."""
        key: dict[str, Any] = {
            "zsad": zsad.__version__,
            "method": cell.variant.method,
            "config": cell.variant.config.model_dump(mode="json"),
            "backbone": self.backbone.sha256,
        }
        if cell.variant.trained:
            settings = self._training(cell).model_dump(mode="json", exclude=set(RUN_FIELDS))
            key |= {"training": settings, "data": [data.fingerprint() for data in self.auxiliary]}
        return key

    def _training(self, cell: VariantCell) -> TrainConfig:
        return self._context.settled(self.training).model_copy(update={"seed": cell.seed})

    def _build(self, cell: VariantCell) -> Method:
        return self._context.build(cell.variant.method, cell.variant.config)

    def _place(self, folder: str, cell: VariantCell, key: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        seed = "" if cell.seed is None else f"-{cell.seed}"
        return self.folder / folder / f"{cell.variant.method}{seed}-{digest}"

    def _train(self, cell: VariantCell, key: dict[str, Any], listener: Listener) -> Path:
        """The checkpoint of a trained cell."""
        run = self._place("runs", cell, key)
        kept = _read(run.with_suffix(".json"), key)
        if kept is None:
            method = self._build(cell)
            settings, parts = self._training(cell), self._context.parts(method)
            self._open_cache(method, [s for data in self.auxiliary for s in data.samples])
            told = Told(listener)
            train(method, self.auxiliary, config=settings, out=run, card_parts=parts, progress=told)
            kept = {"broken": told.broken, "left_out": told.left_out}
            write_json(run.with_suffix(".json"), {"key": key, **kept})
        self.broken += kept["broken"]
        for line in kept["left_out"]:
            self._remark(line, listener)
        return run / "model.safetensors"

    def _measure(
        self, cell: VariantCell, key: dict[str, Any], model: Path | None, name: str, listener: Listener
    ) -> Metrics:
        target = self.targets[name]
        key = {**key, "target": target.fingerprint()}
        place = self._place("cells", cell, key).with_suffix(".json")
        kept = _read(place, key)
        if kept is None:
            method = self._build(cell)
            if model is not None:
                load_checkpoint(model, method, backbone_sha256=self.backbone.sha256)
            table = self._evaluate(cell, method.eval(), target, name, listener)
            kept = {"unreadable": table.unreadable, **json.loads(table.to_json())}
            self.broken += table.unreadable
            # With broken files it is not kept: next time they may be whole again.
            if not table.unreadable:
                write_json(place, {"key": key, **kept})
        for line in kept["notes"]:
            if not line.endswith(EXACT_HINT):
                self._remark(line, listener)
        metrics = kept["rows"][-1]["metrics"]
        return {column: math.nan if metrics[column] is None else metrics[column] for column in metrics}

    def _evaluate(
        self, cell: VariantCell, method: Method, target: DataSet, name: str, listener: Listener
    ) -> ResultTable:
        def report(sample: Sample, error: ZsadError) -> None:
            self._remark(f"skipped: {error}", listener)

        scorer = self._context.scorer(
            method,
            on_error=report,
            cache=self._open_cache(method, target.samples),
            batch_size=self._training(cell).batch_size,
        )
        return evaluate(
            scorer, target, progress=lambda done, total: listener.moved(f"measuring on {name}", done, total)
        )

    def _open_cache(self, method: Method, samples: Sequence[Sample]) -> FeatureCache | None:
        """The cache of a method's features; what another variant has read of more layers is put in."""
        cache = self._context.open_cache(method)
        wider = next((other for other in self._readers if is_part(method, other)), None)
        if wider is None:
            self._readers.append(method)
        elif cache is not None and (source := self._context.open_cache(wider)) is not None:
            known = map(self._context.digests, samples)
            digests = [digest for digest in known if digest is not None]
            tapped, wanted = wider.config.layers, method.config.layers
            copy_layers(source, cache, digests, tapped=tapped, wanted=wanted)
        return cache

    def _remark(self, line: str, listener: Listener) -> None:
        if line not in self.notes:
            self.notes.append(line)
            listener.remark(line)


def _read(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """A finished result, or None where there is none of this key."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("key") != json.loads(json.dumps(key)):
        return None
    return found


def name_targets(found: Sequence[DataSet]) -> dict[str, DataSet]:
    """Data sets by name; where two have the same, by path."""
    names = [data.name for data in found]
    return {data.name if names.count(data.name) == 1 else data.root.as_posix(): data for data in found}


def shared_images(auxiliary: Sequence[DataSet], targets: dict[str, DataSet]) -> Iterator[str]:
    """A line for each target that holds images which are also trained on: its numbers are not zero-shot."""
    trained = {sample.image.resolve() for data in auxiliary for sample in data.samples}
    for name, data in targets.items():
        count = sum(sample.image.resolve() in trained for sample in data.samples)
        if count:
            yield f"{count} of {len(data.samples)} images of {name} are also trained on: not zero-shot"
