"""The evaluation protocol of zero-shot anomaly detection: what is measured on which images, and the means.

Image and pixel metrics are taken for each class, then averaged over the classes of a data set, each class
counting the same, then over data sets. What is undefined is NaN, left out of every mean and named in the
notes. Pixel metrics are taken at the map size of the model, the masks resized to it; normal images count.
"""

from __future__ import annotations

import difflib
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from zsad.errors import ConfigError, DataError, ImageError, MetricError
from zsad.metrics.streaming import Bound, ExactPixelMetrics, ImageScores, PixelMetrics, PixelResult
from zsad.metrics.table import COLUMNS, ResultRow, ResultTable
from zsad.metrics.transductive import Domain, transductive_scores
from zsad.types import Sample

if TYPE_CHECKING:
    from zsad.data.manifest import DataSet

__all__ = [
    "COLUMNS",
    "ClassScores",
    "ResultRow",
    "ResultTable",
    "check_measurable",
    "evaluate",
    "evaluate_scores",
]

Pro = Literal["aupro", "anomalyclip"]
Metrics = Literal["streaming", "exact"]
Progress = Callable[[int, int], None]

# Column of a row -> name in a `PixelResult`.
PIXEL_COLUMNS = {"pixel_auroc": "auroc", "pixel_ap": "ap", "pixel_f1_max": "f1_max", "pixel_pro": "aupro"}

# Bounds wider than this show in the second decimal of a percentage, so they are worth a note.
WIDE_BOUND = 1e-4
EXACT_HINT = "metrics='exact' is exact"
"""The end of such a note, for those to whom a hundredth of a percentage does not matter."""

TRANSDUCTIVE = (
    "image scores are transductive: map values were normalised over all test images of a class, as MoECLIP's "
    "published test does; not comparable with zero-shot scores"
)

# Unreadable masks of a class that are named in the notes; the rest is counted.
_NAMED_AT_MOST = 20


class ScoredImage(Protocol):
    """What an evaluation reads of a prediction: see `zsad.infer.prediction.Prediction`."""

    @property
    def score(self) -> float: ...
    @property
    def label(self) -> int | None: ...
    @property
    def source(self) -> str | None: ...
    def canonical_map(self) -> NDArray[np.floating]: ...


class Scorer(Protocol):
    """What an evaluation needs: predictions in the order of the samples, unreadable ones skipped."""

    def predict_samples(self, samples: Sequence[Sample]) -> Iterable[ScoredImage]: ...


