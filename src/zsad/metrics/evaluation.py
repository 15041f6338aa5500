"""The evaluation protocol of zero-shot anomaly detection: metrics of classes, data sets, and their means.

Image and pixel metrics are taken for each class, then averaged over the classes of a data set, each class
counting the same, then over data sets. What is undefined is NaN, left out of every mean and named in the
notes. Pixel metrics are taken at the map size of the model, the masks resized to it; normal images count.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from zsad.errors import ConfigError, DataError, ImageError, MetricError
from zsad.metrics.classes import PRO_MEASURES, ClassScores, Pro, ScoredImage, check_also
from zsad.metrics.exact import ExactPixelMetrics
from zsad.metrics.functional import check_limit
from zsad.metrics.streaming import PixelMetrics
from zsad.metrics.table import ResultRow, ResultTable
from zsad.types import Domain, Sample

if TYPE_CHECKING:
    from zsad.datasets.manifest import DataSet

Metrics = Literal["streaming", "exact"]
Progress = Callable[[int, int], None]

TRANSDUCTIVE = (
    "image scores are transductive: map values were normalised over all test images of a class, as MoECLIP's "
    "published test does; not comparable with zero-shot scores"
)

MICRO = "pooled: micro, all images and all pixels of a data set as of one class; not comparable with means over classes"


class SamplePredictor(Protocol):
    """A source of predictions in the order of the samples, unreadable ones skipped."""

    def predict_samples(self, samples: Sequence[Sample]) -> Iterable[ScoredImage]: ...


def evaluate_scores(
    classes: Iterable[ClassScores],
    *,
    pro: Pro = "aupro",
    also: Sequence[str] = (),
    micro: bool = False,
    notes: Iterable[str] = (),
) -> ResultTable:
    """Return the table of all `classes`: their rows, a mean row for each data set, and one over several data sets.

    Args:
        classes: any order; data sets appear in the order of their first class.
        pro: the PRO in the column "pixel_pro", as in `evaluate`.
        also: further columns, as in `evaluate`.
        micro: add a row "pooled" for each data set, all of its classes as one, as in `evaluate`.
        notes: lines to put before those on undefined metrics.

    Raises:
        ConfigError: an unknown name in `also`.
        MetricError: no classes, one of them twice, or differing limits.
    """
    also = check_also(also)
    groups: dict[str, dict[str, ClassScores]] = {}
    for scores in classes:
        group = groups.setdefault(scores.dataset, {})
        if scores.name in group:
            raise MetricError(f"{scores.title} comes twice; merge its images and pixels first")
        group[scores.name] = scores
    if not groups:
        raise MetricError("no classes, expected at least one; add images first")
    limits = {scores.pixels.limit for group in groups.values() for scores in group.values() if scores.pixels}
    if len(limits) > 1:
        raise MetricError(f"PRO limits differ between classes: {sorted(limits)}; use one limit")
    rows: list[ResultRow] = []
    means: list[ResultRow] = []
    remarks = list(notes)
    for dataset, group in groups.items():
        measured = [scores.measure(pro=pro, also=also) for scores in group.values()]
        class_rows = [row for row, _ in measured]
        remarks += [note for _, class_notes in measured for note in class_notes]
        means.append(ResultRow.mean(class_rows, dataset=dataset, name="mean", kind="mean"))
        rows += [*class_rows, means[-1]]
        if micro:
            rows.append(_pooled(dataset, group.values(), pro=pro, also=also))
    if len(means) > 1:
        rows.append(ResultRow.mean(means, dataset="", name="overall", kind="overall"))
    if micro:
        remarks.append(MICRO)
    return ResultTable(rows, notes=remarks, pro=pro, limit=limits.pop() if limits else 0.3)


def evaluate(
    detector: SamplePredictor,
    data: str | Path | DataSet,
    *,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
    metrics: Metrics = "streaming",
    pro: Pro = "aupro",
    limit: float = 0.3,
    also: Sequence[str] = (),
    micro: bool = False,
    transductive: Domain | None = None,
    collect: Callable[[ClassScores], None] | None = None,
) -> ResultTable:
    """Measure a detector on a data set, class by class.

    Args:
        detector: predicts the samples of the data set.
        data: a folder or manifest, or the result of `zsad.datasets.manifest.discover`.
        classes: names of the classes to measure; all when None.
        progress: called as `progress(done, total)` after each image.
        metrics: "streaming" (constant memory, pixel metrics with a bound) or "exact" (keeps every pixel).
        pro: the column "pixel_pro": "aupro" (every score a threshold, which is MVTec AD's official one), "anomalyclip"
            (200 thresholds, as in most papers) or "mvtec3d" (MVTec 3D-AD's official one, 100 thresholds).
        limit: the largest false positive rate of it, in (0, 1].
        also: further columns by name, "aupimo", "pro_anomalyclip", "aupro_mvtec3d" or "aupro", each but the first also
            up to another rate, as "aupro@0.05"; the column of NAME is "pixel_NAME".
        micro: add a row "pooled" for each data set: all images, and all pixels, of all its classes as one.
        transductive: MoECLIP's published image scores, which use statistics of each class's test images, for
            the images' kind; None takes the method's own scores, each of its image alone.
        collect: called with the scores of each class, once every image is added: for its curves
            (`zsad.metrics.curve_points`) or to be merged with the same class measured elsewhere.

    Raises:
        DataError: neither labels nor masks, an unknown class, or a mask of another size than its image; the last
            is raised before anything is computed.
        ConfigError: an unknown `metrics`, `pro` or name in `also`; transductive scores of a method without the
            terms they are made of.
        MetricError: an impossible limit, predictions that do not belong to the samples, or maps with NaN.
    """
    also = check_settings(metrics=metrics, pro=pro, limit=limit, also=also)
    if isinstance(data, (str, Path)):
        from zsad.datasets.manifest import discover

        data = discover(data)
    samples = chosen_samples(data, classes)
    _check_masks(samples)
    groups = empty_groups(samples, fallback=data.name, metrics=metrics, limit=limit)
    notes = list(data.notes)
    measured = 0
    for position, sample, scored in _matched(samples, detector.predict_samples(samples)):
        group = groups[sample.dataset or data.name, sample.class_name]
        group.add(sample, scored, keep_terms=transductive is not None)
        measured += 1
        if progress is not None:
            progress(position + 1, len(samples))
    if measured == 0:
        raise DataError(f"none of the {len(samples)} images of {data.name} could be read; check the files")
    if measured < len(samples):
        notes.append(f"{len(samples) - measured} of {len(samples)} images could not be read and are left out")
    if transductive is not None:
        for group in groups.values():
            group.rescore(transductive)
        notes.append(TRANSDUCTIVE)
    if collect is not None:
        for group in groups.values():
            collect(group)
    table = evaluate_scores(groups.values(), pro=pro, also=also, micro=micro, notes=notes)
    table.unreadable = len(samples) - measured + sum(len(group.unread_masks) for group in groups.values())
    return table


def check_measurable(data: DataSet) -> None:
    """Check that `evaluate` can measure on a data set, without computing anything.

    Raises:
        DataError: neither labels nor masks, or a mask of another size than its image.
    """
    _check_masks(chosen_samples(data, None))


def check_settings(*, metrics: str, pro: str, limit: float, also: Sequence[str]) -> tuple[str, ...]:
    """Return the names of further columns, each once; errors as in `evaluate`."""
    if metrics not in ("streaming", "exact"):
        raise ConfigError(f"metrics is {metrics!r}, expected 'streaming' or 'exact'")
    if pro not in PRO_MEASURES:
        raise ConfigError(f"pro is {pro!r}, expected one of {', '.join(PRO_MEASURES)}")
    check_limit(limit)
    return check_also(also)


def _pooled(dataset: str, classes: Iterable[ClassScores], *, pro: Pro, also: Sequence[str]) -> ResultRow:
    """Return the row of all classes of a data set as one."""
    pool = ClassScores(dataset, "pooled")
    for scores in classes:
        pool.merge(scores)
    return replace(pool.measure(pro=pro, also=also)[0], kind="micro")


def _check_masks(samples: Sequence[Sample]) -> None:
    """Raise a DataError for a mask of another size than its image; unreadable files are left for later."""
    from zsad.datasets.manifest import check_mask

    for sample in samples:
        if sample.label != 0:
            with suppress(ImageError):
                check_mask(sample)


def chosen_samples(data: DataSet, classes: Sequence[str] | None) -> list[Sample]:
    """Return the samples of `classes`; DataError when a class is unknown or nothing can be measured on them."""
    samples = list(data.samples)
    if classes is not None:
        known = sorted({sample.class_name for sample in samples})
        for name in classes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known[:20])}"
                raise DataError(f"no class {name!r} in {data.name}; {hint}")
        samples = [sample for sample in samples if sample.class_name in set(classes)]
    if not any(sample.label is not None or sample.mask is not None for sample in samples):
        raise DataError(
            f"{len(samples)} images of {data.root} have neither labels nor masks to measure by; "
            "put normal images in a folder 'good', or list labels in a manifest"
        )
    return samples


def empty_groups(
    samples: Sequence[Sample], *, fallback: str, metrics: Metrics, limit: float
) -> Mapping[tuple[str, str], ClassScores]:
    """Return empty scores for each class, with pixels only where an image has a mask: no other map is built."""
    groups: dict[tuple[str, str], ClassScores] = {}
    for sample in samples:
        key = (sample.dataset or fallback, sample.class_name)
        scores = groups.setdefault(key, ClassScores(*key))
        if scores.pixels is None and sample.mask is not None and sample.label != 0:
            kind = ExactPixelMetrics if metrics == "exact" else PixelMetrics
            scores.pixels = kind(limit=limit)
    return groups


def _matched(
    samples: Sequence[Sample], predictions: Iterable[ScoredImage]
) -> Iterator[tuple[int, Sample, ScoredImage]]:
    """Yield each prediction with its sample and the sample's position: the next one with the same path.

    Samples between could not be read. A prediction without a source belongs to the next sample.
    """
    position = -1
    for scored in predictions:
        position += 1
        if scored.source is not None:
            source = Path(scored.source)
            while position < len(samples) and samples[position].image != source:
                position += 1
        if position >= len(samples):
            raise MetricError(
                f"prediction of {scored.source} fits no remaining sample; predict in their order"
            )
        yield position, samples[position], scored
