"""Training of an adapter on cached features: seeded, resumable at any step, on one or several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zsad.datasets.manifest import DataSet
from zsad.errors import ConfigError, TrainingError
from zsad.methods.base import Method
from zsad.train.augment import Augmenter, check_augment
from zsad.train.distributed import Worker, current_worker, parallel
from zsad.train.features import FeatureSource, TrainingBatch, open_cache
from zsad.train.fitting import colour_scale, fit_fusion
from zsad.train.precision import amp_dtype, gradient_scaler
from zsad.train.samples import TrainingSet, prepare, start_generator, step_seed
from zsad.train.schedule import Schedule
from zsad.train.state import START_OVER, RunFolder, StepLog, load_state, save_state, trainable
from zsad.train.train_config import RUN_FIELDS, TrainConfig
from zsad.train.training_card import CardParts, card_of, training_of
from zsad.train.validation import WATCHED, Watch


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

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

    stage: Literal["samples", "features", "train", "scale", "finished"]
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
    watch: Sequence[DataSet] = (),
) -> Path:
    """Trains the adapter of `method` and writes `model.safetensors` with its card into `out`.

    A run that was stopped, by Ctrl-C or by killing it, goes on where its last state was saved and ends with
    the same bits as if it had never stopped (on a CPU). A finished run is left as it is.

    Args:
        method: on its device; its adapter is drawn anew from the seed.
        dataset: one set or several; samples need labels, anomalous ones masks.
        config: the settings.
        out: folder of the run: `run.json`, `log.jsonl`, `state.safetensors` until the end, cached features.
        card_parts: backbone and preprocessing.
        progress: called often, on the leading process alone; must be quick.
        resume: False removes what a former run left in `out`, except cached features, and starts over.
        watch: labelled data of other objects: their image AUROC after every epoch goes into the log.

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
    notify = progress if progress is not None and worker.is_main else _silent
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
            note = f"this run has finished before: {folder.model}; start over with {START_OVER}"
            notify(Progress("finished", 1, 1, notes=(note,)))
            return folder.model
        source, training = _data(method, sets, config, card_parts, folder, worker, notify)
        identity |= {"data": training.fingerprint()}
        folder.check(identity)
        worker.barrier()
        if worker.is_main:
            folder.begin(identity)
            folder.lock(stack)
        worker.barrier()
        trainer = Trainer(
            method, source, training, config=config, folder=folder, worker=worker, notify=notify
        )
        if watch:
            read = lambda done, total: notify(Progress("features", done, total))  # noqa: E731
            trainer.watch = Watch(source, watch, training, config=config, worker=worker, report=read)
        trainer.run()
        if worker.is_main:
            report = lambda done, total: notify(Progress("scale", done, total))  # noqa: E731
            fit_fusion(method, source, training, config=config, report=report)
            method.map_scale = colour_scale(method, source, training, config=config, report=report)
            trained = training_of(training, sets, config=config, steps=trainer.steps)
            folder.finish(method, card_of(method, card_parts, training=trained))
            notify(Progress("finished", 1, 1, notes=(f"model written to {folder.model}",)))
        worker.barrier()
    return folder.model


def _silent(_: Progress) -> None:
    """The callback of nobody."""


def _identity(method: Method, config: TrainConfig, parts: CardParts) -> dict[str, Any]:
    """What makes a run this run and no other."""
    settings = config.model_dump(mode="json")
    return {
        "method": method.name,
        "config": method.config.model_dump(mode="json"),
        "backbone": parts.backbone.sha256,
        "preprocess": parts.preprocess.to_dict(),
        "training": {name: value for name, value in settings.items() if name not in RUN_FIELDS},
    }


def _check_settings(method: Method, config: TrainConfig, worker: Worker) -> None:
    """ConfigError where training cannot work with these settings, whatever the data."""
    _check_batch(config, worker)
    check_augment(config)
    trainable(method)
    Schedule.of(method.stages, config, steps_per_epoch=1)
    amp_dtype(config.amp, next(method.parameters()).device)


def _check_batch(config: TrainConfig, worker: Worker) -> None:
    if config.batch_size % worker.world_size:
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be dealt out evenly to {worker.world_size} processes: "
            f"use a multiple of {worker.world_size}"
        )