@dataclass(slots=True)
class ClassScores:
    """Everything measured on one class of one data set; constant in memory unless `pixels` is exact.

    `pixels` is None when the class has no masks. The counters become notes of the table.
    """

    dataset: str
    name: str
    images: ImageScores = field(default_factory=ImageScores)
    pixels: PixelMetrics | ExactPixelMetrics | None = None
    unlabelled: int = 0
    maskless: int = 0
    emptied: int = 0
    unread_masks: list[str] = field(default_factory=list)
    terms: list[dict[str, float]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The class as notes name it."""
        return f"class {self.name} of {self.dataset}" if self.dataset else f"class {self.name}"

    def add(self, sample: Sample, scored: ScoredImage, *, keep_terms: bool = False) -> None:
        """Add one image: its score and label, and its map and mask when the class has masks.

        Raises:
            ConfigError: the score's terms are to be kept, and the method has none apart.
        """
        label = scored.label if sample.label is None else sample.label
        if label is None:
            self.unlabelled += 1
        else:
            self.images.add(scored.score, label)
            if keep_terms:
                self.terms.append(_terms_of(scored))
        if self.pixels is None:
            return
        if label != 0 and sample.mask is None:
            # Nobody marked what is anomalous here: as "all normal" the image would count against a good map.
            self.maskless += 1
            return
        score_map = np.asarray(scored.canonical_map())
        mask = self._mask(sample, label=label, size=(score_map.shape[0], score_map.shape[1]))
        if mask is not None:
            self.pixels.update(score_map, mask)

    def rescore(self, domain: Domain) -> None:
        """Puts scores that use all images of the class in the place of its own; needs the terms kept."""
        highest, lowest, cosine = (
            [terms[name] for terms in self.terms] for name in ("map", "map_low", "global")
        )
        classes = [self.name] * len(self.terms)
        found = transductive_scores(highest, lowest, cosine, classes, domain=domain)
        self.images.scores = array("d", found.tolist())

    def _mask(self, sample: Sample, *, label: int | None, size: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Mask of `size` (H, W), empty for a normal image; None when its file cannot be read."""
        if label == 0 or sample.mask is None:
            return np.zeros(size, dtype=np.bool_)
        from zsad.data.image import load_mask

        try:
            mask: NDArray[np.bool_] = load_mask(sample.mask, size=size)
        except ImageError as error:
            self.unread_masks.append(str(error))
            return None
        if label == 1 and not mask.any():
            self.emptied += 1
        return mask

    def measure(self, *, pro: Pro = "aupro") -> tuple[ResultRow, list[str]]:
        """The row of the class and its notes. MetricError for `pro` "anomalyclip" unless pixels are exact."""
        images = self.images.compute()
        metrics = dict.fromkeys(COLUMNS, math.nan)
        metrics.update(image_auroc=images.auroc, image_ap=images.ap, image_f1_max=images.f1_max)
        bounds: dict[str, Bound] = {}
        pixels = None if self.pixels is None else self.pixels.compute()
        if pixels is not None:
            metrics.update({column: getattr(pixels, name) for column, name in PIXEL_COLUMNS.items()})
            if isinstance(self.pixels, PixelMetrics):
                bounds = {column: pixels.bounds[name] for column, name in PIXEL_COLUMNS.items()}
            if pro == "anomalyclip":
                if not isinstance(self.pixels, ExactPixelMetrics):
                    raise MetricError(
                        "pro='anomalyclip' needs every pixel, got streaming; use metrics='exact'"
                    )
                metrics["pixel_pro"] = self.pixels.pro_anomalyclip()
        row = ResultRow(self.dataset, self.name, "class", images.normal, images.anomalous, metrics, bounds)
        notes = [*self._undefined(row, pixels), *self._left_out()]
        return row, [f"{self.title}: {note}" for note in notes]

    def _undefined(self, row: ResultRow, pixels: PixelResult | None) -> Iterator[str]:
        """What is undefined or imprecise, and why."""
        if lacking := _lacking("image", normal=row.normal, anomalous=row.anomalous):
            yield f"{lacking}, image AUROC, AP and F1-max undefined"
        if pixels is None:
            yield "no masks, pixel metrics undefined"
            return
        if lacking := _lacking("pixel", normal=pixels.normal_pixels, anomalous=pixels.anomalous_pixels):
            yield f"{lacking}, pixel metrics undefined"
            return
        if math.isnan(row.metrics["pixel_pro"]):
            yield "too few distinct map values, PRO undefined"
        if pixels.clamped:
            yield f"{pixels.clamped} pixels outside the value range, counted at its ends"
        widest = max(pixels.error(name) for name in pixels.bounds)
        if widest > WIDE_BOUND:
            yield f"pixel metrics are certain to ±{100 * widest:.2g} points; {EXACT_HINT}"

    def _left_out(self) -> Iterator[str]:
        """What did not enter the metrics, and why."""
        if self.unlabelled:
            yield f"{self.unlabelled} images without a label, not in the image metrics"
        if self.maskless:
            yield f"{self.maskless} images without a mask and not known as normal, not in the pixel metrics"
        if self.emptied:
            yield f"{self.emptied} anomalous images whose mask is empty at the map size"
        if self.unread_masks:
            yield f"{len(self.unread_masks)} masks unreadable, not in the pixel metrics"
            yield from self.unread_masks[:_NAMED_AT_MOST]


def evaluate_scores(
    classes: Iterable[ClassScores], *, pro: Pro = "aupro", notes: Iterable[str] = ()
) -> ResultTable:
    """The table of all `classes`: their rows, a mean row for each data set, and one over several data sets.

    Args:
        classes: any order; data sets appear in the order of their first class.
        pro: "aupro", or "anomalyclip" for the PRO of most papers (exact pixels only).
        notes: lines to put before those on undefined metrics.

    Raises:
        MetricError: no classes, one of them twice, or `pro` does not fit how pixels were kept.
    """
    groups: dict[str, dict[str, ClassScores]] = {}
    for scores in classes:
        group = groups.setdefault(scores.dataset, {})
        if scores.name in group:
            raise MetricError(f"{scores.title} comes twice; merge its images and pixels first")
        group[scores.name] = scores
    if not groups:
        raise MetricError("no classes, expected at least one; add images first")
    rows: list[ResultRow] = []
    means: list[ResultRow] = []
    remarks = list(notes)
    for dataset, group in groups.items():
        own = []
        for scores in group.values():
            row, found = scores.measure(pro=pro)
            own.append(row)
            remarks.extend(found)
        means.append(ResultRow.mean(own, dataset=dataset, name="mean", kind="mean"))
        rows += [*own, means[-1]]
    if len(means) > 1:
        rows.append(ResultRow.mean(means, dataset="", name="overall", kind="overall"))
    limits = {scores.pixels.limit for group in groups.values() for scores in group.values() if scores.pixels}
    if len(limits) > 1:
        raise MetricError(f"PRO limits differ between classes: {sorted(limits)}; use one limit")
    return ResultTable(rows, notes=remarks, pro=pro, limit=limits.pop() if limits else 0.3)


def evaluate(
    detector: Scorer,
    data: str | Path | DataSet,
    *,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
    metrics: Metrics = "streaming",
    pro: Pro = "aupro",
    transductive: Domain | None = None,
    collect: Callable[[ClassScores], None] | None = None,
) -> ResultTable:
    """Measure a detector on a data set, class by class.

    Args:
        detector: predicts the samples of the data set.
        data: a folder or manifest, or what `zsad.data.manifest.discover` made of it.
        classes: names of the classes to measure; all when None.
        progress: called as `progress(done, total)` after each image.
        metrics: "streaming" (constant memory, pixel metrics with a bound) or "exact" (keeps every pixel).
        pro: "aupro", or "anomalyclip" for the PRO of most papers; the latter needs "exact".
        transductive: MoECLIP's published image scores, which use statistics of each class's test images, for
            the images' kind; None takes the method's own scores, each of its image alone.
        collect: called with all that was measured of each class, once every image is added: for its curves
            (`zsad.metrics.curves`) or to be merged with the same class measured elsewhere.

    Raises:
        DataError: neither labels nor masks, an unknown class, or a mask of another size than its image; the last
            is looked for before anything is computed.
        ConfigError: an unknown `metrics` or `pro`, or a pair that does not fit; transductive scores of a method
            without the terms they are made of.
        MetricError: predictions that do not belong to the samples, or maps with NaN.
    """
    if metrics not in ("streaming", "exact"):
        raise ConfigError(f"metrics is {metrics!r}, expected 'streaming' or 'exact'")
    if pro not in ("aupro", "anomalyclip"):
        raise ConfigError(f"pro is {pro!r}, expected 'aupro' or 'anomalyclip'")
    if pro == "anomalyclip" and metrics != "exact":
        raise ConfigError("pro='anomalyclip' needs every pixel, got metrics='streaming'; set metrics='exact'")
    if isinstance(data, (str, Path)):
        from zsad.data.manifest import discover

        data = discover(data)
    samples = _chosen(data, classes)
    _check_masks(samples)
    groups = _groups(samples, fallback=data.name, metrics=metrics)
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
    table = evaluate_scores(groups.values(), pro=pro, notes=notes)
    table.unreadable = len(samples) - measured + sum(len(group.unread_masks) for group in groups.values())
    return table


def check_measurable(data: DataSet) -> None:
    """Looks for what would keep `evaluate` from measuring on a data set, without computing anything.

    Raises:
        DataError: neither labels nor masks, or a mask of another size than its image.
    """
    _check_masks(_chosen(data, None))


def _terms_of(scored: ScoredImage) -> dict[str, float]:
    terms: dict[str, float] = getattr(scored, "terms", None) or {}
    if not {"map", "map_low", "global"} <= terms.keys():
        raise ConfigError(
            "transductive scores are MoECLIP's; this method's scores have no such terms, leave it out"
        )
    return terms


def _check_masks(samples: Sequence[Sample]) -> None:
    """DataError for a mask of another size than its image; files without a readable header are left for later."""
    from zsad.data.manifest import check_mask

    for sample in samples:
        if sample.label != 0:
            with suppress(ImageError):
                check_mask(sample)


def _chosen(data: DataSet, classes: Sequence[str] | None) -> list[Sample]:
    """The samples of `classes`; DataError when a class is unknown or nothing can be measured on them."""
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
            f"{len(samples)} images of {data.name} have neither labels nor masks to measure by; "
            "put normal images in a folder 'good', or list labels in a manifest"
        )
    return samples


def _groups(
    samples: Sequence[Sample], *, fallback: str, metrics: Metrics
) -> Mapping[tuple[str, str], ClassScores]:
    """Empty scores for each class, with pixels only where an image has a mask: no other map is built."""
    groups: dict[tuple[str, str], ClassScores] = {}
    for sample in samples:
        key = (sample.dataset or fallback, sample.class_name)
        scores = groups.setdefault(key, ClassScores(*key))
        if scores.pixels is None and sample.mask is not None and sample.label != 0:
            scores.pixels = ExactPixelMetrics() if metrics == "exact" else PixelMetrics()
    return groups


def _matched(
    samples: Sequence[Sample], predictions: Iterable[ScoredImage]
) -> Iterator[tuple[int, Sample, ScoredImage]]:
    """Each prediction with its sample and the sample's position: the next one with the same path.

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


def _lacking(unit: str, *, normal: int, anomalous: int) -> str:
    """ "no normal image", "no anomalous image", both, or nothing."""
    counts = {"normal": normal, "anomalous": anomalous}
    return " and ".join(f"no {kind} {unit}" for kind, count in counts.items() if count == 0)
