"""What the verbs say: results on stdout, everything else on stderr, a progress bar on terminals only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from zsad.errors import printable as printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress


def say(line: str = "") -> None:
    """Prints a line of results. A reader that has gone away (`| head`) does not stop the work."""
    _write(sys.stdout, line)


def note(line: str) -> None:
    """Prints a remark or an error on stderr."""
    _write(sys.stderr, line)


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
