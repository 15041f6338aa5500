"""`zsad benchmark`: methods trained and measured on data sets, cell by cell, alone or by several processes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from zsad.train.train_config import TrainConfig

if TYPE_CHECKING:
    from zsad.studies.benchmark.cell_results import CellResult
    from zsad.studies.benchmark.plan import Cell, Plan
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
    backbone: str = "zsad-tiny",
    weights: Path | None = None,
    recipes: Path | None = None,
    jobs: int = 1,
    device: str = "auto",
    threads: int | None = None,
    allow_seen: Annotated[bool, Parameter(negative="")] = False,
    cost: bool = True,
    report_only: Annotated[bool, Parameter(negative="")] = False,
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
) -> int:
    """Train methods, measure them on unseen data sets, and write tables and a report.

    Every finished cell (a method with a seed on a data set) is kept: killed at any moment, the same command goes on
    there. The same command in several shells or on several machines that share the folder divides the work, as does
    --jobs. What is wrong with a data set is named, the rest goes on, the tables show the hole (exit code 3).

    Args:
        out: Folder for features, trained models, results and the report.
        methods: Names of methods (zsad list methods), or trained models as LABEL=PATH; may be several.
        train_on: Sets to train on: folders, manifests, or names below --data.
        test_on: Sets to measure on; without --train-on only by methods and models that need no training.
        pair: The same in one word, 'A,B>C,D' in quotes; may be several, such as both folds of one's own data.
        protocol: A pairing of the papers: mvtec-first, visa-first or adaclip; sets not below --data are left out.
        data: Folder of data sets, found by their names or by those of zsad data list.
        seeds: Train every method once with each of these; by default 111 alone.
        backbone: Frozen tower, by name or path; see zsad list backbones.
        weights: File or folder of the backbone's weights.
        recipes: TOML file with settings of the methods and of their trainings, where they are not the papers'.
        jobs: Processes at work at once; several GPUs are dealt out to them.
        device: auto, cpu, cuda or cuda:1.
        threads: Processor threads of each process; by default all cores, shared by the processes.
        allow_seen: Measure also on what was trained on, and mark it in every table.
        cost: Measure the time and the memory of each method, in a process of its own.
        report_only: Only write the tables and the report of what is there.
        config: Settings of the training, for all methods.
    """
    from zsad.cli.console import note, printable
    from zsad.runs.folder import check_place

    if report_only:
        return _conclude(out)
    check_place(out)
    pairs, left_out = _pairs(train_on, test_on, pair, protocol, data)
    request = _request(methods, pairs, out, recipes=recipes, seeds=seeds, config=config).model_copy(
        update={
            "protocol": protocol or "",
            "backbone": backbone,
            "weights": weights,
            "device": device,
            "threads": _threads(threads, jobs),
            "jobs": jobs,
            "allow_seen": allow_seen,
            "cost": cost,
        }
    )
    if left_out:
        note(f"zsad: not below {printable(data)}, left out: {', '.join(left_out)}")
    run_cells(request)
    return _conclude(out)


def _pairs(
    train_on: list[str] | None,
    test_on: list[str] | None,
    pairs: list[str] | None,
    protocol: str | None,
    data: Path | None,
) -> tuple[list[Any], list[str]]:
    """Pairs of paths, and sets of a protocol that are not there.

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
    found, missing = resolve(given, data, partial=False) if given else ([], [])
    if protocol is not None:
        if data is None:
            raise ConfigError(f"--protocol {protocol} needs --data ROOT, the folder where its data sets lie")
        named, missing = resolve(find_protocol(protocol).pairs, data, partial=True)
        found += named
    if not found:
        raise ConfigError(
            "nothing to measure on: give --train-on with --test-on, --pair 'A,B>C', or --protocol"
        )
    return found, missing


def _request(
    methods: list[str] | None,
    pairs: list[Any],
    out: Path,
    *,
    recipes: Path | None,
    seeds: list[int] | None,
    config: TrainConfig | None,
) -> BenchmarkRequest:
    from zsad.cli.ablate import chosen_seeds
    from zsad.errors import ConfigError
    from zsad.studies.benchmark.request import BenchmarkRequest, read_recipes

    if not methods:
        raise ConfigError("no method to measure: give --methods, such as --methods clip promptmoe")
    changed = {} if config is None else config.model_dump(mode="json", include=config.model_fields_set)
    return BenchmarkRequest(
        methods=tuple(methods),
        pairs=tuple(pairs),
        seeds=chosen_seeds(seeds, config),
        work=out,
        recipes={} if recipes is None else read_recipes(recipes),
        training=changed,
    )


