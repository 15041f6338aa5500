"""A study: every variant of a table as a candidate, trained with every seed and measured on every target.

The variants' cells are a plan as a benchmark has one; see `zsad.studies.benchmark.cells`. Results are named after all
that decides them, so that tables made in one folder share the variants that they have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zsad.clip.weights import Backbone
from zsad.datasets.manifest import DataSet
from zsad.errors import ConfigError
from zsad.methods.registry import build, find
from zsad.metrics.evaluation import check_measurable
from zsad.studies.ablations import Row, Table
from zsad.studies.benchmark.cells import Candidate, Cell, CellPlan, Target, TrainingRun, cell_key
from zsad.studies.benchmark.context import BackboneContext
from zsad.studies.benchmark.papers import Paper, papers
from zsad.train.train_config import TrainConfig

# Settings for all variants that mean the same in a row of another method.
_OF_THE_IMAGE = ("image_size", "activation", "positions")


@dataclass(slots=True)
class Study:
    """Settings and data of a table's cells.

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
        candidates: the variants, in the order of the table's rows.
        plan: the cells.
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
    candidates: list[Candidate] = field(init=False)
    plan: CellPlan = field(init=False)

    def __post_init__(self) -> None:
        """Build every variant once.

        Raises:
            ConfigError: a variant that is impossible on this backbone, or settings that the table varies itself.
            DataError: a target that cannot be measured.
        """
        for name in self.settings:
            if all(name in row.settings for row in self.table.rows):
                raise ConfigError(f"setting {name!r} is what this table varies; leave it out of --set")
        for target in self.targets.values():
            check_measurable(target)
        context = BackboneContext(
            self.backbone, self.folder / "features", self.training, batch_size=self.training.batch_size
        )
        self.candidates = [self._candidate(row, context) for row in self.table.rows]
        auxiliary = [_target(data.name, data) for data in self.auxiliary]
        targets = [_target(name, data) for name, data in self.targets.items()]
        cells = list(self._cells(tuple(auxiliary), targets))
        sets = [*auxiliary, *targets]
        self.plan = CellPlan(self.folder, cells, sets, keep_maps=False, pro=self.paper.pro, allow_seen=True)

    def _candidate(self, row: Row, context: BackboneContext) -> Candidate:
        name = row.method or self.method
        settings = self.settings
        if row.method is not None:
            settings = {name: settings[name] for name in settings if name in _OF_THE_IMAGE}
        taps = tuple(settings.get("layers", self.backbone.preset.taps))
        config = build(name, row.resolve(settings, taps=taps), self.backbone).config
        training = self.training if find(name).needs_training else None
        return Candidate(row.label, name, config, context, training)

    def _cells(self, auxiliary: tuple[Target, ...], targets: Sequence[Target]) -> Iterator[Cell]:
        """Yield the cells: those without training first, then seed by seed, the most layers first."""
        order = sorted(self.candidates, key=lambda candidate: -len(candidate.config.layers))
        runs: list[tuple[Candidate, TrainingRun | None]] = [
            (candidate, None) for candidate in order if candidate.training is None
        ]
        runs += [
            (candidate, TrainingRun(candidate, auxiliary, seed))
            for seed in self.seeds
            for candidate in order
            if candidate.training is not None
        ]
        for candidate, run in runs:
            for target in targets:
                yield Cell(candidate, target, run, cell_key(candidate, run, target, pro=self.paper.pro))

    @property
    def paper(self) -> Paper:
        """The paper in which the table was printed."""
        return papers()[self.method]

    @property
    def image_size(self) -> int:
        """Side in pixels of the images."""
        return self.candidates[-1].config.image_size


def _target(name: str, data: DataSet) -> Target:
    return Target(data.root.as_posix(), name, data, data.fingerprint())


def name_targets(sets: Sequence[DataSet]) -> dict[str, DataSet]:
    """Return data sets by name; where two have the same, by path."""
    names = [data.name for data in sets]
    return {data.name if names.count(data.name) == 1 else data.root.as_posix(): data for data in sets}


def shared_images(auxiliary: Sequence[DataSet], targets: dict[str, DataSet]) -> Iterator[str]:
    """Yield a line for each target that holds images which are also trained on: its numbers are not zero-shot."""
    trained = {sample.image.resolve() for data in auxiliary for sample in data.samples}
    for name, data in targets.items():
        count = sum(sample.image.resolve() in trained for sample in data.samples)
        if count:
            yield f"{count} of {len(data.samples)} images of {name} are also trained on: not zero-shot"
