"""`zsad benchmark`: methods trained and measured on data sets, cell by cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from zsad.cli.options import DeviceOptions
from zsad.train.train_config import TrainConfig

if TYPE_CHECKING:
    from zsad.studies.benchmark.cell_results import CellResult
    from zsad.studies.benchmark.cells import Cell, CellPlan
    from zsad.studies.benchmark.execution import Executor
    from zsad.studies.benchmark.request import BenchmarkRequest

_Many = Parameter(consume_multiple=True)


def benchmark_command(
    *,
    out: Path,
    methods: Annotated[list[str] | None, _Many] = None,
    train_on: Annotated[list[str] | None, _Many] = None,
    test_on: Annotated[list[str] | None, _Many] = None,
    pair: Annotated[list[str] | None, _Many] = None,
    protocol: str | None = None,
    data: Path | None = None,
    seeds: Annotated[list[int] | None, _Many] = None,
    tower: DeviceOptions | None = None,
    recipes: Path | None = None,
    jobs: int = 1,
    address: str | None = None,
    pro: Literal["aupro", "anomalyclip"] | None = None,
    allow_seen: Annotated[bool, Parameter(negative="")] = False,
    cost: bool = True,
    report_only: Annotated[bool, Parameter(negative="")] = False,
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
) -> int:
    """Train methods, measure them on unseen data sets, and write tables and a report.

    Every finished cell (a method with a seed on a data set) is kept: killed at any moment, the same command goes on
    there. With --jobs, cells and trainings are tasks of Ray, on this machine or with --address on a cluster. What is
    wrong with a data set is named, the rest goes on, the tables show the hole (exit code 3).

    Args:
        out: Folder for features, trained models, results and the report.
        methods: Names of methods (zsad list methods), or trained models as LABEL=PATH; may be several.
        train_on: Sets to train on: folders, manifests, or names below --data.
        test_on: Sets to measure on; without --train-on only by methods and models that need no training.
        pair: The same in one word, 'A,B>C,D' in quotes; may be several, such as both folds of one's own data.
        protocol: A pairing of the papers: mvtec-first, visa-first or adaclip; sets not below --data are left out.
        data: Folder of data sets, found by their names or by those of zsad data list.
        seeds: Train every method once with each of these; by default 111 alone.
        recipes: TOML file with settings of the methods and of their trainings, where they are not the papers'.
        jobs: Tasks of Ray at work at once, on all GPUs there are (extra scale); 1 is this process alone.
        address: Of a running Ray cluster that shares the folders, such as ray://head:10001 or auto.
        pro: PRO of the whole curve or AnomalyCLIP's; by default that of the methods' papers.
        allow_seen: Measure also on what was trained on, and mark it in every table.
        cost: Measure the time and the memory of each method, in a process of its own.
        report_only: Only write the tables and the report of what is there.
        config: Settings of the training, for all methods.
    """
    from zsad.cli.ablate import chosen_seeds
    from zsad.cli.console import note, printable
    from zsad.clip.config import TINY
    from zsad.errors import ConfigError
    from zsad.runs.folder import check_place
    from zsad.studies.benchmark.request import BenchmarkRequest, read_recipes

    tower = tower or DeviceOptions()
    if report_only:
        return _write_results(out)
    check_place(out)
    pairs, left_out = _pairs(train_on, test_on, pair, protocol, data)
    if not methods:
        raise ConfigError("no method to measure: give --methods, such as --methods clip promptmoe")
    request = BenchmarkRequest(
        methods=tuple(methods),
        pairs=tuple(pairs),
        seeds=chosen_seeds(seeds, config),
        work=out,
        recipes={} if recipes is None else read_recipes(recipes),
        training={} if config is None else config.model_dump(mode="json", include=config.model_fields_set),
        protocol=protocol or "",
        backbone=tower.backbone or TINY,
        weights=tower.weights,
        device=tower.device,
        threads=_threads(tower.threads, jobs),
        jobs=jobs,
        address=address,
        pro=pro,
        allow_seen=allow_seen,
        cost=cost,
    )
    if left_out:
        note(f"zsad: not below {printable(data)}, left out: {', '.join(left_out)}")
    run_cells(request)
    return _write_results(out)


def _pairs(
    train_on: list[str] | None,
    test_on: list[str] | None,
    pairs: list[str] | None,
    protocol: str | None,
    data: Path | None,
) -> tuple[list[Any], list[str]]:
    """Return pairs of paths, and the sets of a protocol that are missing.

    Raises:
        ConfigError: none are given, or half a pair, or a set that is not there.
    """
    from zsad.errors import ConfigError
    from zsad.studies.benchmark.pairing import Pair, find_protocol, parse_pair, resolve

    if train_on and not test_on:
        raise ConfigError(
            "--train-on is given without --test-on: say what to measure on, too, or use --pair 'A>B'"
        )
    given = [parse_pair(text) for text in pairs or ()]
    if test_on:
        given.append(Pair(train=tuple(train_on or ()), test=tuple(test_on)))
    resolved, missing = resolve(given, data, partial=False) if given else ([], [])
    if protocol is not None:
        if data is None:
            raise ConfigError(f"--protocol {protocol} needs --data ROOT, the folder where its data sets lie")
        named, missing = resolve(find_protocol(protocol).pairs, data, partial=True)
        resolved += named
    if not resolved:
        raise ConfigError(
            "nothing to measure on: give --train-on with --test-on, --pair 'A,B>C', or --protocol"
        )
    return resolved, missing


def _threads(given: int | None, jobs: int) -> int:
    """Return the threads of each process.

    Raises:
        ConfigError: an impossible number of processes.
    """
    from zsad.device import available_cores
    from zsad.errors import ConfigError

    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}, expected 1 or more")
    return given if given is not None else max(1, available_cores() // jobs)


def run_cells(request: BenchmarkRequest) -> list[tuple[Cell, CellResult]]:
    """Work until every cell of a request is done or has failed, and return the cells with their results.

    Raises:
        StorageError: the disk is full, or another process writes into the folder.
    """
    from zsad.cli.console import note, plural, printable
    from zsad.device import use_threads
    from zsad.files import make_folder, sole_writer
    from zsad.studies.benchmark.cell_results import cell_path, read_cell, write_list
    from zsad.studies.benchmark.execution import in_process
    from zsad.studies.benchmark.plan import plan_benchmark

    execute: Executor = in_process
    if request.jobs > 1 or request.address is not None:
        from zsad.studies.benchmark.ray_tasks import ray_executor

        execute = ray_executor(request)
    use_threads(request.threads)
    plan = plan_benchmark(request)
    with sole_writer(make_folder(request.work)):
        write_list(request.work, {cell.title: cell.key for cell in plan.cells})
        for target in plan.sets:
            images = target.reason if target.data is None else plural(len(target.data.samples), "image")
            note(f"zsad: {printable(target.name)}: {printable(images)}")
        note(f"zsad: {plural(len(plan.cells), 'cell')}, {plural(len(plan.runs), 'training')}")
        _run(plan, execute)
    paths = {cell.key: cell_path(request.work, cell.key) for cell in plan.cells}
    return [(cell, read_cell(paths[cell.key])) for cell in plan.cells if paths[cell.key].is_file()]


def _run(plan: CellPlan, execute: Executor) -> None:
    """Work through all cells.

    Raises:
        KeyboardInterrupt: says how to go on.
    """
    import time

    from zsad.cli.bars import ProgressBars
    from zsad.cli.console import clock, note, printable
    from zsad.studies.benchmark import execution
    from zsad.studies.benchmark.cell_runner import CellRunner

    def remark(line: str) -> None:
        bars.close()
        note(f"zsad: {printable(line)}")

    with ProgressBars() as bars:
        runner = CellRunner(plan, bars)
        total = len({cell.key for cell in plan.cells})
        kept = sum(runner.kept(cell) is not None for cell in plan.cells)
        started, done = time.monotonic(), 0
        try:
            for cell, result in execution.run_cells(runner, execute, remark=remark, keep_failures=True):
                done += 1
                if done <= kept:
                    continue
                bars.close()
                seconds = (time.monotonic() - started) / (done - kept) * (total - done)
                left = f"; about {clock(seconds)} left" if done < total else ""
                failed = f": failed: {result.reason}" if result.state == "failed" else ""
                note(f"zsad: {done} of {total} done{left}: {printable(cell.title + failed)}")
        except KeyboardInterrupt:
            raise KeyboardInterrupt("finished cells are kept, the same command goes on there") from None


def _write_results(out: Path) -> int:
    """Write results and report of what is there, print the table, and return the exit code."""
    from zsad.cli.console import note, printable, say, say_table
    from zsad.errors import DataError
    from zsad.studies.benchmark.cell_results import read_cells
    from zsad.studies.benchmark.write_results import write_results

    cells = read_cells(out)
    if not cells:
        raise DataError(f"{out} holds no results of a benchmark; run one into it first")
    written = write_results(out, cells)
    for table in written.tables:
        say_table(table)
    for name, reason in written.holes:
        note(f"zsad: no result: {printable(name)}: {printable(reason)}")
    if "benchmark.html" not in written.names:
        note(
            "zsad: no benchmark.html: it needs matplotlib and jinja2, get them with: pip install 'zsad[studies]'"
        )
    say(f"wrote {', '.join(written.names)} into {printable(out)}")
    return 3 if written.holes or written.problems else 0
