"""What `predict` and `demo` print: a line for each image, and what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zsad.cli.console import Advance, clock, note, plural, printable, progress, say
from zsad.cli.input_options import shrunk_hint
from zsad.detector import Detector
from zsad.errors import ImageError, ZsadError
from zsad.predict.prediction import Prediction
from zsad.runs.predict_run import Outcome, RunInputs, RunOptions, RunReporter


class Printer(RunReporter):
    """Prints a line for each image; errors and remarks go to stderr.

    Args:
        detector: whose predictions are printed.
        base: folder below which paths are shown.
        advance: moves the progress bar on.
    """

    def __init__(self, detector: Detector, base: Path, advance: Advance) -> None:
        self._detector, self._base, self._advance = detector, base, advance
        self._printed = self._hinted = False

    def resumed(self, count: int) -> None:
        """Say how many images are not scored again."""
        note(f"zsad: {plural(count, 'image')} of this run finished before, --overwrite starts anew")
        self._advance(count)

    def scored(self, prediction: Prediction) -> None:
        """Print the line of an image; the first large one that was shrunk is worth a remark."""
        if not self._printed:
            self._printed = True
            say(header_line(prediction))
        if not self._hinted and (hint := shrunk_hint(self._detector, prediction)) is not None:
            self._hinted = True
            note(hint)
        say(result_line(prediction, base=self._base))
        self._advance(1)

    def skipped(self, error: ZsadError, *, alone: bool) -> None:
        """Print why an image is skipped."""
        if not alone:
            note(f"zsad: skipped: {printable(error)}")
        self._advance(1)

    def no_overlay(self, error: ImageError) -> None:
        """Print why there is no overlay."""
        note(f"zsad: no overlay: {printable(error)}")

    def tiles(self, done: int, total: int) -> None:
        """Move the bar of a large picture on."""
        self._advance.tiles(done, total)


@contextmanager
def printing(detector: Detector, inputs: RunInputs) -> Iterator[Printer]:
    """Yield what prints the lines of a run, with a progress bar below them."""
    with progress("scoring", len(inputs.samples)) as advance:
        yield Printer(detector, _base([sample.image for sample in inputs.samples]), advance)


def header_line(prediction: Prediction) -> str:
    """Return the headline over the lines of images like this one."""
    judged = f"{'p-value':>8}  " if prediction.p_value is not None else ""
    counted = f"{'regions':>7}  " if prediction.regions is not None else ""
    return f"{'score':>6}  {'time':>8}  {'verdict':<9}  {judged}{counted}image"


def result_line(prediction: Prediction, *, base: Path) -> str:
    """Return the line of one image: score, time of the model, verdict, p-value, regions, path below `base`."""
    source = Path(str(prediction.source))
    shown = printable(source.relative_to(base) if source.is_relative_to(base) else source)
    verdict = prediction.verdict or "-"
    judged = f"{prediction.p_value:8.2g}  " if prediction.p_value is not None else ""
    counted = f"{len(prediction.regions):7d}  " if prediction.regions is not None else ""
    return f"{prediction.score:6.3f}  {1000 * prediction.seconds:5.0f} ms  {verdict:<9}  {judged}{counted}{shown}"


def _base(paths: list[Path]) -> Path:
    """Return the folder against which paths are shown: the working folder, or else the deepest that holds them all."""
    working = Path.cwd()
    if not paths or any(path.is_relative_to(working) for path in paths):
        return working
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # several drives on Windows
        return working


def print_summary(outcome: Outcome, options: RunOptions) -> int:
    """Print what became of a run and what was written; return the exit code: 3 where some images failed."""
    rate = (
        f", {outcome.scored / outcome.seconds:.1f} a second" if outcome.seconds > 0 and outcome.scored else ""
    )
    failed = f", {len(outcome.errors)} skipped as unusable" if outcome.errors else ""
    judged = f", {outcome.anomalous} anomalous" if outcome.anomalous is not None else ""
    say(f"{plural(outcome.scored, 'image')} scored in {clock(outcome.seconds)}{rate}{judged}{failed}")
    if options.report and "report.html" not in outcome.files:
        note("zsad: no report.html: it needs jinja2, get it with: pip install 'zsad[report]'")
    say(f"wrote {', '.join(outcome.files)} into {printable(options.out)}")
    return 3 if outcome.errors else 0
