"""The honest numbers of the bundled model: adapters trained on one fold, measured on classes of the other.

Fold A: MVTec (screw, hazelnut), MVTec3D-RGB (tire), CVC-ColonDB. Fold B: MagneticTile, BSData, CrackForest. An adapter
trained on A is measured on B and on BrainMRI, Br35H and BUSI, and the other way round. Nothing is chosen by what is
measured here. Beside the trained adapter stand the same adapter before training and hand-written prompts on the
same frozen features.

    python benchmarks/folds.py run DATA --work DIR [--folds A B] [--seeds 111 112 113]
    python benchmarks/folds.py table --work DIR --out benchmarks/results

DATA holds one folder per data set in MVTec's layout. Image features are computed once for all runs; what is finished is
not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from zsad.clip.weights import Backbone, load_backbone
from zsad.data.image import Preprocess
from zsad.data.loader import iter_batches
from zsad.data.manifest import DataSet, discover
from zsad.methods.base import ImageFeatures, Method
from zsad.methods.registry import build
from zsad.metrics.protocols import evaluate
from zsad.nn.filters import render_map
from zsad.train.cache import content_hash
from zsad.train.checkpoint import BackboneReference, build_method
from zsad.train.config import TrainConfig
from zsad.train.features import open_cache
from zsad.train.loop import CardParts, train
from zsad.types import Sample

FOLDS = {"A": ("MVTec", "MVTec3D-RGB", "CVC-ColonDB"), "B": ("MagneticTile", "BSData", "CrackForest")}
UNSEEN = ("BrainMRI", "Br35H", "BUSI")
# Choices are made inside a fold: (sets to train on, sets to choose by).
INNER = {
    "A-inner": (("MVTec",), ("MVTec3D-RGB", "CVC-ColonDB")),
    "B-inner": (("MagneticTile",), ("BSData", "CrackForest")),
}
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro")
BATCH = 16


@dataclass(slots=True)
class Scored:
    """One image's result, as `evaluate` wants it."""

    source: str
    label: int | None
    score: float
    score_map: np.ndarray

    def canonical_map(self) -> np.ndarray:
        """(H, W) at the model's own size."""
        return self.score_map


class Features:
    """Frozen features of any image, computed once on one backbone and kept."""

    def __init__(self, backbone: Backbone, folder: Path, *, image_size: int) -> None:
        self.method = build("promptmoe", {"image_size": image_size}, backbone).eval()
        size = (image_size, image_size)
        self.preprocess = Preprocess(image_size=size, mean=backbone.preset.mean, std=backbone.preset.std)
        config = TrainConfig(cache_folder=folder)
        cache = open_cache(
            self.method, self.preprocess, backbone_sha256=backbone.sha256, config=config, out=folder
        )
        assert cache is not None  # it is on by default
        self.cache = cache
        self.digests: dict[Path, str] = {}

    def batches(self, samples: Sequence[Sample]) -> Iterator[tuple[list[Sample], ImageFeatures]]:
        """Samples and their features, in order."""
        for start in range(0, len(samples), BATCH):
            chunk = list(samples[start : start + BATCH])
            hashes = [self._digest(sample) for sample in chunk]
            if any(digest not in self.cache for digest in hashes):
                [batch] = iter_batches(chunk, self.preprocess, batch_size=len(chunk))
                with torch.no_grad():
                    self.cache.add(hashes, self.method.features(torch.from_numpy(batch.pixels)))
            yield chunk, self.cache.read(hashes)

    def _digest(self, sample: Sample) -> str:
        if sample.image not in self.digests:
            digest = content_hash(sample.image)
            if digest is None:
                raise SystemExit(f"cannot read {sample.image}")
            self.digests[sample.image] = digest
        return self.digests[sample.image]


