"""Every system on the bundled backbone: trained on one fold, measured on classes it never saw.

Fold A: MVTec (screw, hazelnut), MVTec3D-RGB (tire), CVC-ColonDB. Fold B: MagneticTile, BSData, CrackForest. An adapter
trained on A is measured on B and on BrainMRI, Br35H and BUSI, and the other way round; methods without training are
measured on the same. Nothing is chosen by what is measured here: choices are made inside a fold (A-inner, B-inner).

    python benchmarks/systems.py features DATA --work DIR --also SCENES
    python benchmarks/systems.py run DATA --work DIR --also SCENES [--methods ...] [--folds A B] [--seeds 111 112 113]
    python benchmarks/systems.py table --work DIR

DATA holds one folder per data set in MVTec's layout. Settings come from `tools/recipes.toml`, whence the shipped
adapters have theirs. The stem of the image tower runs once for all methods, each method's frozen features are computed
once for all runs, and what is finished is not run again. An adapter is trained without the fusion of oddness, which
changes nothing in training, then measured without it (`plain`) and with it (`fused`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from stem_cache import StemCache
from zsad.card import BackboneReference
from zsad.clip.weights import Backbone, load_backbone
from zsad.datasets.catalog import domain_of
from zsad.datasets.manifest import DataSet, discover
from zsad.images import masks as image_masks
from zsad.images.picture import Preprocess
from zsad.methods.base import ImageFeatures, Method
from zsad.methods.registry import METHODS, build
from zsad.metrics import evaluation
from zsad.predict.prediction import Prediction
from zsad.train import samples as training_samples
from zsad.train.checkpoint import build_method, read_card, save_checkpoint
from zsad.train.feature_cache import FeatureCache
from zsad.train.features import cache_key
from zsad.train.fitting import colour_scale, fit_fusion
from zsad.train.loop import train
from zsad.train.samples import TrainingBatch, TrainingSet
from zsad.train.train_config import TrainConfig
from zsad.train.training_card import CardParts, card_of, training_of
from zsad.types import Sample

FOLDS = {"A": ("MVTec", "MVTec3D-RGB", "CVC-ColonDB"), "B": ("MagneticTile", "BSData", "CrackForest")}
UNSEEN = ("BrainMRI", "Br35H", "BUSI")
# Choices are made inside a fold: (sets to train on, sets to choose by).
INNER = {
    "A-inner": (("MVTec",), ("MVTec3D-RGB", "CVC-ColonDB")),
    "B-inner": (("MagneticTile",), ("BSData", "CrackForest")),
}
FORMS = {
    "plain": "As the papers have them",
    "fused": "With oddness within the picture fused in, on scales of the training folds",
}
BOTH = "AB"  # the adapters that ship are trained on both folds; nothing is left to measure them on
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro")
COLUMNS = {"pixel AUROC": "pixel_auroc", "PRO": "pixel_pro", "image AUROC": "image_auroc"}
RECIPES = Path(__file__).parent.parent / "tools" / "recipes.toml"
BATCH = 16


def recipe(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of a method on the bundled backbone, and of its training."""
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    table = toml.loads(RECIPES.read_text(encoding="utf-8"))
    own = table.get(name, {})
    defaults = METHODS[name].load().training_defaults if name in METHODS else {}
    training = {**defaults, **table["common"]["training"], **own.get("training", {})}
    return {**table["common"]["settings"], **own.get("settings", {})}, training


class Bench:
    """One backbone, its images' stems, and the features of any method on it."""

    def __init__(self, work: Path, *, backbone: str = "zsad-tiny") -> None:
        self.work = work
        self.backbone: Backbone = load_backbone(backbone)
        preset = self.backbone.preset
        self.preprocess = Preprocess(
            image_size=(preset.detection_size,) * 2, mean=preset.mean, std=preset.std
        )
        self.parts = CardParts(
            BackboneReference(name=self.backbone.name, sha256=self.backbone.sha256), self.preprocess
        )
        key = f"{self.backbone.sha256}/{self.preprocess.fingerprint()}"
        self.stems = StemCache(self.backbone.clip.visual, work / "stem", self.preprocess, key=key)

    def config(self, training: dict[str, Any], *, seed: int = 111) -> TrainConfig:
        """Training settings with the shared cache."""
        known = {name: value for name, value in training.items() if value is not None}
        return TrainConfig(**{**known, "seed": seed}, cache_folder=self.work / "features", cache_limit_gb=200)

    def batches(
        self, method: Method, samples: Sequence[Sample]
    ) -> Iterator[tuple[list[Sample], ImageFeatures]]:
        """Samples and their features, in order; computed where not kept."""
        cache = self._cache(method)
        for start in range(0, len(samples), BATCH):
            chunk = list(samples[start : start + BATCH])
            hashes = [self.stems.digest(sample) for sample in chunk]
            if any(digest not in cache for digest in hashes):
                with torch.no_grad():
                    cache.add(hashes, method.features(self.stems.patches(hashes)))
            words = tuple(sample.word_for(method.name) for sample in chunk)
            features = replace(cache.read(hashes), object_names=words)
            yield chunk, replace(features, cues=self.stems.cues(hashes)) if method.fusion else features
        cache.close()

    def _cache(self, method: Method) -> FeatureCache:
        """That of the method's features without cues, which lie with the stems."""
        key = cache_key(method, self.preprocess, backbone_sha256=self.backbone.sha256, cues=False)
        return FeatureCache(self.work / "features", key_parts=key)

    def method(self, name: str, changes: dict[str, Any]) -> Method:
        """A method with its recipe's settings and some changes."""
        return build(name, {**recipe(name)[0], **changes}, self.backbone).eval()


