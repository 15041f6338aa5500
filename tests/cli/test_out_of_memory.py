"""Running out of memory is an error like others: one line, and the exit code of errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from zsad.cli.main import explain

resource = pytest.importorskip("resource")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: cannot allocate memory in static TLS block"),
    ],
)
def test_memory_that_ends_is_told_in_one_line(error: Exception) -> None:
    message, code = explain(error)
    assert (
        code == 2 and message.startswith("out of memory; use a smaller --batch-size") and "\n" not in message
    )


def test_a_low_limit_is_told_before_libraries_end_the_process(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    command = "from zsad.cli.main import main; raise SystemExit(main())"
    run = subprocess.run(
        [sys.executable, "-c", command, "predict", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (900_000_000, 900_000_000)),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and "limited to 900 MB" in run.stderr
