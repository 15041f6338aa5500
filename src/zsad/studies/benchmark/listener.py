"""Who is told of long work while it goes on."""

from __future__ import annotations

from typing import Protocol

from zsad.train.loop import Progress


class Listener(Protocol):
    """What is told of a study or a benchmark while it runs."""

    def moved(self, stage: str, done: int, total: int) -> None: ...
    def remark(self, line: str) -> None: ...


class Told:
    """Passes on where a training stands, and keeps what it left out."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.broken = 0
        self.left_out: list[str] = []

    def __call__(self, now: Progress) -> None:
        if now.stage == "samples":
            self.broken += now.broken
            self.left_out += [line for line in now.notes if line.startswith("left out")]
        elif now.stage != "finished":
            self._listener.moved(_STAGES[now.stage], now.done, now.total)


_STAGES = {"features": "reading features", "train": "training", "scale": "taking the colour scale"}
