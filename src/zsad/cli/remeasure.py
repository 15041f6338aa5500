"""`zsad remeasure`: other metrics of what was scored before, without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zsad.cli.options import MetricOptions

_MANY = 800  # maps: a process starts in about the time in which another measures some hundred


def remeasure_command(
    run: Path,
    /,
    *,
    data: Path,
    out: Path | None = None,
    processes: int | None = None,
    measure: MetricOptions | None = None,
) -> int:
    """Measure again what was scored before: from kept scores and score grids, without the model, in seconds.

    Prints the table and writes metrics.json and metrics.csv. The masks are kept beside the grids the first time, so
    that another metric reads no picture.

    Args:
        run: Folder of an evaluation or a prediction, or CELL.grids of a benchmark.
        data: The folder or manifest that was scored, where it lay then.
        out: Folder for the results; by default that of the run.
        processes: Processes that measure; by default one a core where that is worth their start.
    """
    import os

    # Before NumPy is loaded: every process has its own core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from zsad.card import Card
    from zsad.cli.console import Position, printable, progress, say
    from zsad.cli.evaluate import print_table
    from zsad.datasets.manifest import discover
    from zsad.datasets.overlap import check_unseen
    from zsad.errors import ConfigError
    from zsad.runs.evaluate_run import write_metrics
    from zsad.runs.remeasure import measure_again
    from zsad.runs.store import read_run_file

    measure = measure or MetricOptions()
    if processes is not None and processes < 1:
        raise ConfigError(f"--processes is {processes}, expected 1 or more")
    run_file = read_run_file(run)
    dataset = discover(data)
    overlap = None
    if "card" in run_file:
        card, name = Card.model_validate(run_file["card"]), f"the model of {printable(run)}"
        overlap = check_unseen(
            card, dataset, model=name, classes=measure.classes, allow_seen=measure.allow_seen
        )
    with progress("measuring", len(dataset.samples)) as advance:
        table = measure_again(
            run,
            dataset,
            classes=measure.classes,
            progress=Position(advance),
            metrics=measure.metrics,
            pro=measure.pro,
            limit=measure.pro_limit,
            also=measure.also or (),
            micro=measure.micro,
            processes=processes or _enough(run_file, len(dataset.samples)),
        )
    if overlap is not None:
        table.seen = overlap.sentence()
        table.notes += [overlap.remark()] if overlap.related else []
    print_table(table)
    folder = run if out is None else out
    former: dict[str, Any] = {
        name: run_file[name] for name in ("model_name", "card", "environment") if name in run_file
    }
    write_metrics(folder, table, former)
    say(f"wrote metrics.json, metrics.csv into {printable(folder)}")
    return 3 if table.unreadable else 0


def _enough(run_file: dict[str, Any], images: int) -> int:
    """Return how many processes are worth their start, for some hundred maps; those made layer by layer count twice."""
    from zsad.device import available_cores

    layered = run_file.get("map_spec", {}).get("order") == "before_softmax"
    return available_cores() if images * (2 if layered else 1) > _MANY else 1