class KeptSource:
    """Training samples' kept features, for what is fitted behind a training."""

    def __init__(self, method: Method, bench: Bench, config: TrainConfig) -> None:
        self.method, self.bench, self.config = method, bench, config

    def batches(self, training: TrainingSet, order: Sequence[Sequence[int]]) -> Iterator[TrainingBatch]:
        """As `FeatureSource.batches`."""
        for rows in order:
            [(_, features)] = self.bench.batches(self.method, [training.items[row].sample for row in rows])
            yield TrainingBatch(features, training.masks(rows), training.labels(rows))


def fused(
    plain: Method, name: str, bench: Bench, sets: Sequence[DataSet], config: TrainConfig
) -> tuple[Method, TrainingSet]:
    """A method with oddness fused in, fitted to the sets, and the samples that it was fitted to."""
    settings = {**plain.config.model_dump(), "oddness": "fused"}
    method = build(name, settings, bench.backbone).eval()
    method.load_adapter({**method.adapter_state(), **plain.adapter_state()})
    samples = [sample for dataset in sets for sample in dataset.samples]
    training = training_samples.prepare(samples, config=config, size=method.train_map_size)
    source: Any = KeptSource(method, bench, config)
    fit_fusion(source, training, report=_quiet)
    return method, training


@dataclass(frozen=True, slots=True)
class FusedRun:
    """A method as `run` left it, fused, with what it was fitted to and the sets that it never saw."""

    method: Method
    training: TrainingSet
    config: TrainConfig
    others: list[DataSet]


def fused_run(options: argparse.Namespace, bench: Bench, name: str, fold: str, seed: int) -> FusedRun:
    """What `run` with the same `data`, `work` and `also` trained, with oddness fused in."""
    own, others = targets(fold, options.data)
    config = bench.config(recipe(name)[1], seed=seed)
    if METHODS[name].needs_training:
        file = options.work / "runs" / f"{name}-{fold}-{seed}" / "model.safetensors"
        plain, _ = build_method(file, backbone=bench.backbone)
    else:
        plain = bench.method(name, {"oddness": "off"})
    method, training = fused(plain, name, bench, [*own, *map(discover, options.also)], config)
    return FusedRun(method, training, config, others)


def save_fused(
    method: Method,
    training: TrainingSet,
    bench: Bench,
    sets: Sequence[DataSet],
    config: TrainConfig,
    run: Path,
) -> None:
    """Writes a fused adapter into its run's folder `fused`, as training it with the fusion would have."""
    source: Any = KeptSource(method, bench, config)
    method.map_scale = colour_scale(source, training, report=_quiet)
    card = read_card(run / "model.safetensors")
    assert card.training is not None
    own = training_of(training, sets, config=config, steps=card.training.steps)
    save_checkpoint(run / "fused" / "model.safetensors", method, card_of(method, bench.parts, training=own))


def _quiet(done: int, total: int) -> None:
    """Progress of what takes seconds."""


