"""`zsad train`: an adapter trained on an auxiliary data set, on one process or under torchrun."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from zsad.cli.options import DeviceOptions
from zsad.train.train_config import TrainConfig

if TYPE_CHECKING:
    from zsad.methods.base import Method
    from zsad.train.loop import Progress

_LINE_EVERY = 20  # steps between lines where stderr is no terminal


def train_command(
    method: str,
    /,
    *,
    data: Annotated[list[Path], Parameter(consume_multiple=True)],
    out: Path,
    tower: DeviceOptions | None = None,
    split: str = "test",
    watch: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train a method on an auxiliary data set, with masks of the anomalous images.

    Interrupted at any moment, the same command goes on where the last state was saved. Broken files are named
    and left out (exit code 3). Several GPUs: torchrun --nproc-per-node 4 -m zsad train ...

    Args:
        method: Name of the method; see zsad list methods.
        data: Folders or manifests to train on; may be several.
        out: Folder of the run: checkpoint, card, log of every loss.
        split: Which part of the data to read, where its layout has parts.
        watch: Labelled data of other objects: its image AUROC after every epoch is kept for zsad explain.
        set_: A setting of the method as key=value, such as experts=4; may be repeated.
        config: Settings of the training; those not given are the method's own.
        overwrite: Throw away the run that lies in the folder.
    """
    import os

    from zsad.clip.config import TINY
    from zsad.clip.weights import load_backbone
    from zsad.datasets.manifest import discover
    from zsad.device import select_device, use_threads
    from zsad.methods.registry import build, find
    from zsad.runs.folder import check_place
    from zsad.train.distributed import current_worker, joined
    from zsad.train.loop import train
    from zsad.train.training_card import CardParts

    settings = training_settings(find(method).load(), config)
    options = tower or DeviceOptions()
    device = None if options.device == "auto" else options.device
    if device is not None:
        select_device(device)
    check_place(out)
    changes = parse_settings(set_ or [])
    sets = [discover(folder, split=split) for folder in data]
    watched = [discover(folder, split=split) for folder in watch or ()]
    use_threads(options.threads)
    with ExitStack() as stack:
        place = stack.enter_context(joined(os.environ, device=device))
        backbone = load_backbone(options.backbone or TINY, weights=options.weights, device=place)
        built = build(method, changes, backbone).to(place)
        report = stack.enter_context(_Reporter())
        path = train(
            built,
            sets,
            config=settings,
            out=out,
            card_parts=CardParts.of(built, backbone),
            progress=report,
            resume=not overwrite,
            validation=watched,
        )
        _say_done(path, options)
        # To torchrun any code but 0 is a crash of the process.
        return 3 if report.broken and current_worker().world_size == 1 else 0


def training_settings(method: type[Method], given: TrainConfig | None) -> TrainConfig:
    """The method's own training settings, with those that are given in their place."""
    chosen = {} if given is None else {name: getattr(given, name) for name in given.model_fields_set}
    return TrainConfig(**{**method.training_defaults, **chosen})


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Settings of `key=value` pairs; a value is JSON where it can be read so, else text.

    Raises:
        ConfigError: a pair without "=".
    """
    import json

    from zsad.errors import ConfigError

    settings: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {pair!r} is no setting, expected key=value such as experts=4")
        try:
            settings[key.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            settings[key.strip().replace("-", "_")] = value
    return settings


def _say_done(path: Path, options: DeviceOptions) -> None:
    from zsad.cli.console import printable, say
    from zsad.clip.config import preset_names
    from zsad.train.distributed import current_worker

    # A card holds a name and a hash: where own weights lie has to be said again.
    where = "" if options.backbone in (None, *preset_names()) else f" --backbone {options.backbone}"
    where += "" if options.weights is None else f" --weights {options.weights}"
    if current_worker().is_main:
        say(printable(f"wrote {path}; try: zsad evaluate {path.parent}{where} --data DIR --out DIR"))


class _Reporter:
    """Shows where a run stands: a bar for each stage on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._stage = ""
        self._done = 0
        self.broken = 0
        self._stack = ExitStack()
        self._advance: Callable[[int], None] = lambda steps: None

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, now: Progress) -> None:
        import sys

        from zsad.cli.console import note, printable, progress

        for line in now.notes:
            note(f"zsad: {printable(line)}")
        self.broken += now.broken
        if now.stage in ("samples", "finished"):
            return
        if now.stage != self._stage:
            self._stack.close()
            self._stage, self._done = now.stage, 0
            self._advance = self._stack.enter_context(progress(now.stage, now.total))
        self._advance(now.done - self._done)
        self._done = now.done
        due = now.done % _LINE_EVERY == 0 or now.done == now.total
        if now.losses is not None and due and not sys.stderr.isatty():
            note(_loss_line(now))


def _loss_line(now: Progress) -> str:
    terms = "  ".join(f"{name} {value:.4g}" for name, value in (now.losses or {}).items())
    return f"epoch {now.epoch}  step {now.done}/{now.total}  {terms}"
