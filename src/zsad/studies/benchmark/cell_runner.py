"""How a cell comes to be: features, training, scores, cost; each kept, none done twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from zsad.card import BackboneReference, Card
from zsad.datasets.manifest import DataSet
from zsad.datasets.overlap import overlap_of
from zsad.device import describe_environment
from zsad.errors import DataError, LockedError, StorageError, ZsadError
from zsad.methods.base import Method
from zsad.methods.registry import find
from zsad.studies.benchmark.cell_results import CellResult, FileProblem
from zsad.studies.benchmark.claims import Busy, Claims, claimed
from zsad.studies.benchmark.cost import cost
from zsad.studies.benchmark.estimate import Estimate
from zsad.studies.benchmark.listener import Listener, Told
from zsad.studies.benchmark.measure import measure
from zsad.studies.benchmark.plan import Candidate, Cell, Plan, Target, TrainingRun
from zsad.train.checkpoint import MODEL_FILE, load_checkpoint, read_card
from zsad.train.loop import train
from zsad.train.samples import chosen
from zsad.train.state import LOG_FILE
from zsad.train.train_config import RUN_FIELDS
from zsad.types import Sample

_COST_IMAGES = 10


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What the log of a training tells, however often it was stopped and went on.

    `seconds` is the time of its steps, None where nothing was trained; `left_out` names what was not trained on.
    """

    seconds: float | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> TrainingLog:
        """That of a run's folder."""
        seconds, left_out = 0.0, []
        with suppress(OSError), (folder / LOG_FILE).open(encoding="utf-8") as stream:
            for line in stream:
                with suppress(ValueError):  # half a line
                    record = json.loads(line)
                    seconds += record.get("seconds", 0.0)
                    if "skipped" in record:
                        left_out.append(f"left out: {record['skipped']}: {record['reason']}")
        return cls(seconds, tuple(left_out))