class Scorer:
    """A method over kept features."""

    def __init__(self, method: Method, bench: Bench) -> None:
        self.method, self.bench = method.eval(), bench

    @torch.inference_mode()
    def predict_samples(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """What `evaluate` asks a detector for."""
        for chunk, features in self.bench.batches(self.method, samples):
            output = self.method.predict(features)
            grids, spec = output.logits.numpy(), self.method.map_spec
            for sample, score, grid in zip(chunk, output.score.tolist(), grids, strict=True):
                yield Prediction(str(sample.image), spec.size, score, None, 0.0, grid, spec, sample=sample)


def measure(method: Method, bench: Bench, sets: Sequence[DataSet]) -> dict[str, dict[str, float]]:
    """Every class of every set: its metrics in percent, undefined ones left out."""
    rows = {}
    for dataset in sets:
        scorer = Scorer(method.for_domain(domain_of(dataset.name) or "industrial"), bench)
        for row in evaluation.evaluate(scorer, dataset).rows:
            if row.kind == "class":
                values = {
                    name: row.metrics[name] for name in METRICS if row.metrics[name] == row.metrics[name]
                }
                rows[f"{dataset.name}/{row.name}"] = {name: 100 * value for name, value in values.items()}
    return rows


def read_once() -> None:
    """Masks, sizes and hashes of files are read once for all runs of this process."""
    for module, name in (
        (training_samples, "load_mask"),
        (training_samples, "image_size"),
        (training_samples, "content_hash"),
        (image_masks, "load_mask"),
        (evaluation, "_check_masks"),
    ):
        setattr(module, name, _remembering(getattr(module, name)))


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    kept: dict[str, Any] = {}

    def remembered(*arguments: Any, **options: Any) -> Any:
        key = repr((arguments, options))
        if key not in kept:
            kept[key] = function(*arguments, **options)
        return kept[key]

    return remembered


def targets(fold: str, data: Path) -> tuple[list[DataSet], list[DataSet]]:
    """The sets to train on and those to measure on."""
    if fold in INNER:
        own, others = INNER[fold]
    elif fold == BOTH:
        own, others = (*FOLDS["A"], *FOLDS["B"]), ()
    else:
        own, others = FOLDS[fold], (*FOLDS["B" if fold == "A" else "A"], *UNSEEN)
    return [discover(data / name) for name in own], [discover(data / name) for name in others]


def features(options: argparse.Namespace) -> None:
    """Stems of all images, then the features of every method; several processes may share the work."""
    bench = Bench(options.work)
    folders = [options.data / name for name in (*FOLDS["A"], *FOLDS["B"], *UNSEEN)]
    sets = [discover(folder) for folder in [*folders, *options.also]]
    part, parts = options.part
    for dataset in sets:
        samples = dataset.samples[part::parts]
        for start in range(0, len(samples), 256):
            bench.stems.fill(samples[start : start + 256], f"{dataset.name}-{part}-{start}")
    for name in options.methods:
        method = bench.method(name, {})
        for dataset in sets:
            for _ in bench.batches(method, dataset.samples[part::parts]):
                pass
        print(f"features of {name}", flush=True)


def run(options: argparse.Namespace) -> None:
    """All chosen methods, folds and seeds, each once."""
    bench = Bench(options.work)
    read_once()
    for seed in options.seeds:
        for name in options.methods:
            for fold in options.folds:
                if METHODS[name].needs_training or seed == options.seeds[0]:
                    run_one(options, bench, name, fold, seed)


def run_one(options: argparse.Namespace, bench: Bench, name: str, fold: str, seed: int) -> None:
    """A method trained on a fold, measured without and with the fusion of oddness."""
    label = f"{options.name}{name}-{fold}-{seed}"
    plain_file, fused_file = (options.work / f"{form}.{label}.json" for form in FORMS)
    if plain_file.exists() and fused_file.exists():
        return
    started = time.process_time()
    own, others = targets(fold, options.data)
    sets = [*own, *map(discover, options.also)]
    more = json.loads(options.training)
    config = bench.config({**recipe(name)[1], **more}, seed=seed)
    method = bench.method(name, {**json.loads(options.settings), "oddness": "off"})
    folder = options.work / "runs" / label
    if METHODS[name].needs_training:
        if not (folder / "model.safetensors").exists():
            train(method, sets, config=config, out=folder, card_parts=bench.parts)
        method, _ = build_method(folder / "model.safetensors", backbone=bench.backbone)
    if not plain_file.exists():
        plain_file.write_text(json.dumps(measure(method, bench, others), indent=1))
    whole, training = fused(method, name, bench, sets, config)
    if fold == BOTH:
        save_fused(whole, training, bench, sets, config, folder)
    found = measure(whole, bench, others)
    fused_file.write_text(json.dumps(found, indent=1))
    seconds = time.process_time() - started
    for file in (plain_file, fused_file):
        print(f"{file.stem} {seconds:.0f} s", json.dumps(means(json.loads(file.read_text()))), flush=True)


def means(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Macro means over the classes for which a metric is defined."""
    result = {}
    for title, metric in COLUMNS.items():
        values = [row[metric] for row in rows.values() if metric in row]
        if values:
            result[title] = round(statistics.mean(values), 2)
    medical = [name for name in rows if name.split("/")[0] in UNSEEN]
    for title, names in (("industrial", set(rows) - set(medical)), ("medical", set(medical))):
        values = [rows[name]["image_auroc"] for name in sorted(names) if "image_auroc" in rows[name]]
        if values:
            result[f"image AUROC, {title}"] = round(statistics.mean(values), 2)
    return result


def table(options: argparse.Namespace) -> None:
    """Markdown and JSON of all that was run: mean and deviation over seeds, without and with the fusion."""
    text, raw = "", {}
    for form, title in FORMS.items():
        results: dict[str, dict[tuple[str, str], Any]] = {}
        for path in sorted(options.work.glob(f"{form}.*-[AB]-*.json")):
            name, fold, seed = path.stem.split(".", 1)[1].split("-")
            if name in METHODS:
                results.setdefault(name, {})[fold, seed] = json.loads(path.read_text())
        order = [name for name in METHODS if name in results]
        lines, summary = summary_table(results, order)
        print(f"{title}\n\n" + "\n".join(lines) + "\n")
        detail = "\n".join(class_table(results, order))
        text += f"## {title}\n\n" + "\n".join(lines)
        text += f"\n\n<details><summary>Every class</summary>\n\n{detail}\n\n</details>\n\n"
        classes = {name: {"-".join(key): found for key, found in results[name].items()} for name in order}
        raw[form] = {"summary": summary, "classes": classes}
    head = (
        "Mean of both directions (A to B and B to A) on unseen classes, in percent; mean ± deviation over the "
        "seeds (their number in brackets). Methods without training have one value.\n\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "systems.md").write_text(head + text.rstrip() + "\n")
    (options.out / "systems.json").write_text(json.dumps(raw, indent=1))


Results = dict[str, dict[tuple[str, str], Any]]


def summary_table(results: Results, order: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Lines of a table with a row for each method, and its values."""
    titles = list(means(next(iter(results[order[0]].values()))))
    lines = ["| method | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    summary: dict[str, Any] = {}
    for name in order:
        found = results[name]
        # Only seeds that were run in both directions.
        own = sorted({seed for fold, seed in found if all((other, seed) in found for other in FOLDS)})
        columns = {
            title: {fold: [means(found[fold, seed])[title] for seed in own] for fold in FOLDS}
            for title in titles
        }
        for folds in columns.values():
            folds["mean"] = [statistics.mean(pair) for pair in zip(*folds.values(), strict=True)]
        summary[name] = columns
        cells = " | ".join(_cell(columns[title]["mean"]) for title in titles)
        lines.append(f"| {_label(name)} ({len(own)}) | {cells} |")
    return lines, summary


def class_table(results: Results, order: Sequence[str]) -> Iterator[str]:
    """Lines of a table with a row for each method and class."""
    yield "| method | class | " + " | ".join(METRICS) + " |"
    yield "|---|---|" + "---|" * len(METRICS)
    for name in order:
        for label in sorted({label for found in results[name].values() for label in found}):
            rows = [found[label] for found in results[name].values() if label in found]
            cells = " | ".join(_cell([row[metric] for row in rows if metric in row]) for metric in METRICS)
            yield f"| {name} | {label} | {cells} |"


def _label(name: str) -> str:
    """A method's name; where it is re-designed, with that said, since its numbers are not its authors'."""
    provenance = METHODS[name].provenance
    return f"{name} ({provenance})" if provenance else name


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("features", "run"):
        own = verbs.add_parser(verb)
        own.add_argument("data", type=Path)
        own.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
        own.add_argument(
            "--also", nargs="*", type=Path, default=[], help="further sets to train on, in both folds"
        )
    own.add_argument("--folds", nargs="+", default=list(FOLDS), choices=[*FOLDS, BOTH, *INNER])
    own.add_argument("--seeds", nargs="+", type=int, default=[111, 112, 113])
    own.add_argument("--settings", default="{}", help="changes of the method's settings as JSON")
    own.add_argument("--training", default="{}", help="changes of the training settings as JSON")
    own.add_argument("--name", default="", help="prefix of the results, for settings other than the recipe's")
    verbs.choices["features"].add_argument(
        "--part", nargs=2, type=int, default=(0, 1), metavar=("PART", "OF")
    )
    third = verbs.add_parser("table")
    third.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    for choice in verbs.choices.values():
        choice.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    {"features": features, "run": run, "table": table}[options.verb](options)


if __name__ == "__main__":
    main()
