"""Folder of a run: its identity, the log, and the state from which it resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor, nn

from zsad.card import Card
from zsad.errors import CheckpointError, ConfigError
from zsad.files import (
    make_folder,
    parse_json,
    remove_leftovers,
    sole_writer,
    storage_errors,
    write_bytes,
    write_json,
)
from zsad.methods.base import Method
from zsad.train.checkpoint import CARD_FILE, MODEL_FILE, STATE_FILE, read_safetensors, save_checkpoint

FORMAT = 1
RUN_FILE = "run.json"
LOG_FILE = "log.jsonl"
START_OVER = "--overwrite (in Python: resume=False)"
_META_KEY = "state"
_NAMED_AT_MOST = 4


class RunFolder:
    """Folder of a run: `run.json` says which run it is, so that only that one is resumed in it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.model = out / MODEL_FILE
        self.state = out / STATE_FILE
        self.log = out / LOG_FILE
        self._run = out / RUN_FILE
        self._locked = False

    @property
    def finished(self) -> bool:
        """True where the final model has been written."""
        return self.model.is_file()

    def lock(self, stack: ExitStack) -> None:
        """Keep other processes out until `stack` ends; a folder that is not there yet cannot be locked.

        Raises:
            StorageError: another process trains into the folder.
        """
        if not self._locked and self.out.is_dir():
            stack.enter_context(sole_writer(self.out))
            self._locked = True

    def check(self, identity: Mapping[str, Any]) -> None:
        """Refuse a folder that holds another run.

        Args:
            identity: what makes the run, or a part of it.

        Raises:
            ConfigError: naming what differs and how to go on.
        """
        if not self._run.is_file():
            if self.finished or self.state.is_file():
                raise ConfigError(
                    f"folder {self.out} holds a model but no {RUN_FILE}, so it cannot be told whether it is of "
                    f"this run: choose another folder, or start over with {START_OVER}"
                )
            return
        stored = self._read()
        differing = [
            f"{name} ({_short(stored.get(name))} there, {_short(value)} now)"
            for name, value in _flat(identity).items()
            if stored.get(name) != value
        ]
        if len(differing) > _NAMED_AT_MOST:
            differing[_NAMED_AT_MOST:] = [f"{len(differing) - _NAMED_AT_MOST} more settings"]
        if differing:
            raise ConfigError(
                f"folder {self.out} holds another run; it differs in {', '.join(differing)}: give the same "
                f"settings to resume it, choose another folder, or start over with {START_OVER}"
            )

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Write `run.json` and remove what a killed writer left.

        Raises:
            StorageError: the folder cannot be written.
        """
        make_folder(self.out)
        remove_leftovers(self.out)
        write_json(self._run, dict(identity))

    def finish(self, method: Method, card: Card) -> None:
        """Write the model and remove the state.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        save_checkpoint(self.out, method, card)
        self.clean()

    def clean(self) -> None:
        """Remove what a finished run no longer needs, also where it was killed before it could.

        Raises:
            StorageError: it cannot be removed.
        """
        remove_leftovers(self.out)
        with storage_errors(self.state):
            self.state.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the run's own files, so that it starts over; the feature cache stays."""
        # The model goes first and run.json last: killed in between, the folder is an unfinished run.
        for file in (self.model, self.out / CARD_FILE, self.state, self.log, self._run):
            with storage_errors(file):
                file.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            values = parse_json(self._run.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self._run} cannot be read ({error}): start over with {START_OVER}"
            ) from error
        return _flat(values) if isinstance(values, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted names; values as JSON would give them back."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = json.loads(json.dumps(value, default=str))
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


class StepLog:
    """Log with one JSON line a step, cut back to the restored step when a run goes on."""

    def __init__(self, path: Path, *, step: int) -> None:
        self.path = path
        lines = self._lines(step)
        with storage_errors(path):
            if path.is_file():
                write_bytes(path, b"".join(lines))
            self._stream: BinaryIO = path.open("ab")

    def _lines(self, step: int) -> list[bytes]:
        """Return the lines up to a step."""
        lines: list[bytes] = []
        with suppress(FileNotFoundError):
            for line in self.path.read_bytes().splitlines(keepends=True):
                try:
                    record = parse_json(line)
                except ValueError:
                    continue  # half a line of a killed process
                if line.endswith(b"\n") and isinstance(record, dict) and record.get("step", 0) <= step:
                    lines.append(line)
        return lines

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            StorageError: the disk is full.
        """
        with storage_errors(self.path):
            self._stream.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")
            self._stream.flush()

    def sync(self) -> None:
        """Flush to the disk: a saved state never has more steps than the log."""
        with storage_errors(self.path):
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def trainable(method: Method) -> dict[str, nn.Parameter]:
    """Return the adapter's parameters by name, whether or not they learn in the stage at hand.

    Raises:
        ConfigError: there are none.
    """
    adapter = {name: tensor for name, tensor in method.named_parameters() if not name.startswith("clip.")}
    if not adapter:
        raise ConfigError(f"method {method.name!r} has no parameters to train: use it as it is")
    return adapter


def save_state(
    path: Path,
    method: Method,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write all that the next step depends on: adapter, moments of the optimiser, number of steps taken.

    The order of images and any random numbers of a step are functions of the seed and the step: they need no
    storing.

    Args:
        path: the file, replaced atomically.
        method: being trained.
        optimizer: over `trainable(method)`, in that order.
        step: steps taken.
        extra: further tensors, such as the loss scale of mixed precision.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    tensors = {f"adapter/{name}": tensor for name, tensor in method.adapter_state().items()}
    for name, parameter in trainable(method).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    tensors.update({f"extra/{name}": tensor for name, tensor in (extra or {}).items()})
    copies = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, save(copies, metadata={_META_KEY: json.dumps({"format": FORMAT, "step": step})}))


def load_state(path: Path, method: Method, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Tensor]]:
    """Load a saved state.

    Returns:
        The number of steps taken, and the extra tensors.

    Raises:
        CheckpointError: the file is broken or of another method.
    """
    try:
        metadata, tensors = read_safetensors(path)
    except CheckpointError as error:
        reason = str(error).partition(";")[0]
        raise CheckpointError(f"{reason}, so the run cannot go on: start over with {START_OVER}") from error
    try:
        values = parse_json(metadata[_META_KEY])
        form, step = int(values["format"]), int(values["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a saved training state: start over with {START_OVER}"
        ) from error
    if form > FORMAT:
        raise CheckpointError(
            f"{path} has format {form}, at most {FORMAT} is read: upgrade zsad, or start over"
        )
    parts: dict[str, dict[str, Tensor]] = {"adapter": {}, "optimizer": {}, "extra": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = tensor
    method.load_adapter(parts["adapter"])
    parameters = trainable(method)
    optimizer.state.clear()
    for name, tensor in parts["optimizer"].items():
        owner, _, key = name.rpartition("/")
        if owner not in parameters:
            raise CheckpointError(f"{path} knows the parameter {owner!r}, {method.name} does not: start over")
        # Adam counts its steps on the CPU; the moments live where the parameter lives.
        device = tensor.device if key == "step" else parameters[owner].device
        optimizer.state[parameters[owner]][key] = tensor.to(device)
    return step, parts["extra"]
