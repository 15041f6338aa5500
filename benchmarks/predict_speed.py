"""Images a second and peak memory of `zsad predict`, as a whole process, at several folder sizes.

Pictures are drawn by `zsad.synth`, so anyone gets the same ones. The rate is taken between the smallest and the
largest folder, so that the start of Python and the loading of the model do not count; it stands beside the plain one.

    python benchmarks/predict_speed.py [--model promptmoe-tiny] [--counts 50 400] [--side 512] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from zsad import synth


def draw(folder: Path, count: int, side: int) -> None:
    """`count` JPEG files."""
    folder.mkdir(parents=True)
    for index in range(count):
        scene = synth.generate(np.random.default_rng(index), size=(side, side))
        Image.fromarray(scene.image).save(folder / f"{index:05d}.jpg", quality=92)


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watched, peak = psutil.Process(process.pid), 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.Error:
                return
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed; run it to see why")
    seconds = time.perf_counter() - start
    thread.join()
    return seconds, peak / 1e6


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="promptmoe-tiny")
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 400])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in sorted(options.counts):
            folder = Path(scratch) / str(count)
            draw(folder, count, options.side)
            command = [sys.executable, "-m", "zsad", "predict", str(folder), "--model", options.model]
            seconds, peak = measure([*command, "--out", str(Path(scratch) / f"out{count}")])
            rows.append({"images": count, "seconds": seconds, "a_second": count / seconds, "peak_mb": peak})
            print(
                f"{count} images: {seconds:.1f} s, {count / seconds:.1f} a second, peak {peak:.0f} MB",
                flush=True,
            )
    first, last = rows[0], rows[-1]
    if last is not first:
        steady = (last["images"] - first["images"]) / (last["seconds"] - first["seconds"])
        print(f"once started: {steady:.1f} a second on {os.cpu_count()} cores")
        rows.append({"steady_a_second": steady})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
