"""The cells of a study: which candidate with which weights is measured on which target, and what decides each."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import zsad
from zsad.card import Card
from zsad.datasets.catalog import domain_of
from zsad.datasets.manifest import DataSet, discover
from zsad.errors import ZsadError
from zsad.methods.base import Method, MethodConfig
from zsad.metrics.classes import Pro
from zsad.studies.benchmark.context import BackboneContext
from zsad.train.samples import select_samples
from zsad.train.train_config import RUN_FIELDS, TrainConfig
from zsad.types import Domain, Sample

FORMAT = 1  # of the results of cells; those of another format are computed anew


@dataclass(frozen=True, slots=True)
class Target:
    """A data set by its path; `data` is None where it cannot be used, for the reason given."""

    path: str
    name: str
    data: DataSet | None
    fingerprint: str
    reason: str = ""

    @classmethod
    def discover(cls, path: str) -> Target:
        """Look at a data set.

        Raises:
            ZsadError: there is nothing at the path.
        """
        try:
            data = discover(path, missing="keep")
        except ZsadError as error:
            folder = Path(path).expanduser()
            if not folder.exists():
                raise
            return cls(path, folder.resolve().name, None, digest_of([path, str(error)]), str(error))
        return cls(path, data.name, data, data.fingerprint())

    @property
    def samples(self) -> list[Sample]:
        """The images; none where the set cannot be used."""
        return [] if self.data is None else self.data.samples


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A method to be trained, one without training, or a trained model.

    Attributes:
        label: its name in the results.
        method: name in the registry.
        config: of the method on its backbone.
        context: the backbone.
        training: settings of its training; None: it is not trained here.
        checkpoint: of a trained model.
        card: of a trained model.
        weights: hash of a trained model's file.
    """

    label: str
    method: str
    config: MethodConfig
    context: BackboneContext
    training: TrainConfig | None = None
    checkpoint: Path | None = None
    card: Card | None = None
    weights: str | None = None

    def build(self) -> Method:
        """Build the method, without its weights."""
        return self.context.build(self.method, self.config).eval()

    @property
    def key_parts(self) -> dict[str, Any]:
        """The settings that decide a result, besides weights and data."""
        return {
            "format": FORMAT,
            "zsad": zsad.__version__,
            "method": self.method,
            "config": self.config.model_dump(mode="json"),
            "backbone": self.context.backbone.sha256,
        }


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A training: a candidate, the sets it learns from, and a seed."""

    candidate: Candidate
    auxiliary: tuple[Target, ...]
    seed: int

    @cached_property
    def key(self) -> str:
        """A name made of all that decides the weights."""
        assert self.candidate.training is not None  # only trained candidates have runs
        parts = {
            **self.candidate.key_parts,
            "training": self.candidate.training.model_dump(mode="json", exclude={*RUN_FIELDS, "seed"}),
            "seed": self.seed,
            "data": [part.fingerprint for part in self.auxiliary],
        }
        return f"{self.candidate.method}-{self.seed}-{digest_of(parts)}"

    @property
    def training(self) -> TrainConfig:
        """The settings with the seed."""
        assert self.candidate.training is not None  # only trained candidates have runs
        settled = self.candidate.context.settled(self.candidate.training)
        return settled.model_copy(update={"seed": self.seed})


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """A candidate's weights on a target."""

    candidate: Candidate
    target: Target
    run: TrainingRun | None
    key: str
    protocol: str = ""
    overlap: str = ""  # why the target is not unseen, as far as names and paths tell

    @property
    def domain(self) -> Domain | None:
        """What the target's images are of, as the catalogue has it; None: not known."""
        return domain_of(self.target.name)

    @property
    def seed(self) -> int | None:
        """The seed of the training, also of one done elsewhere."""
        if self.run is not None:
            return self.run.seed
        card = self.candidate.card
        return None if card is None or card.training is None else card.training.seed

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Names of the auxiliary sets."""
        if self.run is not None:
            return tuple(part.name for part in self.run.auxiliary)
        card = self.candidate.card
        return () if card is None or card.training is None else card.training.datasets

    @property
    def title(self) -> str:
        """Candidate, seed, target and auxiliary sets in words."""
        seed = "" if self.run is None else f", seed {self.run.seed}"
        on = f" (trained on {', '.join(self.trained_on)})" if self.run is not None else ""
        return f"{self.candidate.label}{seed} on {self.target.name}{on}"

    @property
    def problem(self) -> str:
        """The reason why nothing can be measured; empty where it can."""
        if self.target.data is None:
            return self.target.reason
        missing = [part for part in (() if self.run is None else self.run.auxiliary) if part.data is None]
        return f"not trained: {missing[0].reason}" if missing else ""


def cell_key(candidate: Candidate, run: TrainingRun | None, target: Target, **more: str) -> str:
    """Return the name of a cell's result, made of all that decides it."""
    parts = {
        **candidate.key_parts,
        "weights": candidate.weights,
        "run": None if run is None else run.key,
        "target": target.fingerprint,
        **more,
    }
    own = getattr(candidate.config, "domain", None)
    if own is not None and (domain_of(target.name) or own) != own:
        parts["domain"] = domain_of(target.name)
    seed = "" if run is None else f"-{run.seed}"
    return f"{candidate.method}{seed}-{digest_of(parts)}"


class Step(NamedTuple):
    """A part of the work: features of a set (by path), a training, a measurement of cost, or a cell (by key)."""

    kind: Literal["features", "training", "cost", "cell"]
    key: str


@dataclass(slots=True)
class CellPlan:
    """Cells in the order of working, and how they are measured.

    Attributes:
        work: folder of results, trained models and features.
        cells: all of them.
        sets: to train or to measure on.
        keep_maps: keep scores, curves and maps of each cell, and leave classes with broken files out; without, only
            the means are measured, over the images that can be read.
        pro: of the PRO column.
        allow_seen: measure also on what was trained on.
        cost: measure time and memory of each candidate.
        threads: processor threads of each process.
        jobs: processes at work.
    """

    work: Path
    cells: list[Cell]
    sets: list[Target]
    keep_maps: bool = True
    pro: Pro = "aupro"
    allow_seen: bool = False
    cost: bool = False
    threads: int | None = None
    jobs: int = 1

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates of the cells."""
        return list({id(cell.candidate): cell.candidate for cell in self.cells}.values())

    @property
    def runs(self) -> dict[str, TrainingRun]:
        """The trainings of the cells by key."""
        return {cell.run.key: cell.run for cell in self.cells if cell.run is not None}

    def samples(self, target: Target) -> list[Sample]:
        """Return the images of a set that are read: all of one to measure on, else those that are trained on."""
        if any(cell.target.path == target.path for cell in self.cells):
            return target.samples
        learnt: set[Sample] = set()
        for run in self.runs.values():
            if any(part.path == target.path for part in run.auxiliary):
                learnt.update(
                    select_samples(
                        [sample for part in run.auxiliary for sample in part.samples], run.training
                    )
                )
        return [sample for sample in target.samples if sample in learnt]


def digest_of(value: Any) -> str:
    """Return 16 hexadecimal digits over a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
