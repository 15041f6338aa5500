"""One defect of 40 pixels in a picture of 12,000 x 9,000: is it found by tiles, in what time, in how much memory?

    python benchmarks/large_image.py --make /tmp/large          (draws the two pictures)
    python benchmarks/large_image.py /tmp/large                 (scores both, each in a process of its own)

Says whether the highest point of the map lies within the defect, and the scores with and without it. The model is the
bundled one; `--model`, `--tile` and `--backend` change that. Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def draw(size: tuple[int, int], *, defect: int | None, seed: int = 0) -> tuple[Image.Image, tuple[int, int]]:
    """A brushed plate (H,W) with a dark pit of `defect` pixels, and where its centre (x,y) is; drawn row by row."""
    rng = np.random.default_rng(seed)
    height, width = size
    streaks = rng.normal(0, 5, height).astype(np.float32)
    slow = np.linspace(-6, 6, width, dtype=np.float32)
    canvas = Image.new("RGB", (width, height))
    for top in range(0, height, 500):
        rows = streaks[top : top + 500, None] + slow + rng.normal(0, 3, (min(500, height - top), width))
        grey = np.clip(150 + rows, 0, 255).astype(np.uint8)
        canvas.paste(Image.fromarray(grey).convert("RGB"), (0, top))
    centre = (int(0.62 * width), int(0.37 * height))
    if defect is not None:
        x, y, r = *centre, defect // 2
        part = canvas.crop((x - 2 * r, y - 2 * r, x + 2 * r, y + 2 * r))
        ImageDraw.Draw(part).ellipse((r, r, 3 * r, 3 * r), fill=(58, 44, 36))
        canvas.paste(part.filter(ImageFilter.GaussianBlur(1.2)), (x - 2 * r, y - 2 * r))
    return canvas, centre


def score(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Scores one picture; memory in MB."""
    from zsad.loading import load

    detector = load(options.model, device="cpu", backend=options.backend)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, cpu = time.perf_counter(), time.process_time()
    found = detector.predict(path, tile=options.tile)
    values = found.canonical_map()
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return {
        "score": found.score,
        "x": (column + 0.5) * found.size[1] / values.shape[1],
        "y": (row + 0.5) * found.size[0] / values.shape[0],
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "loaded_mb": before,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def make(folder: Path, *, size: tuple[int, int], defect: int) -> None:
    """Draws good.jpg and pit.jpg."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pit in (("good", None), ("pit", defect)):
        picture, centre = draw(size, defect=pit)
        picture.save(folder / f"{name}.jpg", quality=92)
    (folder / "truth.json").write_text(json.dumps({"centre": centre, "defect": defect, "size": size}))


def main() -> int:
    """Runs the comparison; 1 where the defect is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--size", default="9000x12000", help="rows x columns")
    parser.add_argument("--defect", type=int, default=40)
    parser.add_argument("--model", default="promptmoe-tiny")
    parser.add_argument("--tile", default="auto")
    parser.add_argument("--backend", default=None)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(score(options.one, options)))
        return 0
    if options.make:
        height, width = (int(side) for side in options.size.split("x"))
        make(options.folder, size=(height, width), defect=options.defect)
        return 0
    truth = json.loads((options.folder / "truth.json").read_text())
    found = {}
    for name in ("good", "pit"):
        path = options.folder / f"{name}.jpg"
        run = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--one", str(path)], check=True, capture_output=True
        )
        found[name] = json.loads(run.stdout.splitlines()[-1])
    print("| picture | score | highest at | time | processor time | peak memory |\n|---|---|---|---|---|---|")
    for name, row in found.items():
        place = f"{row['x']:.0f}, {row['y']:.0f}"
        print(
            f"| {name} | {row['score']:.4f} | {place} | {row['seconds']:.0f} s | {row['cpu']:.0f} s "
            f"| {row['peak_mb']:.0f} MB |"
        )
    pit, (x, y) = found["pit"], truth["centre"]
    hit = max(abs(pit["x"] - x), abs(pit["y"] - y)) <= truth["defect"] / 2
    print(
        f"defect at {x}, {y}: {'found' if hit else 'missed'}, score {pit['score'] - found['good']['score']:+.4f}"
    )
    return 0 if hit and pit["score"] > found["good"]["score"] else 1


if __name__ == "__main__":
    sys.exit(main())
