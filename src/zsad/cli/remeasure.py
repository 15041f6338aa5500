"""`zsad remeasure`: other metrics of what was scored before, without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

_MANY = 800  # maps: a process starts in about the time in which another measures some hundred


def remeasure_command(
    run: Path,
    /,
    *,
    data: Path,
    out: Path | None = None,
    classes: list[str] | None = None,
    processes: int | None = None,
    metrics: Literal["streaming", "exact"] = "streaming",
    pro: Literal["aupro", "anomalyclip", "mvtec3d"] = "aupro",
    pro_limit: float = 0.3,
    also: list[str] | None = None,
    micro: Annotated[bool, Parameter(negative="")] = False,
    allow_seen: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure again what was scored before: from kept scores and score grids, without the model, in seconds.

    Prints the table and writes metrics.json and metrics.csv. The masks are kept beside the grids the first time, so
    that another metric reads no picture.

    Args:
        run: Folder of an evaluation or a prediction, or CELL.grids of a benchmark.
        data: The folder or manifest that was scored, where it lay then.
        out: Folder for the results; by default that of the run.
        classes: Measure only these classes; may be repeated.
        processes: Processes that measure; by default one a core where that is worth their start.
        metrics: Streaming takes constant memory and says how exact it is; exact keeps every pixel.
        pro: Every score a threshold, as in MVTec AD's evaluation; AnomalyCLIP's 200 thresholds; MVTec 3D-AD's 100.
        pro_limit: Largest false positive rate of it.
        also: A further column: aupimo, pro_anomalyclip, aupro_mvtec3d, or aupro@0.05 for another rate; may be repeated.
        micro: Add a row with all classes of a data set pooled as one.
        allow_seen: Measure on data that the model was trained on, else refused; marks the table.
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

    if processes is not None and processes < 1:
        raise ConfigError(f"--processes is {processes}, expected 1 or more")
    kept = read_run_file(run)
    found = discover(data)
    overlap = None
    if "card" in kept:
        card = Card.model_validate(kept["card"])
        overlap = check_unseen(card, found, model=f"the model of {printable(run)}", allow_seen=allow_seen)
    with progress("measuring", len(found.samples)) as advance:
        table = measure_again(
            run,
            found,
            classes=classes,
            progress=Position(advance),
            metrics=metrics,
            pro=pro,
            limit=pro_limit,
            also=also or (),
            micro=micro,
            processes=processes or _enough(kept, len(found.samples)),
        )
    table.seen = "" if overlap is None else overlap.sentence()
    print_table(table)
    place = run if out is None else out
    former: dict[str, Any] = {
        name: kept[name] for name in ("model_name", "card", "environment") if name in kept
    }
    write_metrics(place, table, former)
    say(f"wrote metrics.json, metrics.csv into {printable(place)}")
    return 3 if table.unreadable else 0


def _enough(kept: dict[str, Any], images: int) -> int:
    """How many processes shorten the work: of some hundred maps, those made layer by layer counting twice."""
    from zsad.device import available_cores

    layered = kept.get("map_spec", {}).get("order") == "before_softmax"
    return available_cores() if images * (2 if layered else 1) > _MANY else 1
