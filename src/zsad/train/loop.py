"""Training of an adapter on cached features: seeded, resumable at any step, on one or several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zsad.datasets.manifest import DataSet
from zsad.errors import TrainingError
from zsad.methods.base import Method
from zsad.train.augment import Augmenter, check_augment
from zsad.train.distributed import Worker, current_worker, parallel
from zsad.train.features import FeatureSource, Report, open_cache
from zsad.train.fitting import colour_scale, fit_fusion
from zsad.train.precision import amp_dtype, gradient_scaler
from zsad.train.samples import TrainingBatch, TrainingSet, chunked, prepare, start_generator, step_seed
from zsad.train.schedule import Schedule
from zsad.train.state import START_OVER, RunFolder, StepLog, load_state, save_state, trainable
from zsad.train.train_config import RUN_FIELDS, TrainConfig
from zsad.train.training_card import CardParts, card_of, training_of
from zsad.train.validation import VALIDATION_METRIC, Validation

Stage = Literal["samples", "features", "train", "scale", "finished"]


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a run, as its progress callback gets it.

    Attributes:
        stage: "features" while the cache fills, "samples" once when they are chosen, "train" after every step,
            "scale" at the end, "finished" once (also for a run that had finished before).
        done: batches, images or steps done in this stage.
        total: of how many.
        epoch: the current one, from 0, while training.
        losses: the step's terms with "total" and "lr".
        notes: lines for a human, such as samples left out.
        broken: at the stage "samples", how many were left out because a file is broken.
    """

    stage: Stage
    done: int
    total: int
    epoch: int | None = None
    losses: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    broken: int = 0


Callback = Callable[[Progress], None]


def train(
    method: Method,
    dataset: DataSet | Sequence[DataSet],
    *,
    config: TrainConfig,
    out: Path,
    card_parts: CardParts,
    progress: Callback | None = None,
    resume: bool = True,
    validation: Sequence[DataSet] = (),
) -> Path:
    """Train the adapter of `method` and write `model.safetensors` with its card into `out`.

    A run that was stopped, by Ctrl-C or by killing it, goes on where its last state was saved and ends with
    the same bits as if it had never stopped (on a CPU). A finished run is left as it is.

    Args:
        method: on its device; its adapter is drawn anew from the seed.
        dataset: one set or several; samples need labels, anomalous ones masks.
        config: the settings.
        out: folder of the run: `run.json`, `log.jsonl`, `state.safetensors` until the end, cached features.
        card_parts: backbone and preprocessing.
        progress: called often, in the main process alone; must be quick.
        resume: False removes what a former run left in `out`, except cached features, and starts over.
        validation: labelled data of other objects: their image AUROC after every epoch goes into the log.

    Returns:
        The path of the checkpoint.

    Raises:
        ConfigError: `out` holds another run, or settings that cannot work here.
        TrainingError: a loss that is not finite.
        DataError: nothing to learn from.
        StorageError: the disk is full or cannot be written, or another process trains into `out`.
        KeyboardInterrupt: with the state saved; the message says where.
    """
    worker = current_worker()
    notify = progress if progress is not None and worker.is_main else lambda _: None
    folder = RunFolder(out.expanduser())
    _check_settings(method, config, worker)  # before anything is written or removed
    sets = [dataset] if isinstance(dataset, DataSet) else list(dataset)
    with ExitStack() as stack:
        if worker.is_main:
            folder.lock(stack)
            if not resume:
                folder.clear()
        worker.barrier()
        identity = _identity(method, config, card_parts)
        folder.check(identity)
        if folder.finished:
            if worker.is_main:
                folder.clean()
            note = f"this run has finished before: {folder.model}; start over with {START_OVER}"
            notify(Progress("finished", 1, 1, notes=(note,)))
            return folder.model
        source, training = _prepare_data(method, sets, config, card_parts, folder, worker, notify)
        identity |= {"data": training.fingerprint()}
        folder.check(identity)
        worker.barrier()
        if worker.is_main:
            folder.begin(identity)
            folder.lock(stack)
        worker.barrier()
        trainer = Trainer(source, training, folder=folder, worker=worker, notify=notify)
        if validation:
            report = _reporter("features", notify)
            trainer.validation = Validation(source, validation, training, worker=worker, report=report)
        trainer.run()
        if worker.is_main:
            report = _reporter("scale", notify)
            fit_fusion(source, training, report=report)
            method.map_scale = colour_scale(source, training, report=report)
            trained = training_of(training, sets, config=config, steps=trainer.steps)
            folder.finish(method, card_of(method, card_parts, training=trained))
            notify(Progress("finished", 1, 1, notes=(f"model written to {folder.model}",)))
        worker.barrier()
    return folder.model