@dataclass(slots=True)
class CellRunner:
    """Makes the results of a plan's cells.

    Attributes:
        plan: the cells.
        claims: what this process has taken on.
        listener: told of all that happens.
        estimate: takes notice of how long things take.
        aside: seconds of the present cell that went into what others need, too.
        filled: paths of the sets whose features are there.
    """

    plan: Plan
    claims: Claims
    listener: Listener
    estimate: Estimate = field(default_factory=Estimate)
    aside: float = 0.0
    filled: set[str] = field(default_factory=set)
    _chosen: dict[str, list[Sample]] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)
    _broken: dict[str, ZsadError] = field(default_factory=dict)  # trainings that failed here
    _trainings: dict[str, TrainingLog] = field(default_factory=dict)
    _methods: dict[str, Method] = field(default_factory=dict)
    _readers: dict[int, list[Method]] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """The folder of all."""
        return self.plan.request.work

    def result(self, cell: Cell) -> CellResult:
        """The result of a cell, also where it fails; only a full disk ends everything."""
        try:
            return self._measured(cell)
        except LockedError as error:
            raise Busy from error
        except StorageError:
            raise
        except ZsadError as error:
            return self._base(cell).model_copy(update={"state": "failed", "reason": str(error)})

    def _measured(self, cell: Cell) -> CellResult:
        target = cell.target
        if target.data is None:
            raise DataError(target.reason)
        for part in () if cell.run is None else cell.run.auxiliary:
            if part.data is None:
                raise DataError(f"not trained: {part.reason}")
        # First what other targets need, too: while one process reads this target's images, others train.
        method, card, told = self._weights(cell)
        self._fill(target)
        overlap = overlap_of(card, target.data)
        if overlap and not self.plan.request.allow_seen:
            raise DataError(
                f"{cell.candidate.label} {overlap.sentence()}: not unseen; --allow-seen measures it, marked"
            )
        found = measure(
            cell.candidate.context,
            method,
            target.data,
            work=self.work,
            key=cell.key,
            card=card,
            report=lambda done, total: self.listener.moved(f"measuring on {target.name}", done, total),
        )
        for line in found.remarks:
            self._remark(f"{target.name}: {line}")
        notes = [*found.notes, *(f"training: {line}" for line in told.left_out)]
        return self._base(cell).model_copy(
            update={
                "seen": bool(overlap) or bool(cell.overlap),
                "rows": found.rows,
                "notes": tuple(notes),
                "problems": found.problems,
                "seconds_training": told.seconds,
                "files": found.files,
                **self._cost(cell.candidate, target.data),
            }
        )

    def _base(self, cell: Cell) -> CellResult:
        candidate, context = cell.candidate, cell.candidate.context
        training = None
        if cell.run is not None:
            training = cell.run.training.model_dump(mode="json", exclude=set(RUN_FIELDS))
        elif candidate.card is not None and candidate.card.training is not None:
            training = candidate.card.training.settings
        failed = (
            [FileProblem(path=cell.target.path, reason=cell.target.reason)]
            if cell.target.data is None
            else []
        )
        return CellResult(
            key=cell.key,
            method=candidate.method,
            label=candidate.label,
            backbone=context.backbone.name,
            backbone_sha256=context.backbone.sha256,
            settings=candidate.config.model_dump(mode="json"),
            training=training,
            protocol=cell.protocol,
            trained_on=cell.trained_on,
            target=cell.target.name,
            seed=cell.seed,
            seen=bool(cell.overlap),
            provenance=find(candidate.method).provenance,
            problems=tuple(failed),
            environment={**describe_environment(context.device), "processes": self.plan.request.jobs},
        )

    def _weights(self, cell: Cell) -> tuple[Method, Card, TrainingLog]:
        """The method of a cell with its weights, its card, and what is known of its training here."""
        candidate, told = cell.candidate, TrainingLog()
        if cell.run is None:
            path = candidate.checkpoint
        else:
            told = self._train(cell.run)
            path = self._run_folder(cell.run) / MODEL_FILE
        if path is None:
            method = self._built(candidate)
            return method, self._card_of_untrained(candidate, method), told
        name = str(path)
        if name not in self._methods:
            self._methods.clear()  # one model at a time: cells of one come one after the other
            method = self._built(candidate)
            load_checkpoint(path, method, backbone_sha256=candidate.context.backbone.sha256)
            self._methods[name] = method
        return self._methods[name], read_card(path), told

    def _built(self, candidate: Candidate) -> Method:
        return candidate.context.build(candidate.method, candidate.config).eval()

    def _card_of_untrained(self, candidate: Candidate, method: Method) -> Card:
        backbone = candidate.context.backbone
        return Card(
            method=candidate.method,
            config=candidate.config.model_dump(mode="json"),
            backbone=BackboneReference(name=backbone.name, sha256=backbone.sha256),
            preprocess=candidate.context.parts(method).preprocess.to_dict(),
            map_spec=method.map_spec,
            created="",
        )

    def _run_folder(self, run: TrainingRun) -> Path:
        return self.work / "runs" / run.key

    def trained(self, run: TrainingRun) -> TrainingLog | None:
        """What there is to know of a finished training."""
        folder = self._run_folder(run)
        if run.key not in self._trainings and (folder / MODEL_FILE).is_file():
            self._trainings[run.key] = TrainingLog.of(folder)
        return self._trainings.get(run.key)

    def _train(self, run: TrainingRun) -> TrainingLog:
        kept = self.trained(run)
        if kept is not None:
            return kept
        if run.key in self._broken:
            raise self._broken[run.key]
        for part in run.auxiliary:
            self._fill(part)
        with claimed(self.claims, f"run-{run.key}"):
            kept = self.trained(run)
            if kept is not None:
                return kept
            began = time.perf_counter()
            try:
                self._train_now(run)
            except StorageError:
                raise
            except ZsadError as error:
                self._broken[run.key] = error
                raise
            seconds = time.perf_counter() - began
        self.aside += seconds
        self.estimate.trained(run.candidate.label, seconds)
        found = TrainingLog.of(self._run_folder(run))
        for line in found.left_out:
            self._remark(line)
        return found

    def _train_now(self, run: TrainingRun) -> None:
        """Trains, from the last saved state where there is one."""
        method = self._built(run.candidate)
        train(
            method,
            [part.data for part in run.auxiliary if part.data is not None],
            config=run.training,
            out=self._run_folder(run),
            card_parts=run.candidate.context.parts(method),
            progress=Told(self.listener),
        )

    def _fill(self, target: Target) -> None:
        """Computes the features that all methods need of a set's images, in one pass over them."""
        if target.path in self.filled or target.data is None:
            return
        samples, began = self.samples(target), time.perf_counter()
        with claimed(self.claims, f"features-{target.fingerprint}"):
            for context in {
                id(candidate.context): candidate.context for candidate in self.plan.candidates
            }.values():
                if id(context) not in self._readers:
                    own = [candidate for candidate in self.plan.candidates if candidate.context is context]
                    self._readers[id(context)] = [self._built(candidate) for candidate in own]
                context.fill(
                    self._readers[id(context)],
                    samples,
                    report=lambda done, total: self.listener.moved(f"reading {target.name}", done, total),
                )
        seconds = time.perf_counter() - began
        self.aside += seconds
        self.estimate.read(len(samples), seconds)
        self.filled.add(target.path)

    def samples(self, target: Target) -> list[Sample]:
        """The images of a set that are read, in their order: of a target all, else those some training asks for."""
        if target.path not in self._chosen:
            _, whole = self.plan.needed()[target.path]
            own = [] if target.data is None else target.data.samples
            self._chosen[target.path] = own if whole else self._learnt_from(target)
        return self._chosen[target.path]

    def _learnt_from(self, target: Target) -> list[Sample]:
        wanted: set[Sample] = set()
        for run in self.plan.runs:
            if any(part.path == target.path for part in run.auxiliary):
                samples = [sample for part in run.auxiliary if part.data for sample in part.data.samples]
                wanted.update(chosen(samples, run.training))
        own: Sequence[Sample] = () if target.data is None else target.data.samples
        return [sample for sample in own if sample in wanted]

    def _cost(self, candidate: Candidate, data: DataSet) -> dict[str, float | None]:
        """Time and memory of a method, measured once for all its weights, on some of the first target's images."""
        request, context = self.plan.request, candidate.context
        nothing: dict[str, float | None] = {"seconds_per_image": None, "peak_memory_mb": None}
        if not request.cost:
            return nothing
        own = candidate.backbone == request.backbone
        asked = {
            "method": candidate.method,
            "config": candidate.config.model_dump(mode="json"),
            "backbone": candidate.backbone,
            "weights": str(request.weights) if own and request.weights is not None else None,
            "device": str(context.device),
            "threads": request.threads,
            "images": [[str(sample.image), sample.word] for sample in data.samples[:_COST_IMAGES]],
        }
        decides = {name: value for name, value in asked.items() if name != "images"} | {
            "sha": context.backbone.sha256
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
        began = time.perf_counter()
        found = cost(self.work / "cost" / f"{candidate.method}-{digest}.json", asked)
        self.aside += time.perf_counter() - began
        return found

    def _remark(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.listener.remark(line)
