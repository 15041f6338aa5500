"""`zsad evaluate`: a model measured on a data set, class by class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from zsad.cli.options import ModelOptions

if TYPE_CHECKING:
    from zsad.errors import ZsadError
    from zsad.metrics.table import ResultTable
    from zsad.types import Sample


def evaluate_command(
    model: str,
    /,
    *,
    data: Path,
    out: Path,
    classes: list[str] | None = None,
    batch_size: int | None = None,
    tower: ModelOptions | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    metrics: Literal["streaming", "exact"] = "streaming",
    pro: Literal["aupro", "anomalyclip", "mvtec3d"] = "aupro",
    pro_limit: float = 0.3,
    also: list[str] | None = None,
    micro: Annotated[bool, Parameter(negative="")] = False,
    transductive: Annotated[bool, Parameter(negative="")] = False,
    allow_seen: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure a model on a data set: image and pixel metrics per class, and their means.

    Prints the table and writes metrics.json and metrics.csv. What cannot be computed, for want of masks or of
    normal images, is said and left out of the means. Scores and score grids are kept in the folder: interrupted
    at any moment, the same command goes on where it stopped, and another metric costs no second pass.

    Args:
        model: Bundled model, run folder, checkpoint, or a method without training (clip, clip-tiny).
        data: Folder or manifest; its layout is found out by looking.
        out: Folder for the results.
        classes: Measure only these classes; may be repeated.
        batch_size: Images a pass; by default what suits the device.
        overwrite: Throw away what lies in the folder; else images scored there by the same model are not again.
        metrics: Streaming takes constant memory and says how exact it is; exact keeps every pixel.
        pro: Every score a threshold, as in MVTec AD's evaluation; AnomalyCLIP's 200 thresholds; MVTec 3D-AD's 100.
        pro_limit: Largest false positive rate of it.
        also: A further column: aupimo, pro_anomalyclip, aupro_mvtec3d, or aupro@0.05 for another rate; may be repeated.
        micro: Add a row with all classes of a data set pooled as one.
        transductive: MoECLIP's published image scores, which need all test images of a class; marks the table.
        allow_seen: Measure on data that the model was trained on, else refused; marks the table.
    """
    from zsad.cli.console import Position, note, plural, printable, progress, say
    from zsad.datasets.manifest import discover
    from zsad.runs.evaluate_run import EvaluateOptions, evaluate
    from zsad.runs.folder import check_place

    def report(sample: Sample, error: ZsadError) -> None:
        note(f"zsad: skipped: {printable(error)}")

    check_place(out)
    dataset = discover(data)
    note(f"zsad: {printable(dataset.name)}: {plural(len(dataset.samples), 'image')}, layout {dataset.layout}")
    detector = (tower or ModelOptions()).load(model)
    options = EvaluateOptions(
        classes=classes,
        metrics=metrics,
        pro=pro,
        pro_limit=pro_limit,
        also=also or (),
        micro=micro,
        transductive=transductive,
        allow_seen=allow_seen,
        batch_size=batch_size,
        domain=None if tower is None else tower.domain,
        overwrite=overwrite,
    )
    total = sum(classes is None or sample.class_name in classes for sample in dataset.samples)
    with progress("evaluating", total) as advance:
        position = Position(advance)
        try:
            table = evaluate(
                detector,
                dataset,
                out,
                options=options,
                progress=position,
                on_error=report,
                on_tile=advance.tiles,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{position.done} of {total} images are scored, the same command goes on there"
            ) from None
    print_table(table)
    say(f"wrote metrics.json, metrics.csv into {printable(out)}")
    return 3 if table.unreadable else 0


def print_table(table: ResultTable) -> None:
    """Prints the table of an evaluation and its notes."""
    from zsad.cli.console import say, say_table

    rendered = table.render()
    rendered.caption = None
    say_table(rendered)
    for line in table.notes:
        say(f"note: {line}")