class Scorer:
    """A method over kept features."""

    def __init__(self, method: Method, features: Features) -> None:
        self.method, self.features = method.eval(), features

    @torch.inference_mode()
    def predict_samples(self, samples: Sequence[Sample]) -> Iterator[Scored]:
        """What `evaluate` asks a detector for."""
        spec = self.method.map_spec
        layers = len(self.method.config.layers)
        for chunk, features in self.features.batches(samples):
            # Plain CLIP taps the last layer alone.
            own = ImageFeatures(features.patches[:, -layers:], features.cls, features.grid)
            output = self.method(own)
            maps = render_map(output.logits, spec).numpy()
            for sample, score, score_map in zip(chunk, output.score.tolist(), maps, strict=True):
                yield Scored(str(sample.image), sample.label, score, score_map)


def measure(method: Method, features: Features, sets: Sequence[DataSet]) -> dict[str, dict[str, float]]:
    """Every class of every set: its metrics in percent, undefined ones left out."""
    rows = {}
    for dataset in sets:
        for row in evaluate(Scorer(method, features), dataset).rows:
            if row.kind == "class":
                values = {
                    name: row.metrics[name] for name in METRICS if row.metrics[name] == row.metrics[name]
                }
                rows[f"{dataset.name}/{row.name}"] = {name: 100 * value for name, value in values.items()}
    return rows


def run(options: argparse.Namespace) -> None:
    """All chosen folds and seeds, each once."""
    backbone = load_backbone(options.backbone)
    settings = json.loads(options.settings)
    image_size = settings.get("image_size", backbone.preset.detection_size)
    features = Features(backbone, options.work / "features", image_size=image_size)
    if options.features_only:
        folders = [options.data / name for name in (*FOLDS["A"], *FOLDS["B"], *UNSEEN)]
        for dataset in map(discover, [*folders, *options.also]):
            for _ in features.batches(dataset.samples):
                pass
            print(f"features of {len(dataset.samples)} images of {dataset.name}", flush=True)
        return
    for fold in options.folds:
        inner = INNER.get(fold)
        own = inner[0] if inner else FOLDS[fold]
        others = inner[1] if inner else (*FOLDS["B" if fold == "A" else "A"], *UNSEEN)
        trained_on = [*(discover(options.data / name) for name in own), *map(discover, options.also)]
        targets = [discover(options.data / name) for name in others]
        for seed in options.seeds:
            done = options.work / f"{options.name}-{fold}-{seed}.json"
            if done.exists():
                continue
            result = one(options, backbone, features, trained_on, targets, fold=fold, seed=seed)
            done.write_text(json.dumps(result, indent=1))
            print(fold, seed, json.dumps(means(result["trained"])), flush=True)


