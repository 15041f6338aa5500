"""`zsad ablate`: a paper's ablation table on one's own data, ours beside the paper's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from zsad.cli.options import DeviceOptions
from zsad.train.train_config import TrainConfig

if TYPE_CHECKING:
    from zsad.studies.ablations.ablation_table import AblationResults

_NOTES_SHOWN = 12
_LARGEST_SEED = 2**31 - 1


def ablate_command(
    method: str,
    /,
    *,
    table: str,
    train_on: Annotated[list[Path], Parameter(consume_multiple=True)],
    test_on: Annotated[list[Path], Parameter(consume_multiple=True)],
    out: Path,
    seeds: Annotated[list[int] | None, Parameter(consume_multiple=True)] = None,
    tower: DeviceOptions | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
) -> int:
    """Repeat an ablation table of a paper: train its variants, measure them, print both side by side.

    Image features are computed once for all variants. Interrupted at any moment, the same command goes on where it
    stopped; tables made in one folder share the variants they have in common. Broken files are named and left out
    (exit code 3). Writes ablation.json, .csv, .md, .tex and .html.

    Args:
        method: Name of the method.
        table: Which table of its paper: 2 to 6 of promptmoe, components of moeclip.
        train_on: Folders or manifests to train on; may be several.
        test_on: Folders or manifests to measure on, of other objects; may be several.
        out: Folder for features, trained variants and results.
        seeds: Train every variant once with each of these; by default 111 alone.
        set_: A setting of the method as key=value, for all variants; may be repeated.
        config: Settings of the training; those not given are the method's own.
    """
    from zsad.cli.train import parse_settings, training_settings
    from zsad.clip.config import TINY
    from zsad.clip.weights import load_backbone
    from zsad.datasets.manifest import discover
    from zsad.device import select_device, use_threads
    from zsad.files import make_folder, sole_writer
    from zsad.methods.registry import find
    from zsad.runs.folder import check_place
    from zsad.studies.ablations import find_table
    from zsad.studies.ablations.ablation_table import AblationResults
    from zsad.studies.ablations.study import Study, name_targets, shared_images

    tower = tower or DeviceOptions()
    chosen = find_table(method, table)
    chosen_device, all_seeds = select_device(tower.device), chosen_seeds(seeds, config)
    check_place(out)
    use_threads(tower.threads)
    study = Study(
        method=method,
        table=chosen,
        settings=parse_settings(set_ or []),
        training=training_settings(find(method).load(), config),
        seeds=all_seeds,
        auxiliary=[discover(folder) for folder in train_on],
        targets=name_targets([discover(folder) for folder in test_on]),
        backbone=load_backbone(tower.backbone or TINY, weights=tower.weights, device=chosen_device),
        folder=out,
    )
    results = AblationResults(study)
    results.notes += shared_images(study.auxiliary, study.targets)
    with sole_writer(make_folder(out)):
        try:
            _run(results)
        finally:
            written = _write(results, out)
    _print(results, written)
    return 3 if results.broken else 0


def chosen_seeds(given: list[int] | None, config: TrainConfig | None) -> tuple[int, ...]:
    """Return the seeds of several trainings.

    Raises:
        ConfigError: one that is none, or the seed of a single training.
    """
    from zsad.errors import ConfigError

    if config is not None and "seed" in config.model_fields_set:
        raise ConfigError("--seed is of a single training, here are several: use --seeds 111 112 113")
    for seed in given or ():
        if not 0 <= seed <= _LARGEST_SEED:
            raise ConfigError(f"--seeds has {seed}, expected numbers from 0 to {_LARGEST_SEED}")
    return tuple(dict.fromkeys(given or (TrainConfig().seed,)))


def _run(results: AblationResults) -> None:
    """Work through all cells.

    Raises:
        KeyboardInterrupt: says how much is done.
    """
    from zsad.cli.bars import ProgressBars
    from zsad.cli.console import note, note_data, printable
    from zsad.studies.benchmark.cell_runner import CellRunner
    from zsad.studies.benchmark.execution import in_process, run_cells

    study = results.study
    for data in (*study.auxiliary, *study.targets.values()):
        note_data(data)
    with ProgressBars() as bars:
        runner = CellRunner(study.plan, bars)
        try:
            for cell, result in run_cells(runner, in_process, remark=lambda line: None, keep_failures=False):
                bars.close()
                before = results.done
                for line in results.add(cell, result, runner.training_log(cell)):
                    note(f"zsad: {printable(line)}")
                if results.done > before:
                    title = cell.candidate.label + ("" if cell.seed is None else f", seed {cell.seed}")
                    note(f"zsad: {results.done} of {results.total} done: {printable(title)}")
        except KeyboardInterrupt:
            done = f"{results.done} of {results.total} variants and seeds are done"
            raise KeyboardInterrupt(f"{done}, the same command goes on there") from None


def _write(results: AblationResults, out: Path) -> list[str]:
    from zsad.device import describe_environment
    from zsad.files import write_json, write_text

    used_device = next(results.study.backbone.clip.parameters()).device
    write_json(out / "ablation.json", {**results.to_dict(), "environment": describe_environment(used_device)})
    write_text(out / "ablation.csv", results.to_csv())
    return ["ablation.json", "ablation.csv", *results.document().write(out, "ablation")]


def _print(results: AblationResults, written: list[str]) -> None:
    from zsad.cli.console import printable, say, say_table

    study = results.study
    say(study.table.title)
    for line in results.head():
        say(printable(line))
    for table in results.tables():
        say_table(table.to_rich())
    for line in results.notes[:_NOTES_SHOWN]:
        say(f"note: {printable(line)}")
    if len(results.notes) > _NOTES_SHOWN:
        say(f"note: {len(results.notes) - _NOTES_SHOWN} more in ablation.md")
    say(f"wrote {', '.join(written)} into {printable(study.folder)}")
