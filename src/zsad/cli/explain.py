"""`zsad explain`: which experts a model asks, where, and how they were trained; whether its modules live."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from zsad.cli.options import ModelOptions

if TYPE_CHECKING:
    from zsad.datasets.manifest import DataSet
    from zsad.detector import Detector

# Said again here: the help of a verb imports nothing heavy.
_Kind = Literal["activation", "regions", "patches", "embeddings", "curves"]


def explain_command(
    model: str,
    /,
    *,
    data: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None,
    out: Path,
    compare: Path | None = None,
    alive: bool = False,
    images: int | None = None,
    kind: Annotated[list[_Kind] | None, Parameter(consume_multiple=True)] = None,
    patch_rule: Literal["any", "majority"] = "any",
    projection: Literal["pca", "tsne"] = "pca",
    split: str = "test",
    tower: ModelOptions | None = None,
    batch_size: int | None = None,
) -> int:
    """Show what the experts of a model do: which are chosen for what, how they lie, how they were trained.

    Writes explain.html (one page, loads nothing), explain.json with all numbers, and each figure as SVG, PDF and PNG.
    A file that cannot be read is reported and skipped (exit code 3). With --alive the table of the modules and
    modules.json; exit code 4 where one of them does not live.

    Args:
        model: Bundled model, run folder or checkpoint of a method with experts (--alive: with modules); see zsad list
            methods.
        data: Folders or manifests of images, best with labels and masks; may be several.
        out: Folder for the explanation; a former one there is replaced.
        compare: Folder of a second training whose curves are drawn beside the model's.
        alive: Instead switch off each module of the method's paper and give it another image's input: how maps, text
            and scores change; how much its parameters moved, how often experts are used and how alike they are.
        images: How many images are shown with the experts of their patches, half of them normal (8); with --alive, how
            many are measured (64).
        kind: What to show; by default all. Embeddings and curves need no data.
        patch_rule: A patch is anomalous where any of its pixels is, or where at least half are.
        projection: Of the experts to a plane; tsne needs scikit-learn.
        split: Which part of the data to read, where its layout has parts.
        batch_size: Images a pass; by default what suits the device.
    """
    from zsad.cli.console import Position, note, note_data, note_skipped, printable, progress, say
    from zsad.datasets.manifest import discover
    from zsad.runs.folder import check_place
    from zsad.studies.explain.explanation import KINDS, OF_IMAGES, explain
    from zsad.studies.explain.explanation_page import PAGE_FILE, write_explanation

    check_place(out)
    kinds = KINDS if kind is None else [name for name in KINDS if name in kind]
    sets = [discover(folder, split=split) for folder in (data or []) if alive or OF_IMAGES & set(kinds)]
    for data_set in sets:
        note_data(data_set)
    detector = (tower or ModelOptions()).load(model)
    if alive:
        return _alive(detector, sets, out, images=64 if images is None else images, batch_size=batch_size)
    with progress("explaining", sum(len(data_set.samples) for data_set in sets) or None) as advance:
        try:
            explanation = explain(
                detector,
                sets,
                kinds=kinds,
                compare=compare,
                images=8 if images is None else images,
                rule=patch_rule,
                projection=projection,
                batch_size=batch_size,
                on_error=note_skipped,
                progress=Position(advance),
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was written, the same command starts anew") from None
    for line in explanation.notes:
        say(f"note: {printable(line)}")
    written = write_explanation(explanation, out)
    if PAGE_FILE not in written:
        note(
            f"zsad: no {PAGE_FILE}: it needs matplotlib and jinja2, get them with: pip install 'zsad[studies]'"
        )
    say(f"wrote {', '.join(written)} into {printable(out)}")
    return 3 if explanation.collected.skipped else 0


def _alive(detector: Detector, sets: list[DataSet], out: Path, *, images: int, batch_size: int | None) -> int:
    """Print and write whether the modules live; return the exit code."""
    from zsad.cli.console import note, note_skipped, printable, progress, say, say_table
    from zsad.files import write_json
    from zsad.studies.explain.liveness import measure_liveness
    from zsad.studies.explain.liveness_report import (
        MODULES_FILE,
        findings,
        liveness_json,
        module_table,
        notes,
        pool_table,
    )

    total = min(images, sum(len(found.samples) for found in sets))
    with progress("switching off", total) as advance:
        result = measure_liveness(
            detector, sets, images=images, batch_size=batch_size or 8, on_error=note_skipped, progress=advance
        )
    for table in (module_table(result), pool_table(result)):
        if table.rows:
            say_table(table.to_rich())
    if result.kl is not None:
        say(f"KL of the posterior: {result.kl:.3f} nats")
    for line in notes(result):
        note(f"zsad: {printable(line)}")
    found = findings(result)
    for line in found.values():
        say(f"finding: {printable(line)}")
    if not found:
        say("every module lives")
    write_json(out / MODULES_FILE, liveness_json(result))
    say(f"wrote {MODULES_FILE} into {printable(out)}")
    return 4 if found else 3 if result.skipped else 0
