"""The cells of a benchmark: which method with which weights is measured on which target, and what decides each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import zsad
from zsad.card import Card
from zsad.clip.weights import load_backbone
from zsad.datasets.catalog import bundled
from zsad.datasets.manifest import DataSet, discover
from zsad.datasets.overlap import names_of
from zsad.device import select_device
from zsad.errors import CheckpointError, ConfigError, ZsadError
from zsad.methods.base import MethodConfig
from zsad.methods.registry import find, names
from zsad.studies.benchmark.context import BackboneContext
from zsad.studies.benchmark.request import BenchmarkRequest
from zsad.train.checkpoint import read_card, resolve_model
from zsad.train.feature_cache import content_hash
from zsad.train.train_config import RUN_FIELDS, TrainConfig

FORMAT = 1  # of what cells hold; another one computes them anew


@dataclass(frozen=True, slots=True)
class Target:
    """A data set by its path; `data` is None where it cannot be used, for the reason given."""

    path: str
    name: str
    data: DataSet | None
    fingerprint: str
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A line of the results: a method to be trained, one without training, or a trained model.

    Attributes:
        label: how it is shown.
        method: name in the registry.
        config: of the method on its backbone.
        context: where it is built.
        backbone: by which the context's backbone is loaded.
        training: how it is trained; None: it is not.
        checkpoint: of a trained model.
        card: of a trained model.
        weights: hash of a trained model's file.
    """

    label: str
    method: str
    config: MethodConfig
    context: BackboneContext
    backbone: str
    training: TrainConfig | None = None
    checkpoint: Path | None = None
    card: Card | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRun:
    """A training: a method, the sets it learns from, a seed; `key` says all that decides its weights."""

    candidate: Candidate
    auxiliary: tuple[Target, ...]
    seed: int
    key: str

    @property
    def training(self) -> TrainConfig:
        """The settings with the seed."""
        assert self.candidate.training is not None  # only trained candidates have runs
        return self.candidate.context.settled(self.candidate.training).model_copy(update={"seed": self.seed})


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """An candidate's weights on a target."""

    candidate: Candidate
    target: Target
    run: TrainingRun | None
    key: str
    protocol: str
    overlap: str = ""  # why the target is not unseen, as far as names and paths tell

    @property
    def seed(self) -> int | None:
        """Of the training, also of one done elsewhere."""
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
        """As a human is told of it."""
        seed = "" if self.run is None else f", seed {self.run.seed}"
        on = f" (trained on {', '.join(self.trained_on)})" if self.run is not None else ""
        return f"{self.candidate.label}{seed} on {self.target.name}{on}"


