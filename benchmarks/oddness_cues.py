"""What each cue of oddness is worth alone on the bundled backbone: no text, no training, no other image.

    python benchmarks/systems.py features DATA --work DIR --also SCENES --methods clip
    python benchmarks/oddness_cues.py DATA --work DIR

Each cue's grid is upsampled and smoothed as a method's is; the image score is the mean of its highest 2.5 % of patches.
Written to benchmarks/results/oddness_cues.md. The cues were chosen by the sets with masks and normal images, folds A
and B; BrainMRI, Br35H and BUSI were looked at afterwards.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from systems import FOLDS, UNSEEN, Bench, read_once
from zsad.datasets.manifest import discover
from zsad.methods.fusion import TOP_SHARE
from zsad.metrics.evaluation import evaluate
from zsad.nn.maps import MapSpec
from zsad.nn.oddness import CUES, top_mean
from zsad.predict.prediction import Prediction
from zsad.types import Sample

BATCH = 64
METRICS = ("pixel_auroc", "pixel_pro", "image_auroc")


class CueScorer:
    """A cue as if it were a method."""

    def __init__(self, bench: Bench, cue: int) -> None:
        self.bench, self.cue = bench, cue
        self.spec = MapSpec(size=bench.preprocess.image_size)

    def predict_samples(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """What `evaluate` asks a detector for."""
        stems = self.bench.stems
        for start in range(0, len(samples), BATCH):
            chunk = samples[start : start + BATCH]
            cues = stems.cues([stems.digest(sample) for sample in chunk])[:, self.cue]
            scores = top_mean(cues, TOP_SHARE).tolist()
            grids = 10 * cues.reshape(-1, 1, *stems.grid).numpy()  # as logits: the map's order is the cue's
            for sample, score, grid in zip(chunk, scores, grids, strict=True):
                grid = np.ascontiguousarray(grid)
                yield Prediction(
                    str(sample.image), self.spec.size, score, None, 0.0, grid, self.spec, sample=sample
                )


def main() -> None:
    """Reads the command line, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "oddness_cues.md")
    options = parser.parse_args()
    bench = Bench(options.work)
    read_once()
    sets = [discover(options.data / name) for name in (*FOLDS["A"], *FOLDS["B"], *UNSEEN)]
    found: dict[str, list[dict[str, float]]] = {}
    for index, _ in enumerate(CUES):
        for dataset in sets:
            for row in evaluate(CueScorer(bench, index), dataset).rows:
                if row.kind == "class":
                    found.setdefault(f"{dataset.name} / {row.name}", []).append(row.metrics)
    text = "\n".join(table(found)) + "\n"
    print(text)
    options.out.write_text(
        "Pixel AUROC, PRO and image AUROC (percent) of each cue alone: `python benchmarks/oddness_cues.py`.\n\n"
        + text
    )


def table(found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """Lines of Markdown: a row for each class, and the mean of those with masks and normal images."""
    yield "| class | " + " | ".join(CUES) + " |"
    yield "|---|" + "---|" * len(CUES)
    for name, rows in found.items():
        yield f"| {name} | " + " | ".join(_cell(row) for row in rows) + " |"
    whole = [
        rows
        for rows in found.values()
        if all(row[metric] == row[metric] for row in rows for metric in METRICS)
    ]
    means = [
        {metric: statistics.mean(rows[index][metric] for rows in whole) for metric in METRICS}
        for index in range(len(CUES))
    ]
    yield f"| mean of the {len(whole)} with masks and normals | " + " | ".join(map(_cell, means)) + " |"


def _cell(row: dict[str, float]) -> str:
    return " / ".join("-" if row[metric] != row[metric] else f"{100 * row[metric]:.1f}" for metric in METRICS)


if __name__ == "__main__":
    main()