def _threads(given: int | None, jobs: int) -> int:
    """Threads of each process.

    Raises:
        ConfigError: an impossible number of processes.
    """
    from zsad.device import available_cores
    from zsad.errors import ConfigError

    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}, expected 1 or more")
    return given if given is not None else max(1, available_cores() // jobs)


def run_cells(request: BenchmarkRequest) -> list[Path]:
    """Works until every cell of a request is done or has failed, and returns the files of the results."""
    from zsad.cli.console import note, plural, printable
    from zsad.device import use_threads
    from zsad.files import make_folder
    from zsad.studies.benchmark.cell_results import cell_path, write_list
    from zsad.studies.benchmark.plan import Plan

    use_threads(request.threads)
    plan = Plan(request)
    make_folder(request.work)
    write_list(request.work, {cell.title: cell.key for cell in plan.cells})
    for path in plan.names:
        target = plan.target(path)
        images = target.reason if target.data is None else plural(len(target.data.samples), "image")
        note(f"zsad: {printable(target.name)}: {printable(images)}")
    note(f"zsad: {plural(len(plan.cells), 'cell')}, {plural(len(plan.runs), 'training')}")
    started = time.time()
    if request.jobs == 1:
        _work(plan, started)
    else:
        _start_workers(request, started)
    return [place for cell in plan.cells if (place := cell_path(request.work, cell.key)).is_file()]


def _work(plan: Plan, started: float) -> None:
    """This process' share of the work.

    Raises:
        KeyboardInterrupt: says how to go on.
    """
    from zsad.cli.bars import Bars
    from zsad.cli.console import clock, note, printable
    from zsad.studies.benchmark.cell_runner import CellRunner
    from zsad.studies.benchmark.claims import Claims
    from zsad.studies.benchmark.runner import Runner

    with Bars(shown=plan.request.jobs == 1) as bars, Claims(plan.request.work / "claims") as claims:

        def finished(cell: Cell, result: CellResult, done: int, seconds: float | None) -> None:
            bars.close()
            rest = "" if seconds is None or done == len(plan.cells) else f"; about {clock(seconds)} left"
            failed = f": failed: {result.reason}" if result.state == "failed" else ""
            note(f"zsad: {done} of {len(plan.cells)} done{rest}: {printable(cell.title + failed)}")

        try:
            Runner(plan, claims, CellRunner(plan, claims, bars), started, finished).run()
        except KeyboardInterrupt:
            raise KeyboardInterrupt("finished cells are kept, the same command goes on there") from None


def _start_workers(request: BenchmarkRequest, started: float) -> None:
    """Starts processes that share the work, and waits for them.

    Raises:
        ConfigError: none of them came to the end.
    """
    import subprocess

    from zsad.errors import ConfigError
    from zsad.files import write_text

    place = request.work / "workers"
    commands = []
    for index in range(request.jobs):
        path = place / f"{index}.json"
        own = request.model_copy(update={"device": _device(request.device, index)})
        write_text(path, own.model_dump_json(indent=1))
        commands.append([sys.executable, "-m", "zsad.cli.benchmark", str(path), repr(started)])
    workers = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
    try:
        codes = [worker.wait() for worker in workers]
    except KeyboardInterrupt:
        for worker in workers:
            worker.wait()  # each of them was interrupted, too
        raise KeyboardInterrupt("finished cells are kept, the same command goes on there") from None
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
    if all(codes):
        raise ConfigError(f"all {request.jobs} processes ended early (see above); the same command goes on")


def _device(device: str, index: int) -> str:
    """The device of a process: GPUs are dealt out in turn."""
    if device not in ("auto", "cuda"):
        return device
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{index % count}" if count > 1 else device


def _conclude(out: Path) -> int:
    """Writes results and report of what is there, prints the table, and returns the exit code."""
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
    say(f"wrote {', '.join(written.names)} into {printable(out)}")
    return 3 if written.holes or written.problems else 0


def _watch_parent() -> None:
    """Ends this process soon after the one that started it has gone: what it was at is taken up by the next start."""
    import os
    import threading

    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, name="zsad-parent", daemon=True).start()


def worker(arguments: list[str]) -> int:
    """A process of `zsad benchmark --jobs`: the file of the request, and when the benchmark was started."""
    from zsad.cli.console import note
    from zsad.cli.main import explain
    from zsad.device import use_threads
    from zsad.studies.benchmark.plan import Plan
    from zsad.studies.benchmark.request import BenchmarkRequest

    _watch_parent()
    try:
        request = BenchmarkRequest.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
        use_threads(request.threads)
        _work(Plan(request), float(arguments[1]))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        message, code = explain(error)
        note(f"zsad: error: {message}")
        return code
    return 0


if __name__ == "__main__":
    import os

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(worker(sys.argv[1:]))
