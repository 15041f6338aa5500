"""The steps of a plan: features, trainings, costs and cells, each kept in the work folder and none done twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from zsad.backends.torch import TorchBackend
from zsad.card import Card
from zsad.datasets.overlap import overlap_of
from zsad.device import describe_environment
from zsad.errors import DataError
from zsad.methods.base import Method
from zsad.methods.registry import domain_note, find
from zsad.predict.view import Model
from zsad.studies.benchmark.cell_results import CellResult, FileProblem, cell_path, read_cell, write_cell
from zsad.studies.benchmark.cells import Candidate, Cell, CellPlan, Step, Target, TrainingRun, digest_of
from zsad.studies.benchmark.cost import cost
from zsad.studies.benchmark.measure import measure_cell, measure_means
from zsad.train.checkpoint import MODEL_FILE, load_checkpoint, read_card
from zsad.train.loop import Progress, train
from zsad.train.state import LOG_FILE
from zsad.train.train_config import RUN_FIELDS
from zsad.train.training_card import card_of

_COST_IMAGES = 10
_STAGES = {"features": "reading features", "train": "training", "scale": "taking the colour scale"}


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The log of a training, however often it was stopped and resumed.

    `seconds` is the time of its steps, None where nothing was trained; `left_out` names what was not trained on, and
    `broken` counts those of it whose files are broken.
    """

    seconds: float | None = None
    left_out: tuple[str, ...] = ()
    broken: int = 0

    @classmethod
    def read(cls, folder: Path) -> TrainingLog:
        """Read that of a run's folder."""
        seconds, left_out, broken = 0.0, [], 0
        with suppress(OSError), (folder / LOG_FILE).open(encoding="utf-8") as stream:
            for line in stream:
                with suppress(ValueError):  # half a line
                    record = json.loads(line)
                    seconds += record.get("seconds", 0.0)
                    if "skipped" in record:
                        left_out.append(f"left out: {record['skipped']}: {record['reason']}")
                        broken += record.get("broken", False)
        return cls(seconds, tuple(left_out), broken)


