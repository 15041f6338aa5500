"""What normal references and mutual comparison add to a zero-shot model, on a class of a data set in MVTec's layout.

    python benchmarks/few_shot.py MVTEC/hazelnut MVTEC/screw [--shots 1 4] [--seeds 3] [--thin 1]

References are drawn from test/good (three draws) and left out of the measurement, for every row alike within a draw.
`--thin 3` measures every third defective image. Each image goes through the tower once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from zsad.comparison.batch import Mutual
from zsad.comparison.compare import Comparison, fuse, look_closely, picture_key
from zsad.comparison.references import collect_references
from zsad.detector import Detector
from zsad.images.decode import load_image
from zsad.images.inputs import walk_images
from zsad.images.masks import load_mask
from zsad.loading import load
from zsad.nn.maps import render_map_numpy

STEP = 4  # pixels of the map that are measured: every fourth a side


class Seen:
    """One image: pixels for the model, features, what the model says, its mask at the map's size."""

    def __init__(self, detector: Detector, path: Path) -> None:
        self.pixels = detector.model.preprocess(load_image(path, target=detector.model.preprocess.image_size))
        with torch.inference_mode():
            features, self.kinds = look_closely(detector.method, torch.from_numpy(self.pixels[None]))
            self.output = detector.method.predict(features)
        self.key, self.label = picture_key(self.pixels), int(path.parent.name != "good")
        size = detector.backend.spec.size
        self.mask = np.zeros(size, bool)
        if self.label:
            folder = path.parents[2] / "ground_truth" / path.parent.name
            self.mask = load_mask(next(folder.glob(f"{path.stem}*")), size=size)

    def said(self, detector: Detector, comparison: Comparison | None) -> tuple[float, np.ndarray]:
        """Score and map."""
        output = self.output
        if comparison is not None:
            with torch.inference_mode():
                output = fuse(detector.method, output, comparison, self.kinds, [self.key])
        values = render_map_numpy(output.logits[0].numpy(), detector.backend.spec)
        return float(output.score[0]), values[::STEP, ::STEP]


def measured(detector: Detector, images: Sequence[Seen], comparison: Comparison | None) -> list[float]:
    """Image AUROC and AP, pixel AUROC and AP, in percent."""
    said = [image.said(detector, comparison) for image in images]
    labels, scores = [image.label for image in images], [score for score, _ in said]
    truth = np.concatenate([image.mask[::STEP, ::STEP].ravel() for image in images])
    values = np.concatenate([each.ravel() for _, each in said])
    pairs = ((labels, scores), (truth, values))
    return [100 * rule(*pair) for pair in pairs for rule in (roc_auc_score, average_precision_score)]


def main() -> None:
    """Prints a table a class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("classes", nargs="+", type=Path)
    parser.add_argument("--model", default="promptmoe-tiny")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--thin", type=int, default=1)
    options = parser.parse_args()
    detector = load(options.model, device="cpu", calibration=None)
    for folder in options.classes:
        paths = sorted(walk_images(folder / "test"))
        bad = [path for path in paths if path.parent.name != "good"][:: options.thin]
        images = [Seen(detector, path) for path in paths if path.parent.name == "good"]
        images += [Seen(detector, path) for path in bad]
        good = [number for number, image in enumerate(images) if not image.label]
        found: dict[str, list[list[float]]] = {}
        for seed in range(options.seeds):
            drawn = np.random.default_rng(seed).permutation(good)
            for shots in options.shots:
                own = set(drawn[:shots].tolist())
                rest = [image for number, image in enumerate(images) if number not in own]
                taken = [[images[number].pixels] for number in own]
                found.setdefault(f"zero-shot (without those {shots})", []).append(
                    measured(detector, rest, None)
                )
                for scale in ("standard", "distance"):
                    memory = collect_references(detector.method, taken, scale=scale)  # type: ignore[arg-type]
                    found.setdefault(f"{shots} references, {scale}", []).append(
                        measured(detector, rest, memory)
                    )
        batch = [
            (image.key, [kind[0] for kind in image.kinds]) for image in images[:: max(1, len(images) // 64)]
        ]
        found["zero-shot (all)"] = [measured(detector, images, None)]
        found[f"mutual, {len(batch)} others"] = [measured(detector, images, Mutual(batch))]
        print(f"\n{folder.name}: {len(good)} normal, {len(bad)} defective\n")
        print("| | image AUROC | image AP | pixel AUROC | pixel AP |\n|---|---|---|---|---|", flush=True)
        for name, rows in found.items():
            print(
                f"| {name} | " + " | ".join(f"{value:.1f}" for value in np.mean(rows, axis=0)) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
