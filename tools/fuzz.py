"""Breaks inputs on purpose and sees that zsad bears it: pictures, models, listings, requests to the service.

    python tools/fuzz.py                      (a thousand of each kind, seed 0)
    python tools/fuzz.py models --count 200 --seed 7

Every input has to end in one clear line or in a right answer: never in a traceback, never in a hang, never in a file
outside the output folder. Ends with 1, and with a line each, where one does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import random
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from zsad_fuzz.seeds import Sound
from zsad_fuzz.service import fuzz_requests
from zsad_fuzz.targets import TARGETS
from zsad_fuzz.trial import Ledger

_MEMORY = 12 * 2**30  # address space: what asks for more than that of a broken file is told in time
KINDS = {**TARGETS, "requests": fuzz_requests}


def _writers() -> Any:
    """The tests' tiny model and drawn data set."""
    path = Path(__file__).resolve().parents[1] / "tests" / "conftest.py"
    spec = importlib.util.spec_from_file_location("zsad_tests_conftest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_sound(folder: Path, *, export: bool = True) -> Sound:
    """A tiny random model with all the files that a model may have, and a data set."""
    from zsad.cli.main import main

    writers = _writers()
    backbone = writers.write_backbone(folder / "backbone")
    model = writers.write_model(folder / "model", backbone)
    images = writers.write_images(folder / "images")
    data = writers.write_set(folder / "drawn", seed=0, count=6)
    said = io.StringIO()

    def command(*words: object) -> None:
        with redirect_stdout(said), redirect_stderr(said):
            code = main([str(word) for word in words])
        if code != 0:
            raise SystemExit(f"cannot prepare the sound files: {said.getvalue()}")

    command("calibrate", model, "--normals", images, "--target-fpr", "0.2")
    run = folder / "run"
    words = ("--model", model, "--calibration", "none", "--references", images)
    command("predict", images, *words, "--out", run, "--no-report")
    graph = folder / "graph" if export else None
    if graph is not None:
        command("export", model, "--to", "onnx", "--out", graph, "--images", images, "--count", 2)
    return Sound(model, backbone, images, run / "references.safetensors", graph, data)


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; by default all")
    parser.add_argument("--count", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120, help="an attempt may take")
    parser.add_argument("--processes", type=int, default=50, help="every so-manieth is a process of its own")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(KINDS)}")
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    root = Path(tempfile.mkdtemp(prefix="zsad-fuzz-"))
    try:
        (root / "case").mkdir()
        os.chdir(root / "case")
        sound = make_sound(root / "sound")
        ledger = Ledger(root, seconds=options.seconds, processes=options.processes)
        for kind in options.kinds or KINDS:
            start = time.perf_counter()
            KINDS[kind](ledger, sound, options.count, random.Random(f"{kind} {options.seed}"))
            print(f"{kind}: {options.count} in {time.perf_counter() - start:.0f} s", flush=True)
    finally:
        os.chdir("/")
        shutil.rmtree(root, ignore_errors=True)
    for kind, count in ledger.tried.items():
        print(f"{kind}: {count} tried, {ledger.refused[kind]} refused in a line, the rest answered")
    print(f"{len(ledger.failures)} to mend")
    return 1 if ledger.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
