"""`zsad evaluate`: a model measured on a data set, class by class."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from zsad.cli.options import MetricOptions, ModelOptions

if TYPE_CHECKING:
    from zsad.metrics.table import ResultTable


def evaluate_command(
    model: str,
    /,
    *,
    data: Path,
    out: Path,
    batch_size: int | None = None,
    tower: ModelOptions | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    measure: MetricOptions | None = None,
    transductive: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure a model on a data set: image and pixel metrics per class, and their means.

    Prints the table and writes metrics.json and metrics.csv. What cannot be computed, for want of masks or of
    normal images, is said and left out of the means. Scores and score grids are kept in the folder: interrupted
    at any moment, the same command goes on where it stopped, and another metric costs no second pass.

    Args:
        model: Bundled model, run folder, checkpoint, or a method without training (clip, clip-tiny).
        data: Folder or manifest; its layout is found out by looking.
        out: Folder for the results.
        batch_size: Images a pass; by default what suits the device.
        overwrite: Throw away what lies in the folder; else images scored there by the same model are not again.
        transductive: MoECLIP's published image scores, which need all test images of a class; marks the table.
    """
    from zsad.cli.console import Position, note_data, note_skipped, printable, progress, say
    from zsad.datasets.manifest import discover
    from zsad.runs.evaluate_run import EvaluateOptions, evaluate
    from zsad.runs.folder import check_place

    check_place(out)
    dataset = discover(data)
    note_data(dataset)
    detector = (tower or ModelOptions()).load(model)
    measure = measure or MetricOptions()
    options = EvaluateOptions(
        **{**asdict(measure), "also": measure.also or ()},
        transductive=transductive,
        batch_size=batch_size,
        domain=None if tower is None else tower.domain,
        overwrite=overwrite,
    )
    total = sum(measure.classes is None or sample.class_name in measure.classes for sample in dataset.samples)
    with progress("evaluating", total) as advance:
        position = Position(advance)
        try:
            table = evaluate(
                detector,
                dataset,
                out,
                options=options,
                progress=position,
                on_error=note_skipped,
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