def one(
    options: argparse.Namespace,
    backbone: Backbone,
    features: Features,
    trained_on: list[DataSet],
    targets: list[DataSet],
    *,
    fold: str,
    seed: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Trained, untrained and hand-written on one fold's targets."""
    settings = json.loads(options.settings)
    config = TrainConfig(seed=seed, **json.loads(options.training), cache_folder=options.work / "features")
    method = build("promptmoe", settings, backbone)
    parts = CardParts(BackboneReference(name=backbone.name, sha256=backbone.sha256), features.preprocess)
    out = options.work / "runs" / f"{options.name}-{fold}-{seed}"
    path = train(method, trained_on, config=config, out=out, card_parts=parts)
    trained, _ = build_method(path, backbone=backbone)
    if fold in INNER:
        return {"trained": measure(trained, features, targets)}
    untrained = build("promptmoe", settings, backbone)
    untrained.reset_parameters(torch.Generator().manual_seed(seed))
    shared = {key: settings[key] for key in ("image_size",) if key in settings}
    result = {
        "trained": measure(trained, features, targets),
        "untrained": measure(untrained, features, targets),
    }
    known = options.work / f"clip-{fold}-{features.preprocess.image_size[0]}-{backbone.sha256[:8]}.json"
    if not known.exists():
        clip = build("clip", shared, backbone)
        known.write_text(json.dumps(measure(clip, features, targets), indent=1))
    result["hand-written"] = json.loads(known.read_text())
    return result


def means(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Macro means over classes: pixel metrics of all with masks, image metrics by kind of set."""
    medical = [name for name in rows if name.split("/")[0] in UNSEEN]
    masked = [name for name in rows if "pixel_auroc" in rows[name]]
    industrial = [name for name in rows if name not in medical and "image_auroc" in rows[name]]
    groups = {
        "pixel AUROC": (masked, "pixel_auroc"),
        "pixel AP": (masked, "pixel_ap"),
        "PRO": (masked, "pixel_pro"),
        "image AUROC, industrial": (industrial, "image_auroc"),
        "image AUROC, medical": (medical, "image_auroc"),
    }
    return {
        title: round(statistics.mean(rows[name][metric] for name in names), 2)
        for title, (names, metric) in groups.items()
        if names
    }


VARIANTS = ("hand-written", "untrained", "trained")


def table(options: argparse.Namespace) -> None:
    """Markdown and JSON of all that was run: mean and deviation over seeds."""
    found = sorted(options.work.glob(f"{options.name}-[AB]-*.json"))
    results = {tuple(path.stem.split("-")[-2:]): json.loads(path.read_text()) for path in found}
    if not results:
        raise SystemExit(f"nothing to show in {options.work}")
    seeds = sorted({seed for _, seed in results})
    lines = ["| what | prompts | A to B | B to A | mean |", "|---|---|---|---|---|"]
    summary: dict[str, dict[str, list[float]]] = {}
    for title in means(next(iter(results.values()))["trained"]):
        for variant in VARIANTS:
            columns = {
                fold: [
                    means(results[fold, seed][variant])[title] for seed in seeds if (fold, seed) in results
                ]
                for fold in FOLDS
            }
            both = [statistics.mean(pair) for pair in zip(*columns.values(), strict=False)]
            summary[f"{title}, {variant}"] = {**columns, "mean": both}
            cells = " | ".join(_cell(values) for values in (*columns.values(), both))
            lines.append(f"| {title} | {variant} | {cells} |")
    classes = ["| class | " + " | ".join(METRICS) + " |", "|---|" + "---|" * len(METRICS)]
    for name in sorted({name for result in results.values() for name in result["trained"]}):
        rows = [result["trained"][name] for result in results.values() if name in result["trained"]]
        cells = " | ".join(_cell([row[metric] for row in rows if metric in row]) for metric in METRICS)
        classes.append(f"| {name} | {cells} |")
    options.out.mkdir(parents=True, exist_ok=True)
    text = f"Seeds {', '.join(seeds)}; mean ± deviation over seeds, in percent.\n\n"
    (options.out / "folds.md").write_text(
        text + "\n".join(lines) + "\n\nTrained:\n\n" + "\n".join(classes) + "\n"
    )
    (options.out / "folds.json").write_text(
        json.dumps(
            {"summary": summary, "classes": {"-".join(key): value for key, value in results.items()}},
            indent=1,
        )
    )
    print("\n".join(lines))


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("run")
    first.add_argument("data", type=Path)
    first.add_argument("--backbone", default="zsad-tiny")
    first.add_argument("--folds", nargs="+", default=list(FOLDS), choices=[*FOLDS, *INNER])
    first.add_argument("--seeds", nargs="+", type=int, default=[111, 112, 113])
    first.add_argument(
        "--also", nargs="*", type=Path, default=[], help="further sets to train on, in both folds"
    )
    first.add_argument("--features-only", action="store_true", help="only compute the image features")
    first.add_argument("--settings", default="{}", help="the method's settings as JSON")
    first.add_argument("--training", default="{}", help="training settings as JSON")
    second = verbs.add_parser("table")
    second.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    for verb in (first, second):
        verb.add_argument("--work", type=Path, required=True)
        verb.add_argument("--name", default="promptmoe")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    (run if options.verb == "run" else table)(options)


if __name__ == "__main__":
    main()
