"""One attempt of the command, and what must hold of it however broken its input is."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

CODES = (0, 2, 3, 4)
_SHOWN = 600


class Hang(BaseException):
    """An attempt took longer than it may; no `except Exception` swallows it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `Hang` in the main thread after so many seconds."""

    def ring(_: int, __: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Ledger:
    """What was tried, and what went wrong.

    Attributes:
        folder: all that is written must lie in its `out`.
        seconds: an attempt may take.
        processes: every so-manieth attempt runs as a process of its own; 0: none.
        tried: inputs by their kind.
        refused: of these, how many were refused.
        failures: a line each.
    """

    folder: Path
    seconds: float = 120.0
    processes: int = 0
    tried: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    attempts: int = 0

    def count(self, kind: str, *, refused: bool, inputs: int = 1) -> None:
        """Notes inputs that ended as they should."""
        self.tried[kind] = self.tried.get(kind, 0) + inputs
        self.refused[kind] = self.refused.get(kind, 0) + inputs * refused

    def fail(self, case: str, reason: str) -> None:
        """Notes what must not be."""
        self.failures.append(f"{case}: {' '.join(reason.split())[-_SHOWN:]}")
        print(self.failures[-1], file=sys.__stderr__, flush=True)

    def run(self, case: str, *arguments: str | Path) -> tuple[int, str]:
        """Runs the command; returns its exit code and what it said on stderr, both checked."""
        self.attempts += 1
        words = [str(argument) for argument in arguments]
        before = snapshot(self.folder)
        if self.processes and self.attempts % self.processes == 0 and not any("\0" in word for word in words):
            code, said = self._process(case, words)
        else:
            code, said = self._call(case, words)
        for name in sorted(before ^ snapshot(self.folder)):
            self.fail(case, f"{name} was written or changed outside the output folder")
        if code not in CODES:
            self.fail(case, f"exit code {code}: {said}")
        elif "Traceback" in said or "internal error" in said:
            self.fail(case, said)
        elif code == 2:
            lines = said.splitlines()
            errors = [line for line in lines if line.startswith("zsad: error: ")]
            told = len(errors) == 1 and len(errors[0]) > 25
            if not told and not any(line.startswith("zsad: problem: ") for line in lines):
                self.fail(case, f"{len(errors)} error lines: {said}")
        return code, said

    def _call(self, case: str, words: list[str]) -> tuple[int, str]:
        from zsad.cli.main import main

        said = io.StringIO()
        try:
            with (
                time_limit(self.seconds),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(said),
                _debuggable(),
            ):
                return main(words), said.getvalue()
        except Hang:
            self.fail(case, f"no end after {self.seconds:g} s")
            return 2, "zsad: error: so that it is counted once\n"
        except BaseException as error:
            self.fail(case, "".join(traceback.format_exception(error)[-4:]))
            return 2, "zsad: error: so that it is counted once\n"

    def _process(self, case: str, words: list[str]) -> tuple[int, str]:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "zsad", *words],
                capture_output=True,
                timeout=2 * self.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self.fail(case, f"no end after {2 * self.seconds:g} s")
            return 2, "zsad: error: so that it is counted once\n"
        return done.returncode, done.stderr.decode("utf-8", "replace")


@contextlib.contextmanager
def _debuggable() -> Iterator[None]:
    """Lets bugs through with their traceback; what users can put right is told as ever."""
    from zsad.cli import main as module

    told = module.explain

    def explain(error: Exception) -> tuple[str, int]:
        message, code = told(error)
        if code == 1:
            raise error
        return message, code

    module.explain = explain
    try:
        yield
    finally:
        module.explain = told


def snapshot(folder: Path) -> set[Any]:
    """Names, sizes and times of all files below a folder and beside it, but for its `out`."""
    found = set()
    for root, folders, files in os.walk(folder):
        if Path(root) == folder and "out" in folders:
            folders.remove("out")
        for name in (*files, *folders):
            path = Path(root) / name
            with contextlib.suppress(OSError):
                facts = path.lstat()
                size = (facts.st_size, facts.st_mtime_ns) if name in files else ()
                found.add((str(path), size))
    return found
