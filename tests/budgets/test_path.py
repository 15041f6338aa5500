"""The path of an image is short: how many files run, how often a picture is decoded, how many cards are opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TRACE = """
import json, os, sys, threading
import zsad

root, files, calls = os.path.dirname(zsad.__file__), set(), {}

def trace(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(root) and code.co_name != "<module>":
        name = code.co_filename[len(root) + 1 :]
        if name.endswith(".py"):
            files.add(name)
            calls[f"{name}:{code.co_name}"] = calls.get(f"{name}:{code.co_name}", 0) + 1

def start():
    threading.setprofile(trace)
    sys.setprofile(trace)

"""

OF_ARRAY = """
import numpy
detector = zsad.load("clip-tiny", device="cpu")
picture = numpy.zeros((300, 300, 3), numpy.uint8)
detector.predict(picture)
start()
detector.predict(picture)
sys.setprofile(None)
"""

OF_COMMAND = """
start()
from zsad.cli.main import main
try:
    main(["predict", sys.argv[1], "--out", sys.argv[2], "--device", "cpu"])
except SystemExit as end:
    assert not end.code, end.code
sys.setprofile(None)
"""


def traced(script: str, *words: str | Path) -> tuple[set[str], dict[str, int]]:
    """Return the package's files that run in a fresh process, and the calls of each function."""
    code = TRACE + script + "\nprint('TRACED' + json.dumps([sorted(files), calls]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True
    )
    files, calls = json.loads(done.stdout.rpartition("TRACED")[2])
    return set(files), calls


def test_an_array_runs_few_files() -> None:
    files, calls = traced(OF_ARRAY)
    assert len(files) <= 16, sorted(files)
    assert calls["predict/pipeline.py:read"] == calls["predict/pipeline.py:judge"] == 1


def test_the_command_runs_few_files_decodes_once_and_opens_one_card(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    files, calls = traced(OF_COMMAND, folder, tmp_path / "out")
    assert len(files) <= 45, sorted(files)
    # Each file is opened once; a picture in memory is not checked.
    assert calls["images/open.py:check_file"] == 3
    # That of the model alone: once to build it, once with its tensors.
    assert calls["train/checkpoint.py:_card_in"] == 2
    assert (tmp_path / "out" / "report.html").is_file()
