"""Image AUROC over the form of the fused image score: how much a vote may count, and whose counts how much.

    python benchmarks/systems.py run DATA --work WORK --also SCENES --seeds 111
    python benchmarks/oddness_weights.py DATA --work WORK --also SCENES

Mean over the methods, each trained on one fold and measured on the other one, seed 111; the weight of contrast is 1.
Written to benchmarks/results/oddness_weights.md. Chosen among what the folds hardly tell apart, with the medical
columns in sight: benchmarks/results/README.md, item 5.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from systems import FOLDS, UNSEEN, Bench, fused_run, read_once
from zsad.datasets.manifest import DataSet
from zsad.methods.base import Method
from zsad.methods.fusion import TOP_SHARE, bounded
from zsad.methods.registry import METHODS
from zsad.metrics.functional import auroc
from zsad.nn.oddness import top_mean

MOST = (math.inf, 1.0, 0.5, 0.25)  # that a vote counts, in deviations
OWN = (0.25, 1 / 3, 0.5, 1.0)  # weight of the method's map
ASYMMETRY = (0.25, 0.5, 1.0)
CHOSEN = (0.5, 0.5, 0.5)
Parts = dict[str, tuple[Tensor, Tensor]]


def main() -> None:
    """Reads the command line, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--also", nargs="*", type=Path, default=[])
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if name != "winclip"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "oddness_weights.md")
    options = parser.parse_args()
    bench = Bench(options.work)
    read_once()
    found = {fold: [parts(options, bench, name, fold) for name in options.methods] for fold in FOLDS}
    text = "\n".join(table(found)) + "\n"
    head = (
        "Image AUROC (percent) over the most that a vote counts and the weights of the method's own map and of "
        f"asymmetry in the fused score, that of contrast being 1; mean of {len(options.methods)} methods, seed 111: "
        "`python benchmarks/oddness_weights.py`. In bold: as it is.\n\n"
    )
    options.out.write_text(head + text)
    print(text)


@torch.inference_mode()
def parts(options: argparse.Namespace, bench: Bench, name: str, fold: str) -> Parts:
    """Of every class that a fold's adapter never saw: standardised picture values (B, 1 + J) and labels (B,)."""
    run = fused_run(options, bench, name, fold, 111)
    return {
        f"{dataset.name} / {word}": _values(run.method, bench, dataset, word)
        for dataset in run.others
        for word in sorted({sample.class_name for sample in dataset.samples})
        if len({sample.label for sample in dataset.samples}) == 2
    }


def _values(method: Method, bench: Bench, dataset: DataSet, word: str) -> tuple[Tensor, Tensor]:
    samples = [sample for sample in dataset.samples if sample.class_name == word]
    assert method.fusion is not None
    rows = []
    for _, features in bench.batches(method, samples):
        assert features.cues is not None
        own = method(features).logits.float().mean(dim=1).flatten(1).unsqueeze(1)
        tops = top_mean(torch.cat([own, features.cues], dim=1), TOP_SHARE)
        rows.append((tops - method.fusion.top[:, 0]) / method.fusion.top[:, 1])
    return torch.cat(rows), torch.tensor([sample.label for sample in samples])


def table(found: dict[str, list[Parts]]) -> list[str]:
    """Lines of a table: a row for each bound and pair of weights."""
    lines = [
        "| bound | own map | asymmetry | A to B | B to A | both folds | " + " | ".join(UNSEEN) + " |",
        "|---|---|---|---|---|---|" + "---|" * len(UNSEEN),
    ]
    for form in itertools.product(MOST, OWN, ASYMMETRY):
        most, own, asymmetry = form
        weights = torch.tensor([own, 0.0, 1.0, asymmetry])
        folds = [_mean(found[fold], most, weights) for fold in FOLDS]
        medical = [
            statistics.mean(_mean(found[fold], most, weights, only=name) for fold in FOLDS) for name in UNSEEN
        ]
        cells = ["none" if math.isinf(most) else f"{most:.2f}", f"{own:.2f}", f"{asymmetry:.2f}"]
        cells += [f"{value:.1f}" for value in (*folds, statistics.mean(folds), *medical)]
        if form == CHOSEN:
            cells = [f"**{cell}**" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _mean(methods: Sequence[Parts], most: float, weights: Tensor, *, only: str | None = None) -> float:
    """Mean over methods and classes: those of one set, or those of all but the medical ones."""
    values = [
        100 * auroc((bounded(rows, limit=most) @ weights).numpy(), labels.numpy())
        for classes in methods
        for label, (rows, labels) in classes.items()
        if (label.split(" / ")[0] == only if only else label.split(" / ")[0] not in UNSEEN)
    ]
    return statistics.mean(values)


if __name__ == "__main__":
    main()
