"""Explanation of a model's experts: its tables, and the function that fills them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

import zsad
from zsad.datasets.manifest import DataSet, discover
from zsad.device import default_batch_size
from zsad.errors import ConfigError, DataError, ZsadError
from zsad.predict.pipeline import OnError
from zsad.studies.explain.collect import (
    GROUPS,
    REGIONS,
    Collected,
    PatchRule,
    Pool,
    RoutingCollector,
    Usage,
    choose_pictures,
    layer_names,
    no_experts,
)
from zsad.studies.explain.embeddings import ExpertMap, Projection, map_experts
from zsad.studies.explain.training_curves import RunCurves, read_curves
from zsad.train.state import LOG_FILE
from zsad.types import Sample

if TYPE_CHECKING:
    from zsad.detector import Detector
    from zsad.methods.base import Method

Kind = Literal["activation", "regions", "patches", "embeddings", "curves"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OF_IMAGES: frozenset[Kind] = frozenset({"activation", "regions", "patches"})
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Contrast:
    """Dependence of a pool's routing on its input: total variation distances in [0, 1], means over layers.

    Attributes:
        pool: its name.
        effective: number of experts that share the load, mean over layers and data sets.
        datasets: distance between two data sets' mean weights; None with fewer than two.
        labels: distance between normal and anomalous images of a data set; None where a kind is missing.
        pixels: distance between normal and anomalous pixels of a data set, for pools that route patches.
    """

    pool: str
    effective: float
    datasets: float | None
    labels: float | None
    pixels: float | None


@dataclass(slots=True)
class Explanation:
    """The tables of an explanation; `zsad.studies.explain.explanation_page.write_explanation` draws and writes them.

    Attributes:
        model: name by which the model was loaded, its method, backbone and settings.
        settings: of the explanation.
        datasets: images (normal, anomalous, unlabelled) of each data set, those skipped included.
        collected: counts and pictures of the pass over the images.
        contrasts: a line for each pool.
        maps: experts as points, for groups of pools of one shape.
        runs: curves of the model's own run, and of the one compared with.
        notes: sentences on what is missing.
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    datasets: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    collected: Collected = field(default_factory=Collected)
    contrasts: list[Contrast] = field(default_factory=list)
    maps: list[list[ExpertMap]] = field(default_factory=list)
    projection: Projection = "pca"
    runs: list[RunCurves] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def pools(self) -> dict[str, Pool]:
        """All pools that route, in the method's order."""
        return self.collected.pools

    @property
    def usage(self) -> list[Usage]:
        """How often experts were chosen, in the order of data sets, kinds of images and pools."""
        return self._ordered(self.collected.usage)

    @property
    def regions(self) -> list[Usage]:
        """The same of normal and of anomalous pixels, for pools that route patches."""
        return self._ordered(self.collected.regions)

    def _ordered(self, table: dict[tuple[str, str, str], Usage]) -> list[Usage]:
        orders = [list(self.datasets), [*GROUPS, *REGIONS], list(self.pools)]
        keys = sorted(
            table, key=lambda key: [order.index(part) for part, order in zip(key, orders, strict=True)]
        )
        return [table[key] for key in keys]