def _reporter(stage: Stage, notify: Callback) -> Report:
    """Return a function of parts done and in all that tells `notify` of a stage's progress."""
    return lambda done, total: notify(Progress(stage, done, total))


def _identity(method: Method, config: TrainConfig, parts: CardParts) -> dict[str, Any]:
    """Return what makes a run this run and no other."""
    return {
        "method": method.name,
        "config": method.config.model_dump(mode="json"),
        "backbone": parts.backbone.sha256,
        "preprocess": parts.preprocess.to_dict(),
        "training": config.model_dump(mode="json", exclude=set(RUN_FIELDS)),
    }


def _check_settings(method: Method, config: TrainConfig, worker: Worker) -> None:
    """Refuse settings with which training cannot work, whatever the data; raises ConfigError."""
    worker.check_batch(config.batch_size)
    check_augment(config)
    trainable(method)
    Schedule.of(method.stages, config, steps_per_epoch=1)
    amp_dtype(config.amp, next(method.parameters()).device)


def _prepare_data(
    method: Method,
    sets: Sequence[DataSet],
    config: TrainConfig,
    parts: CardParts,
    folder: RunFolder,
    worker: Worker,
    notify: Callback,
) -> tuple[FeatureSource, TrainingSet]:
    """Return the usable samples and the source of their features."""
    samples = [sample for dataset in sets for sample in dataset.samples]
    training = prepare(samples, config=config, size=method.train_map_size)
    cache = open_cache(
        method, parts.preprocess, backbone_sha256=parts.backbone.sha256, config=config, out=folder.out
    )
    source = FeatureSource(method, parts.preprocess, config=config, cache=cache)
    try:
        training = source.usable(training, worker=worker, report=_reporter("features", notify))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped before the first step; run the same again to go on") from None
    notes = [
        f"{training.count(0)} normal and {training.count(1)} anomalous images",
        *(f"left out: {entry.sample.image}: {entry.reason}" for entry in training.skipped),
    ]
    if not training.count(0):
        notes.append("no normal images: image scores will not be trained to tell them apart")
    broken = sum(entry.broken for entry in training.skipped)
    notify(Progress("samples", len(training.items), len(samples), notes=tuple(notes), broken=broken))
    return source, training


