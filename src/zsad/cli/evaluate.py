"""`zsad evaluate`: a model measured on a data set, class by class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from zsad.detector import Detector
    from zsad.errors import ZsadError
    from zsad.infer.prediction import Prediction
    from zsad.metrics.table import ResultTable
    from zsad.types import Sample


def evaluate_command(
    model: str,
    /,
    *,
    data: Path,
    out: Path,
    classes: list[str] | None = None,
    backbone: str | None = None,
    weights: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    metrics: Literal["streaming", "exact"] = "streaming",
    pro: Literal["aupro", "anomalyclip"] = "aupro",
) -> int:
    """Measure a model on a data set: image and pixel metrics per class, and their means.

    Prints the table and writes metrics.json and metrics.csv. What cannot be computed, for want of masks or of
    normal images, is said and left out of the means.

    Args:
        model: Bundled model, run folder, checkpoint, or a method without training (clip, clip-tiny).
        data: Folder or manifest; its layout is found out by looking.
        out: Folder for the results.
        classes: Measure only these classes; may be repeated.
        backbone: Another tower, by name or path, for methods that need no training.
        weights: File or folder of the backbone's weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        batch_size: Images a pass; by default what suits the device.
        threads: Processor threads; by default all cores.
        metrics: Streaming takes constant memory and says how exact it is; exact keeps every pixel.
        pro: The exact PRO curve, or the 200 thresholds of AnomalyCLIP (needs --metrics exact).
    """
    from zsad.cli.console import note, plural, printable, progress, say
    from zsad.data.manifest import discover
    from zsad.detector import load
    from zsad.device import use_threads
    from zsad.infer.writer import check_place
    from zsad.metrics.protocols import evaluate

    check_place(out)
    found = discover(data)
    note(f"zsad: {printable(found.name)}: {plural(len(found.samples), 'image')}, layout {found.layout}")
    use_threads(threads)
    scorer = Scorer(load(model, backbone=backbone, weights=weights, device=device), batch_size=batch_size)
    total = sum(classes is None or sample.class_name in classes for sample in found.samples)
    with progress("evaluating", total) as advance:
        done = 0

        def moved(position: int, _: int) -> None:
            nonlocal done
            advance(position - done)
            done = position

        try:
            table = evaluate(scorer, found, classes=classes, progress=moved, metrics=metrics, pro=pro)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{done} of {total} images were scored, nothing was written") from None
    _print_table(table)
    written = _write(out, table, scorer.detector)
    say(f"wrote {', '.join(written)} into {printable(out)}")
    return 3 if table.unreadable else 0


class Scorer:
    """A detector that reports unreadable files on stderr."""

    def __init__(self, detector: Detector, *, batch_size: int | None) -> None:
        self.detector = detector
        self._batch_size = batch_size

    def predict_samples(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """Predictions in the order of the samples, unreadable ones left out."""
        return self.detector.predict_samples(samples, batch_size=self._batch_size, on_error=self._report)

    def _report(self, sample: Sample, error: ZsadError) -> None:
        from zsad.cli.console import note, printable

        note(f"zsad: skipped: {printable(error)}")


def _print_table(table: ResultTable) -> None:
    import sys

    from rich.console import Console

    from zsad.cli.console import say

    # A pipe or a file has no width; the table is not to be folded there.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
    rendered = table.render()
    rendered.caption = None
    with console.capture() as captured:
        console.print(rendered)
    say(captured.get().rstrip("\n"))
    for line in table.notes:
        say(f"note: {line}")


def _write(out: Path, table: ResultTable, detector: Detector) -> list[str]:
    import json

    from zsad.device import describe_environment
    from zsad.files import write_json, write_text

    document = {
        **json.loads(table.to_json()),
        "model": detector.name,
        "card": detector.card.model_dump(mode="json"),
        "environment": describe_environment(detector.device),
    }
    write_json(out / "metrics.json", document)
    write_text(out / "metrics.csv", table.to_csv())
    return ["metrics.json", "metrics.csv"]
