"""Progress bars of long work on a terminal, one for each stage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from zsad.cli.console import printable, progress


class ProgressBars:
    """A progress callback that shows a bar for the present stage."""

    def __init__(self) -> None:
        self._stage, self._done = "", 0
        self._stack = ExitStack()
        self._advance: Callable[[int], None] = lambda steps: None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        self._stack.close()
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage; a new stage has a new bar."""
        if stage != self._stage:
            self._stack.close()
            self._stage, self._done = stage, 0
            self._advance = self._stack.enter_context(progress(printable(stage), total))
        self._advance(done - self._done)
        self._done = done