def explain(
    detector: Detector,
    datasets: Sequence[DataSet | str | Path] = (),
    *,
    kinds: Sequence[Kind] = KINDS,
    run: str | Path | None = None,
    compare: str | Path | None = None,
    images: int = 8,
    rule: PatchRule = "any",
    projection: Projection = "pca",
    batch_size: int | None = None,
    on_error: OnError | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Explain which experts of a model are chosen on data sets, how they lie, and how they were trained.

    Memory does not grow with the number of images: counts are kept, and `images` small pictures.

    Args:
        detector: of a method with experts.
        datasets: folders, manifests, or data sets of `discover`.
        kinds: parts of the explanation; without "activation", "regions" and "patches" no data is needed.
        run: folder of the training whose curves are read; None takes the model's, if it is one.
        compare: folder of a second training, for instance without the decoupling loss.
        images: number shown with the experts of their patches, half of them normal.
        rule: when a patch is anomalous; see `zsad.studies.explain.collect`.
        projection: of expert embeddings to the plane.
        batch_size: images a pass; None takes the device's default.
        on_error: called with each sample that cannot be used; None warns.
        progress: called as `progress(done, total)`.

    Raises:
        ConfigError: the method has no experts, or an impossible argument.
        DataError: no data where it is needed, none of it usable, or a run without a log.
    """
    _check(kinds, images=images, batch_size=batch_size)
    method = detector.method
    settings = {"kinds": list(kinds), "images": images, "rule": rule}
    result = Explanation(_model(detector), settings, projection=projection)
    folder = Path(run) if run is not None else _run_of(detector.name)
    if "curves" in kinds:
        _read_runs(result, method, folder, None if compare is None else Path(compare))
    if "embeddings" in kinds:
        _map_embeddings(result, method, projection)
    if OF_IMAGES & set(kinds):
        sets = _distinct([discover(data) if isinstance(data, str | Path) else data for data in datasets])
        samples = [sample for data in sets for sample in data.samples]
        if not samples:
            parts = ", ".join(sorted(OF_IMAGES & set(kinds)))
            raise DataError(f"no images to explain {parts} with: name a folder, or leave these kinds out")
        result.datasets = _count(samples)
        pictured = choose_pictures(samples, images) if "patches" in kinds else []
        collector = RoutingCollector(method, rule=rule, pictures=pictured, on_error=on_error or _warn)
        size = default_batch_size(next(method.parameters()).device) if batch_size is None else batch_size

        def advance(done: int) -> None:
            if progress is not None:
                progress(done, len(samples))

        result.collected = collector.run(samples, detector.model, batch_size=size, progress=advance)
        if not result.collected.images:
            raise DataError(f"none of the {len(samples)} images could be used; check the files")
        _order(result, pictured)
        result.contrasts = [_contrast(pool, result.usage, result.regions) for pool in result.pools]
    if not (result.usage or result.maps or result.runs):
        raise ConfigError(f"{no_experts(method)}, and no training curves were found")
    _add_notes(result, kinds)
    return result


def _check(kinds: Sequence[Kind], *, images: int, batch_size: int | None) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ConfigError(f"kinds = {list(kinds)}: expected some of {', '.join(KINDS)}")
    if images < 1:
        raise ConfigError(f"images is {images}, expected 1 or more")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")


def _model(detector: Detector) -> dict[str, Any]:
    card = detector.card
    return {
        "name": detector.name,
        "method": card.method,
        "provenance": card.provenance,
        "backbone": card.backbone.name,
        "backbone_sha256": card.backbone.sha256,
        "config": card.config,
        "training": None if card.training is None else card.training.model_dump(mode="json"),
        "zsad": zsad.__version__,
    }


def _run_of(name: str) -> Path | None:
    """The folder of the model's own training where its log lies there."""
    path = Path(name).expanduser()
    folder = path if path.is_dir() else path.parent
    return folder if path.exists() and (folder / LOG_FILE).is_file() else None


def _read_runs(result: Explanation, method: Method, own: Path | None, other: Path | None) -> None:
    for folder in (own, other):
        if folder is not None:
            name = folder.resolve().name
            label = str(folder) if name in {curves.name for curves in result.runs} else name
            result.runs.append(read_curves(folder, name=label, weights=method.term_weights))
    if own is None:
        result.notes.append(f"no training curves of {result.model['name']}: there is no {LOG_FILE} beside it")
    for curves in result.runs:
        for term in curves.unrecorded:
            result.notes.append(f"{curves.name} was trained with weight 0 of {term}, which its log lacks")


def _map_embeddings(result: Explanation, method: Method, projection: Projection) -> None:
    """Maps of the experts; pools of another number of layers or width are drawn apart."""
    groups: dict[tuple[int, int], dict[str, Any]] = {}
    for pool, vectors in method.expert_embeddings().items():
        array = vectors.detach().double().cpu().numpy()
        groups.setdefault((array.shape[0], array.shape[2]), {})[pool] = array
    for (layers, _), pools in groups.items():
        result.maps.append(map_experts(pools, layer_names(method, layers), projection=projection))


def _distinct(sets: Sequence[DataSet]) -> list[DataSet]:
    """The sets with names on all samples, and a number behind a name that was there before."""
    taken: set[str] = set()
    renamed = []
    for data in sets:
        names = {}
        for name in sorted({sample.dataset or data.name for sample in data.samples}):
            number, fresh = 1, name
            while fresh in taken:
                number += 1
                fresh = f"{name} ({number})"
            names[name] = fresh
        taken |= set(names.values())
        samples = [replace(sample, dataset=names[sample.dataset or data.name]) for sample in data.samples]
        renamed.append(replace(data, samples=samples))
    return renamed


def _count(samples: Sequence[Sample]) -> dict[str, tuple[int, int, int]]:
    names = dict.fromkeys(sample.dataset for sample in samples)
    labels = [(sample.dataset, sample.label) for sample in samples]
    return {
        name: (labels.count((name, 0)), labels.count((name, 1)), labels.count((name, None))) for name in names
    }


def _order(result: Explanation, pictured: Sequence[Sample]) -> None:
    order = {id(sample): index for index, sample in enumerate(pictured)}
    result.collected.pictures.sort(key=lambda picture: order[id(picture.sample)])


def _contrast(pool: str, usage: Sequence[Usage], regions: Sequence[Usage]) -> Contrast:
    of_pool = [entry for entry in usage if entry.pool == pool and entry.count]
    names = dict.fromkeys(entry.dataset for entry in of_pool)
    together = {}
    for name in names:
        total = np.sum([entry.weight for entry in of_pool if entry.dataset == name], axis=0)
        together[name] = total / total.sum(axis=-1, keepdims=True)
    between = [_distance(first, second) for first, second in combinations(together.values(), 2)]
    return Contrast(
        pool,
        float(np.mean([entry.effective_experts().mean() for entry in of_pool])),
        float(np.mean(between)) if between else None,
        _group_distance(of_pool, "normal", "anomalous"),
        _group_distance([entry for entry in regions if entry.pool == pool and entry.count], *REGIONS),
    )


def _group_distance(usage: Sequence[Usage], first: str, second: str) -> float | None:
    """Mean over data sets of the distance between two groups; None where no data set has both."""
    by_key = {(entry.dataset, entry.group): entry.share("weight") for entry in usage}
    pairs = [
        (by_key[name, first], by_key[name, second])
        for name in dict.fromkeys(entry.dataset for entry in usage)
        if (name, first) in by_key and (name, second) in by_key
    ]
    return float(np.mean([_distance(*pair) for pair in pairs])) if pairs else None


def _distance(first: Any, second: Any) -> float:
    return float(np.abs(first - second).sum(axis=-1).mean() / 2)


def _add_notes(result: Explanation, kinds: Sequence[Kind]) -> None:
    """Add notes on parts that were asked for and are missing."""
    name, collected = result.model["method"], result.collected
    by_patch = any(pool.unit == "patch" for pool in result.pools.values())
    if result.model["provenance"]:
        result.notes.append(f"{name} is {result.model['provenance']}: its authors' experts may differ")
    if result.usage and not by_patch and {"patches", "regions"} & set(kinds):
        result.notes.append(
            f"{name} routes whole images, so there are no maps of patches or shares of pixels"
        )
    if collected.without_mask and by_patch:
        result.notes.append(
            f"{collected.without_mask} images not known as normal have no mask: left out of the shares of pixels"
        )
    if "embeddings" in kinds and not result.maps:
        result.notes.append(f"{name} shows no embeddings of its experts")


def _warn(sample: Sample, error: ZsadError) -> None:
    warnings.warn(f"skipped: {error}", stacklevel=3)
