"""Output of the verbs: results on stdout, everything else on stderr, a progress bar on terminals only."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from zsad.errors import printable as printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

    from zsad.datasets.manifest import DataSet
    from zsad.detector import Detector
    from zsad.errors import ImageError, ZsadError
    from zsad.predict.prediction import Prediction
    from zsad.runs.predict_run import Outcome, RunInputs, RunOptions
    from zsad.types import Sample

_SHRUNK = 4.0  # times a picture is larger than the model's input before it is worth a word


def say(line: str = "") -> None:
    """Prints a line of results. A reader that has gone away (`| head`) does not stop the work."""
    _write(sys.stdout, line)


def note(line: str) -> None:
    """Prints a remark or an error on stderr."""
    _write(sys.stderr, line)


def note_skipped(sample: Sample, error: ZsadError, *, what: str = "skipped") -> None:
    """Prints the reason why a sample cannot be used."""
    note(f"zsad: {what}: {printable(error)}")


def note_data(data: DataSet) -> None:
    """Prints the name, size and layout of a data set."""
    note(f"zsad: {printable(data.name)}: {plural(len(data.samples), 'image')}, layout {data.layout}")


def say_table(table: RenderableType) -> None:
    """Prints a `rich` table, or several with lines between, as results are printed: as wide as the terminal.

    A pipe or a file has no width: there it is 160 columns, unless COLUMNS asks for another.
    """
    from rich.console import Console

    fixed = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal() else 160
    console = Console(file=sys.stdout, width=fixed, highlight=False)
    with console.capture() as captured:
        console.print(table)
    say(captured.get().rstrip("\n"))


def _write(stream: TextIO, line: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = line.encode(encoding, "backslashreplace").decode(encoding)
    try:
        stream.write(text + "\n")
        stream.flush()
    except BrokenPipeError:
        silence(stream)


def open_streams() -> None:
    """Gives a process that was started with closed standard streams ones that lead nowhere.

    Python leaves None in their place; and the numbers of closed streams would go to the next files opened.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - until the end


def silence(stream: TextIO) -> None:
    """Sends what is still written to a stream nowhere."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())
        os.close(sink)
    except (OSError, ValueError):  # a stream without a file, as in tests
        pass


def plural(count: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def clock(seconds: float) -> str:
    """ "4.1 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Advance:
    """Moves a progress bar on by some steps; without a bar it does nothing."""

    def __init__(self, bar: Progress | None = None, *, title: str = "", total: int | None = None) -> None:
        self._bar = bar
        if bar is not None:
            self._task = bar.add_task(title, total=total)
            self._parts = bar.add_task("tiles", visible=False)

    def __call__(self, steps: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, steps)

    def tiles(self, done: int, total: int) -> None:
        """Shows how far a large picture is, in a bar below, until its last tile is done."""
        if self._bar is None:
            return
        if not self._bar.tasks[self._parts].visible:
            self._bar.reset(self._parts)  # the time left is that of this picture
        self._bar.update(self._parts, completed=done, total=total, visible=done < total)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Advance]:
    """A progress bar on stderr where that is a terminal; yields what moves it on by some steps."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Advance()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Lines printed meanwhile go above the bar, unless stdout is a file, where they must stay.
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar:
        yield Advance(bar, title=title, total=total)


class Position:
    """Moves a progress bar to a position, as metrics report it; `done` is where it is."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.done = 0
        self._advance = advance

    def __call__(self, position: int, total: int) -> None:
        """Moves on to `position` of `total`."""
        self._advance(position - self.done)
        self.done = position


class Printer:
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
    path = printable(source.relative_to(base) if source.is_relative_to(base) else source)
    verdict = prediction.verdict or "-"
    judged = f"{prediction.p_value:8.2g}  " if prediction.p_value is not None else ""
    counted = f"{len(prediction.regions):7d}  " if prediction.regions is not None else ""
    return (
        f"{prediction.score:6.3f}  {1000 * prediction.seconds:5.0f} ms  {verdict:<9}  {judged}{counted}{path}"
    )


def shrunk_hint(detector: Detector, prediction: Prediction) -> str | None:
    """Return a line on what is lost of a large picture that is not cut into tiles; None where it is little."""
    # By area: tiles do not help a picture that is long, but thin.
    times = math.sqrt(math.prod(prediction.size) / math.prod(detector.model.preprocess.image_size))
    if detector.view.options.tiling is not None or times <= _SHRUNK:
        return None
    height, width = prediction.size
    patch = max(height / prediction.grid.shape[-2], width / prediction.grid.shape[-1])
    return (
        f"zsad: a picture of {width}x{height} is shrunk {times:.0f} times for the model, a patch of which then covers "
        f"{patch:.0f} pixels: to find what is smaller, add --tile auto, which looks at such pictures in tiles"
    )


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
