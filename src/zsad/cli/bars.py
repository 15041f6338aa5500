"""Shows on a terminal where long work stands: a bar for each stage, and every remark as a line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from zsad.cli.console import note, printable, progress


class Bars:
    """A listener of studies and benchmarks.

    Args:
        shown: whether there are bars; of several processes on one terminal none may have them.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._stage, self._done = "", 0
        self._stack = ExitStack()
        self._advance: Callable[[int], None] = lambda steps: None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes away what is shown."""
        self._stack.close()
        self._stage = ""

    def moved(self, stage: str, done: int, total: int) -> None:
        """Moves the bar of a stage, a new one where the stage is."""
        if not self._shown:
            return
        if stage != self._stage:
            self._stack.close()
            self._stage, self._done = stage, 0
            self._advance = self._stack.enter_context(progress(printable(stage), total))
        self._advance(done - self._done)
        self._done = done

    def remark(self, line: str) -> None:
        """Says a line."""
        note(f"zsad: {printable(line)}")