class Plan:
    """All cells of a request, in the order of working.

    Raises:
        ConfigError: an unknown method, an impossible setting, a target that is trained on.
        CheckpointError: a trained model that cannot be read.
        BackboneError: a backbone that cannot be loaded.
    """

    def __init__(self, request: BenchmarkRequest) -> None:
        self.request = request
        self.device = select_device(request.device)
        self._targets: dict[str, Target] = {}
        self._contexts: dict[str, BackboneContext] = {}
        self._overlaps: dict[tuple[str, ...], str] = {}
        self.candidates = [self._candidate(spec) for spec in dict.fromkeys(request.methods)]
        labels = [candidate.label for candidate in self.candidates]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ConfigError(f"--methods has {', '.join(twice)} twice; name them apart as LABEL=PATH")
        self.names = self._name_targets()
        self.cells = list(self._cells())

    @cached_property
    def runs(self) -> list[TrainingRun]:
        """The trainings of the cells."""
        return list({cell.run.key: cell.run for cell in self.cells if cell.run is not None}.values())

    def needed(self) -> dict[str, tuple[Target, bool]]:
        """The sets whose images are read, by path; with whether all images are (of a target) or a share."""
        found: dict[str, tuple[Target, bool]] = {}
        for run in self.runs:
            for part in run.auxiliary:
                found.setdefault(part.path, (part, False))
        for cell in self.cells:
            if cell.target.data is not None:
                found[cell.target.path] = (cell.target, True)
        return found

    def target(self, path: str) -> Target:
        """A data set, looked at once."""
        if path not in self._targets:
            self._targets[path] = _look(path)
        return self._targets[path]

    def _name_targets(self) -> dict[str, str]:
        """Names of the sets by path, made distinct."""
        paths = dict.fromkeys(path for pair in self.request.pairs for path in (*pair.train, *pair.test))
        shown = {path: self.target(path).name for path in paths}
        twice = {name for name in shown.values() if list(shown.values()).count(name) > 1}
        for path, name in shown.items():
            if name in twice:
                found = self._targets[path]
                self._targets[path] = Target(path, path, found.data, found.fingerprint, found.reason)
        return {path: self._targets[path].name for path in paths}

    def context(self, backbone: str) -> BackboneContext:
        """The context of a backbone, loaded once."""
        if backbone not in self._contexts:
            own = backbone == self.request.backbone
            tower = load_backbone(backbone, weights=self.request.weights if own else None, device=self.device)
            self._contexts[backbone] = BackboneContext(
                tower, self.request.work / "features", self.request.carried
            )
        return self._contexts[backbone]

    def _candidate(self, spec: str) -> Candidate:
        label, sign, where = spec.partition("=")
        if not sign and spec in names():
            settings, training = self.request.recipe(spec)
            backbone = self.request.backbone
            context = self.context(backbone)
            config = context.build(spec, settings).config
            return Candidate(
                spec, spec, config, context, backbone, training if find(spec).needs_training else None
            )
        try:
            path = resolve_model(where if sign else spec)
        except CheckpointError as error:
            if not sign:
                find(spec)  # a method misspelt is the likelier slip
            raise CheckpointError(f"--methods {spec}: {error}") from error
        card = read_card(path)
        context = self.context(card.backbone.name)
        if card.backbone.sha256 != context.backbone.sha256:
            raise CheckpointError(
                f"{path} was trained on a backbone {card.backbone.name} with other weights "
                f"(sha256 {card.backbone.sha256[:12]}) than the one here ({context.backbone.sha256[:12]})"
            )
        config = context.build(card.method, card.config).config
        label = label if sign else spec
        weights = content_hash(path)
        return Candidate(
            label,
            card.method,
            config,
            context,
            card.backbone.name,
            checkpoint=path,
            card=card,
            weights=weights,
        )

    def _cells(self) -> Iterator[Cell]:
        targets = dict.fromkeys(path for pair in self.request.pairs for path in pair.test)
        for candidate in self.candidates:
            if candidate.training is None:
                for path in targets:
                    yield self._cell(candidate, self.target(path), None)
        for seed in self.request.seeds:
            for candidate in self.candidates:
                if candidate.training is None:
                    continue
                for pair in self.request.pairs:
                    if not pair.train:
                        raise ConfigError(
                            f"{candidate.label} is to be trained, and no set to train on is given: add --train-on, or "
                            "name a trained model as LABEL=PATH"
                        )
                    auxiliary = tuple(self.target(path) for path in pair.train)
                    run = self._run(candidate, auxiliary, seed)
                    for path in pair.test:
                        yield self._cell(candidate, self.target(path), run)

    def _run(self, candidate: Candidate, auxiliary: tuple[Target, ...], seed: int) -> TrainingRun:
        assert candidate.training is not None
        key = {
            **_of_the_method(candidate),
            "training": candidate.training.model_dump(mode="json", exclude={*RUN_FIELDS, "seed"}),
            "seed": seed,
            "data": [part.fingerprint for part in auxiliary],
        }
        return TrainingRun(candidate, auxiliary, seed, f"{candidate.method}-{seed}-{_digest(key)}")

    def _cell(self, candidate: Candidate, target: Target, run: TrainingRun | None) -> Cell:
        key = {
            **_of_the_method(candidate),
            "label": candidate.label,
            "weights": candidate.weights,
            "run": None if run is None else run.key,
            "target": target.fingerprint,
            "name": target.name,
        }
        seed = "" if run is None else f"-{run.seed}"
        name = f"{candidate.method}{seed}-{_digest(key)}"
        overlap = "" if run is None else self._overlap(run.auxiliary, target)
        if overlap and not self.request.allow_seen:
            raise ConfigError(
                f"{overlap}, so it is not unseen: leave it out of the sets to train on or to measure on, or mark "
                "the results with --allow-seen"
            )
        return Cell(candidate, target, run, name, self.request.protocol, overlap)

    def _overlap(self, auxiliary: tuple[Target, ...], target: Target) -> str:
        """What `_overlap` says of these sets, found out once."""
        key = (target.path, *(part.path for part in auxiliary))
        if key not in self._overlaps:
            self._overlaps[key] = _overlap(auxiliary, target)
        return self._overlaps[key]


def _look(path: str) -> Target:
    """A data set, or why it cannot be used."""
    try:
        data = discover(path, missing="keep")
    except ZsadError as error:
        if not Path(path).expanduser().exists():
            raise
        name = Path(path).expanduser().resolve().name
        return Target(path, name, None, _digest([path, str(error)]), str(error))
    return Target(path, data.name, data, data.fingerprint())


def _overlap(auxiliary: Iterable[Target], target: Target) -> str:
    """What names, catalogue and paths tell of images that are both trained on and measured on; "" where nothing."""
    if target.data is None:
        return ""
    book = bundled()
    own = set(map(str.casefold, names_of(target.data)))
    images = {sample.image.resolve() for sample in target.data.samples}
    for part in auxiliary:
        if part.data is None:
            continue
        shared = sum(sample.image.resolve() in images for sample in part.data.samples)
        if shared:
            return f"{shared} of {len(images)} images of {target.name} are trained on with {part.name}"
        for name in names_of(part.data):
            entry = book.get(name)
            sharing = (
                set() if entry is None else {other.casefold() for other in (entry.name, *book.sharing(entry))}
            )
            known = {found.name.casefold() for text in own if (found := book.get(text)) is not None}
            if name.casefold() in own or sharing & known:
                return f"{target.name} shares images with {part.name}, which is trained on"
    return ""


def _of_the_method(candidate: Candidate) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "zsad": zsad.__version__,
        "method": candidate.method,
        "config": candidate.config.model_dump(mode="json"),
        "backbone": candidate.context.backbone.sha256,
    }


def _digest(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