def _data(
    method: Method,
    sets: Sequence[DataSet],
    config: TrainConfig,
    parts: CardParts,
    folder: RunFolder,
    worker: Worker,
    notify: Callback,
) -> tuple[FeatureSource, TrainingSet]:
    """The usable samples, and where their features come from."""
    samples = [sample for dataset in sets for sample in dataset.samples]
    training = prepare(samples, config=config, size=method.train_map_size)
    cache = open_cache(
        method, parts.preprocess, backbone_sha256=parts.backbone.sha256, config=config, out=folder.out
    )
    source = FeatureSource(method, parts.preprocess, config=config, cache=cache)
    try:
        training = source.usable(
            training, worker=worker, report=lambda done, total: notify(Progress("features", done, total))
        )
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
    """The loop over steps; everything it depends on is in the saved state, the settings and the data."""

    def __init__(
        self,
        method: Method,
        source: FeatureSource,
        training: TrainingSet,
        *,
        config: TrainConfig,
        folder: RunFolder,
        worker: Worker,
        notify: Callback,
    ) -> None:
        self.method, self.source, self.training = method, source, training
        self.config, self.folder, self.worker, self.notify = config, folder, worker, notify
        self.device = next(method.parameters()).device
        self.amp = amp_dtype(config.amp, self.device)
        self.optimizer = torch.optim.Adam(
            _groups(method), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self.scaler = gradient_scaler() if self.amp is torch.float16 else None
        self.steps_per_epoch = math.ceil(len(training.items) / config.batch_size)
        self.steps = self.steps_per_epoch * config.epochs
        self.schedule = Schedule.of(method.stages, config, steps_per_epoch=self.steps_per_epoch)
        self.step = 0
        self.watch: Watch | None = None
        self._halfway = False  # between the first and the last parameter of an update

    def run(self) -> None:
        """Trains from the saved state, if any, to the end; see `train` for errors."""
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
            begun = -1
            for epoch in range(self.step // self.steps_per_epoch, self.config.epochs):
                stage = self.schedule.stage(epoch)
                if stage != begun:
                    self.method.begin_stage(self.schedule.stages[stage].name)
                    module, begun = parallel(self.method, self.worker), stage
                self._epoch(module, epoch)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._interrupted()) from None
        finally:
            self.method.eval()
            if self.log is not None:
                self.log.close()

    def _epoch(self, module: torch.nn.Module, epoch: int) -> None:
        order = self.training.order(self.config, epoch)
        size = self.config.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        shares = [self.worker.share(batch) for batch in batches[self.step - epoch * self.steps_per_epoch :]]
        augmenter = None
        if self.config.augment != "none":
            augmenter = Augmenter(self.training, self.config, step=self.step, rank=self.worker.rank)
        own = [rows for rows, _ in shares]
        with closing(self.source.batches(self.training, own, augmenter=augmenter)) as stream:
            for (_, weight), shown in zip(shares, stream, strict=True):
                self._step(module, shown, weight=weight, epoch=epoch)
                last = self.step == (epoch + 1) * self.steps_per_epoch
                if last and self.watch is not None and self.log is not None:
                    measured = {WATCHED: self.watch.image_auroc()}
                    self.log.write({"step": self.step, "epoch": epoch, **measured})
                if last or self.step % self.config.checkpoint_every == 0:
                    self._save()

    def _step(self, module: torch.nn.Module, shown: TrainingBatch, *, weight: float, epoch: int) -> None:
        started = time.perf_counter()
        rate = self.schedule.learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        features = shown.features
        devices = [self.device] if self.device.type == "cuda" else []
        # A step's random numbers depend on seed and step alone; the caller's generator is left as it was.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(step_seed(self.config.seed, self.step, self.worker.rank))
            with self._precision():
                total, terms = module(
                    features.patches, features.cls, features.grid, features.words, shown.masks, shown.labels
                )
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
        """The step's losses, averaged over processes.

        Raises:
            TrainingError: one of them is not finite.
        """
        stacked = torch.stack([*(term.detach().float() for term in terms.values()), total.detach().float()])
        values = dict(zip([*terms, "total"], self.worker.mean(stacked, weight=weight).tolist(), strict=True))
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            found = ", ".join(f"{name} = {values[name]}" for name in bad)
            raise TrainingError(
                f"training stopped at step {self.step + 1} of {self.steps}, {found}: lower learning_rate "
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

    def _precision(self) -> AbstractContextManager[Any]:
        if self.amp is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp)

    def _save(self) -> None:
        if self.log is None:
            return
        self.log.sync()
        save_state(
            self.folder.state, self.method, self.optimizer, step=self.step, extra=self._scaler_tensors()
        )

    def _interrupted(self) -> str:
        if not self._halfway:
            self._save()
        where = f"its state is saved in {self.folder.out}; run the same again to go on"
        return f"training stopped at step {self.step} of {self.steps}, {where}"

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
    """The adapter's parameters by the factor on their learning rate."""
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in trainable(method).items():
        groups.setdefault(method.rate_of(name), []).append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