class Trainer:
    """Loop over steps; everything it depends on is in the saved state, the settings and the data."""

    def __init__(
        self,
        source: FeatureSource,
        training: TrainingSet,
        *,
        folder: RunFolder,
        worker: Worker,
        notify: Callback,
    ) -> None:
        self.source, self.training, self.folder, self.worker, self.notify = (
            source,
            training,
            folder,
            worker,
            notify,
        )
        self.method, self.config = method, config = source.method, source.config
        self.device = source.device
        self.amp = amp_dtype(config.amp, self.device)
        self.optimizer = torch.optim.Adam(
            _groups(method), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self.scaler = gradient_scaler() if self.amp is torch.float16 else None
        self.steps_per_epoch = math.ceil(len(training.items) / config.batch_size)
        self.steps = self.steps_per_epoch * config.epochs
        self.schedule = Schedule.of(method.stages, config, steps_per_epoch=self.steps_per_epoch)
        self.step = 0
        self.validation: Validation | None = None
        self._halfway = False  # between the first and the last parameter of an update

    def run(self) -> None:
        """Train from the saved state, if any, to the end; see `train` for errors."""
        if self.folder.state.is_file():
            self.step, extra = load_state(self.folder.state, self.method, self.optimizer)
            self._restore_scaler(extra)
        else:
            self.method.reset_parameters(start_generator(self.config.seed, self.device))
        self.log = StepLog(self.folder.log, step=self.step) if self.worker.is_main else None
        try:
            if self.step == 0:
                self._log_skipped()
                self._save()
            self.method.train()
            current = -1
            for epoch in range(self.step // self.steps_per_epoch, self.config.epochs):
                stage = self.schedule.stage(epoch)
                if stage != current:
                    self.method.begin_stage(self.schedule.stages[stage].name)
                    module, current = parallel(self.method, self.worker), stage
                self._epoch(module, epoch)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._interrupted()) from None
        finally:
            self.method.eval()
            if self.log is not None:
                self.log.close()

    def _epoch(self, module: torch.nn.Module, epoch: int) -> None:
        batches = chunked(self.training.order(self.config, epoch), self.config.batch_size)
        shares = [self.worker.share(batch) for batch in batches[self.step - epoch * self.steps_per_epoch :]]
        augmenter = None
        if self.config.augment != "none":
            augmenter = Augmenter(self.training, self.config, step=self.step, rank=self.worker.rank)
        order = [rows for rows, _ in shares]
        with closing(self.source.batches(self.training, order, augmenter=augmenter)) as stream:
            for (_, weight), batch in zip(shares, stream, strict=True):
                self._step(module, batch, weight=weight, epoch=epoch)
                last = self.step == (epoch + 1) * self.steps_per_epoch
                if last and self.validation is not None and self.log is not None:
                    measured = {VALIDATION_METRIC: self.validation.image_auroc()}
                    self.log.write({"step": self.step, "epoch": epoch, **measured})
                if last or self.step % self.config.checkpoint_every == 0:
                    self._save()

    def _step(self, module: torch.nn.Module, batch: TrainingBatch, *, weight: float, epoch: int) -> None:
        started = time.perf_counter()
        rate = self.schedule.learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        devices = [self.device] if self.device.type == "cuda" else []
        # A step's random numbers depend on seed and step alone; the caller's generator is left as it was.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(step_seed(self.config.seed, self.step, self.worker.rank))
            with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
                total, terms = module(batch)
            losses = self._finite(total, terms, weight=weight)
            self._update(total * weight if self.worker.world_size > 1 else total)
        self.step += 1
        losses["lr"] = rate
        if self.log is not None:
            seconds = round(time.perf_counter() - started, 4)
            self.log.write({"step": self.step, "epoch": epoch, **losses, "seconds": seconds})
        self.notify(Progress("train", self.step, self.steps, epoch=epoch, losses=losses))

    def _update(self, total: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler is None:
            total.backward()  # type: ignore[no-untyped-call]
            self._check_gradients()
            self._halfway = True
            self.optimizer.step()
        else:
            self.scaler.scale(total).backward()
            self._halfway = True
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self._halfway = False

    def _finite(self, total: Tensor, terms: Mapping[str, Tensor], *, weight: float) -> dict[str, float]:
        """Return the step's losses, averaged over processes.

        Raises:
            TrainingError: one of them is not finite.
        """
        stacked = torch.stack([*(term.detach().float() for term in terms.values()), total.detach().float()])
        values = dict(zip([*terms, "total"], self.worker.mean(stacked, weight=weight).tolist(), strict=True))
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            losses = ", ".join(f"{name} = {values[name]}" for name in bad)
            raise TrainingError(
                f"training stopped at step {self.step + 1} of {self.steps}, {losses}: lower learning_rate "
                f"({self.config.learning_rate}), lengthen warmup_epochs, or set amp to off"
            )
        return values

    def _check_gradients(self) -> None:
        gradients = {name: p.grad for name, p in trainable(self.method).items() if p.grad is not None}
        if not bool(torch.stack([grad.norm() for grad in gradients.values()]).isfinite().all()):
            names = [name for name, grad in gradients.items() if not bool(grad.isfinite().all())]
            raise TrainingError(
                f"training stopped at step {self.step + 1} of {self.steps}, gradients of {', '.join(names[:4])} are "
                f"not finite: lower learning_rate ({self.config.learning_rate}), or set amp to off"
            )

    def _save(self) -> None:
        if self.log is not None:
            self.log.sync()
            save_state(
                self.folder.state, self.method, self.optimizer, step=self.step, extra=self._scaler_tensors()
            )

    def _interrupted(self) -> str:
        if not self._halfway:
            self._save()
        return (
            f"training stopped at step {self.step} of {self.steps}, its state is saved in {self.folder.out}; "
            f"run the same again to go on"
        )

    def _log_skipped(self) -> None:
        if self.log is not None:
            for entry in self.training.skipped:
                record = {"step": 0, "skipped": entry.sample.image.as_posix(), "reason": entry.reason}
                self.log.write(record | ({"broken": True} if entry.broken else {}))

    def _scaler_tensors(self) -> dict[str, Tensor]:
        if self.scaler is None:
            return {}
        state = self.scaler.state_dict()
        return {name: torch.tensor(float(state[name])) for name in ("scale", "_growth_tracker")}

    def _restore_scaler(self, extra: Mapping[str, Tensor]) -> None:
        if self.scaler is not None and extra:
            state = self.scaler.state_dict()
            state["scale"] = float(extra["scale"])
            state["_growth_tracker"] = int(extra["_growth_tracker"])
            self.scaler.load_state_dict(state)


def _groups(method: Method) -> list[dict[str, Any]]:
    """Return the adapter's parameters, grouped by the factor on their learning rate."""
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in trainable(method).items():
        groups.setdefault(method.rate_of(name), []).append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