def _silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(slots=True)
class CellRunner:
    """A runner of the steps of a plan.

    Attributes:
        plan: the cells.
        progress: called with a stage, what is done of it, and the whole.
        remarks: lines about the data, in the order of finding, each once.
    """

    plan: CellPlan
    progress: Callable[[str, int, int], None] = _silent
    remarks: list[str] = field(default_factory=list)
    _model: tuple[Path, Method] | None = None
    _readers: dict[int, list[Method]] = field(default_factory=dict)

    def steps(self, cells: list[Cell]) -> Iterator[tuple[Step, list[Step]]]:
        """Yield what is to be done for cells, in an order that will do, each with the steps that it needs."""
        runs = {cell.run.key: cell.run for cell in cells if cell.run is not None}
        yielded: set[Step] = set()
        for cell in cells:
            needed: list[tuple[Step, list[Step]]] = []
            if not cell.problem:
                if cell.run is not None and not self._is_trained(cell.run):
                    auxiliary = [Step("features", part.path) for part in runs[cell.run.key].auxiliary]
                    needed += [(step, []) for step in auxiliary]
                    needed.append((Step("training", cell.run.key), auxiliary))
                needed.append((Step("features", cell.target.path), []))
                if self.plan.cost:
                    needed.append((Step("cost", cell.candidate.label), []))
            needed.append((Step("cell", cell.key), [step for step, _ in needed]))
            for step, after in needed:
                if step not in yielded:
                    yielded.add(step)
                    yield step, after

    def do(self, step: Step) -> CellResult | None:
        """Do a step; a cell's gives its result, which is written into the work folder.

        Raises:
            ZsadError: the step cannot be done.
            LockedError: another process is at it.
        """
        if step.kind == "features":
            self._fill(next(target for target in self.plan.sets if target.path == step.key))
        elif step.kind == "training":
            self._train(self.plan.runs[step.key])
        elif step.kind == "cost":
            self._cost(next(candidate for candidate in self.plan.candidates if candidate.label == step.key))
        else:
            result = self._measure(next(cell for cell in self.plan.cells if cell.key == step.key))
            if (
                self.plan.keep_maps or not result.problems
            ):  # means of fewer images are of no use once files are whole
                write_cell(self.plan.work, result)
            return result
        return None

    def kept(self, cell: Cell) -> CellResult | None:
        """Read the finished result of a cell; None where there is none."""
        with suppress(DataError):
            result = read_cell(cell_path(self.plan.work, cell.key))
            return result if result.state == "done" else None
        return None

    def failed(self, cell: Cell, reason: str) -> CellResult:
        """Write and return the result of a cell that cannot be measured."""
        result = self._base(cell).model_copy(update={"state": "failed", "reason": reason})
        write_cell(self.plan.work, result)
        return result

    def training_log(self, cell: Cell) -> TrainingLog:
        """Return the log of the training of a cell; an empty one where it was not trained here."""
        return TrainingLog() if cell.run is None else TrainingLog.read(self._run_folder(cell.run))

    def _measure(self, cell: Cell) -> CellResult:
        data = cell.target.data
        if data is None or cell.problem:
            raise DataError(cell.problem)
        model = Model(*self._trained_method(cell)).for_domain(cell.domain)
        method, card = model.method, model.card
        overlap = overlap_of(card, data)
        if overlap and not self.plan.allow_seen:
            raise DataError(
                f"{cell.candidate.label} {overlap.sentence()}: not unseen; --allow-seen measures it, marked"
            )

        def report(done: int, total: int) -> None:
            self.progress(f"measuring on {cell.target.name}", done, total)

        context = cell.candidate.context
        if self.plan.keep_maps:
            measurement = measure_cell(
                context,
                method,
                data,
                work=self.plan.work,
                key=cell.key,
                card=card,
                pro=self.plan.pro,
                report=report,
            )
        else:
            measurement = measure_means(context, method, data, pro=self.plan.pro, report=report)
        for line in measurement.remarks:
            self._remark(f"{cell.target.name}: {line}")
        log = self.training_log(cell)
        return self._base(cell).model_copy(
            update={
                "seen": bool(overlap) or bool(cell.overlap),
                "rows": measurement.rows,
                "related": overlap.remark(),
                "settings": dict(card.config),
                "notes": (
                    *measurement.notes,
                    *filter(None, [domain_note(card.config)]),
                    *(f"training: {line}" for line in log.left_out),
                ),
                "problems": measurement.problems,
                "seconds_training": log.seconds,
                "files": measurement.files,
                **(self._cost(cell.candidate) if self.plan.cost else {}),
            }
        )

    def _base(self, cell: Cell) -> CellResult:
        """Return the result of a cell as far as it is known before measuring."""
        candidate, context = cell.candidate, cell.candidate.context
        training = None
        if cell.run is not None:
            training = cell.run.training.model_dump(mode="json", exclude=set(RUN_FIELDS))
        elif candidate.card is not None and candidate.card.training is not None:
            training = candidate.card.training.settings
        target = cell.target
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
            target=target.name,
            seed=cell.seed,
            seen=bool(cell.overlap),
            provenance=find(candidate.method).provenance,
            pro=self.plan.pro,
            problems=(FileProblem(path=target.path, reason=target.reason),) if target.data is None else (),
            environment={**describe_environment(context.device), "processes": self.plan.jobs},
        )

    def _trained_method(self, cell: Cell) -> tuple[TorchBackend, Card]:
        """Return the method of a cell with its weights, and its card."""
        candidate = cell.candidate
        path = candidate.checkpoint if cell.run is None else self._run_folder(cell.run) / MODEL_FILE
        if path is None:
            method = candidate.build()
            return TorchBackend(method), card_of(method, candidate.context.parts(method), created="")
        if self._model is None or self._model[0] != path:
            self._model = None  # one model at a time: cells of one come one after the other
            method = candidate.build()
            load_checkpoint(path, method, backbone_sha256=candidate.context.backbone.sha256)
            self._model = path, method
        return TorchBackend(self._model[1]), read_card(path)

    def _run_folder(self, run: TrainingRun) -> Path:
        return self.plan.work / "runs" / run.key

    def _is_trained(self, run: TrainingRun) -> bool:
        return (self._run_folder(run) / MODEL_FILE).is_file()

    def _train(self, run: TrainingRun) -> None:
        """Train, from the last saved state where there is one."""

        def report(now: Progress) -> None:
            if now.stage in _STAGES:
                self.progress(_STAGES[now.stage], now.done, now.total)

        method = run.candidate.build()
        train(
            method,
            [part.data for part in run.auxiliary if part.data is not None],
            config=run.training,
            out=self._run_folder(run),
            card_parts=run.candidate.context.parts(method),
            progress=report,
        )
        for line in TrainingLog.read(self._run_folder(run)).left_out:
            self._remark(line)

    def _fill(self, target: Target) -> None:
        """Compute the features that all methods need of a set's images, in one pass over them."""
        samples = self.plan.samples(target)
        for context in {id(item.context): item.context for item in self.plan.candidates}.values():
            if id(context) not in self._readers:
                candidates = [item for item in self.plan.candidates if item.context is context]
                self._readers[id(context)] = [candidate.build() for candidate in candidates]
            context.fill(
                self._readers[id(context)],
                samples,
                report=lambda done, total: self.progress(f"reading {target.name}", done, total),
            )

    def _cost(self, candidate: Candidate) -> dict[str, float | None]:
        """Return time and memory of a method, measured once, on some of its first target's images."""
        context = candidate.context
        target = next(
            cell.target for cell in self.plan.cells if cell.candidate is candidate and cell.target.samples
        )
        request = {
            "method": candidate.method,
            "config": candidate.config.model_dump(mode="json"),
            "backbone": context.source,
            "weights": None if context.weights is None else str(context.weights),
            "device": str(context.device),
            "threads": self.plan.threads,
        }
        digest = digest_of({**request, "sha": context.backbone.sha256})
        images = [
            [str(sample.image), sample.word_for(candidate.method)] for sample in target.samples[:_COST_IMAGES]
        ]
        path = self.plan.work / "cost" / f"{candidate.method}-{digest}.json"
        return cost(path, {**request, "images": images})

    def _remark(self, line: str) -> None:
        if line not in self.remarks:
            self.remarks.append(line)
