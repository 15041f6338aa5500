"""Measurements on one class of one data set: their state, the row of the table, and the notes."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from zsad.errors import ConfigError, ImageError, MetricError
from zsad.metrics.exact import PIXEL_MEASURES, ExactPixelMetrics, ImageScores, PixelResult
from zsad.metrics.pro import UNDEFINED, Bound
from zsad.metrics.streaming import PixelMetrics
from zsad.metrics.table import COLUMNS, ResultRow
from zsad.metrics.transductive import transductive_scores
from zsad.types import Domain, Sample

Pro = Literal["aupro", "anomalyclip", "mvtec3d"]

Pixels = PixelMetrics | ExactPixelMetrics
ReadMask = Callable[[Path, tuple[int, int]], NDArray[np.bool_]]

# Name of the PRO in the column "pixel_pro" -> measure of the pixels.
PRO_MEASURES = {"aupro": "aupro", "anomalyclip": "pro_anomalyclip", "mvtec3d": "aupro_mvtec3d"}

# Column of a row -> name in a `PixelResult`.
PIXEL_COLUMNS = {"pixel_auroc": "auroc", "pixel_ap": "ap", "pixel_f1_max": "f1_max", "pixel_pro": "aupro"}

# Fewer normal pixels than 1 over AUPIMO's smallest rate do not tell its rates apart.
_AUPIMO_PIXELS = 100_000

# Bounds wider than this show in the second decimal of a percentage, so they are worth a note.
WIDE_BOUND = 1e-4
EXACT_HINT = "metrics='exact' is exact"
"""The end of such a note, for those to whom a hundredth of a percentage does not matter."""

# Unreadable masks of a class that are named in the notes; the rest is counted.
_NAMED_AT_MOST = 20


class ScoredImage(Protocol):
    """The part of a prediction that an evaluation reads: see `zsad.predict.prediction.Prediction`."""

    @property
    def score(self) -> float: ...
    @property
    def label(self) -> int | None: ...
    @property
    def source(self) -> str | None: ...
    def canonical_map(self) -> NDArray[np.floating]: ...


@dataclass(slots=True)
class ClassScores:
    """Everything measured on one class of one data set; constant in memory unless `pixels` is exact.

    `pixels` is None when the class has no masks. The counters become notes of the table.
    """

    dataset: str
    name: str
    images: ImageScores = field(default_factory=ImageScores)
    pixels: Pixels | None = None
    unlabelled: int = 0
    maskless: int = 0
    emptied: int = 0
    unread_masks: list[str] = field(default_factory=list)
    terms: list[dict[str, float]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Name of the class in notes."""
        return f"class {self.name} of {self.dataset}" if self.dataset else f"class {self.name}"

    def add(
        self,
        sample: Sample,
        scored: ScoredImage,
        *,
        keep_terms: bool = False,
        read_mask: ReadMask | None = None,
    ) -> None:
        """Add one image: its score and label, and its map and mask when the class has masks.

        `read_mask` takes the mask's path and the map's size (H, W); by default the file is read.

        Raises:
            ConfigError: the score's terms are to be kept, and the method has none apart.
            MetricError: a score or a map with NaN; the image is named.
        """
        label = scored.label if sample.label is None else sample.label
        if label is None:
            self.unlabelled += 1
        else:
            try:
                self.images.add(scored.score, label)
            except MetricError as error:
                raise MetricError(f"score of {sample.image}: {error}") from error
            if keep_terms:
                self.terms.append(_terms_of(scored))
        if self.pixels is None:
            return
        if label != 0 and sample.mask is None:
            # Its anomalous pixels are not marked: as "all normal" the image would count against a good map.
            self.maskless += 1
            return
        score_map = np.asarray(scored.canonical_map())
        size = (score_map.shape[0], score_map.shape[1])
        mask = self._mask(sample, label=label, size=size, read_mask=read_mask)
        if mask is not None:
            try:
                self.pixels.update(score_map, mask)
            except MetricError as error:
                raise MetricError(f"map of {sample.image}: {error}") from error

    def rescore(self, domain: Domain) -> None:
        """Put scores that use all images of the class in the place of its own; needs the terms kept."""
        highest, lowest, cosine = (
            [terms[name] for terms in self.terms] for name in ("map", "map_low", "global")
        )
        self.images.scores = array("d", transductive_scores(highest, lowest, cosine, domain=domain).tolist())

    def _mask(
        self, sample: Sample, *, label: int | None, size: tuple[int, int], read_mask: ReadMask | None
    ) -> NDArray[np.bool_] | None:
        """Return the mask of `size` (H, W), empty for a normal image; None when its file cannot be read."""
        if label == 0 or sample.mask is None:
            return np.zeros(size, dtype=np.bool_)
        from zsad.images.masks import load_mask

        try:
            mask = load_mask(sample.mask, size=size) if read_mask is None else read_mask(sample.mask, size)
        except ImageError as error:
            self.unread_masks.append(str(error))
            return None
        if label == 1 and not mask.any():
            self.emptied += 1
        return mask

    def merge(self, other: ClassScores) -> ClassScores:
        """Add what was measured of the same or of another class, which stays as it is, and return this.

        Raises:
            MetricError: pixels that were kept in other ways.
        """
        self.images.merge(other.images)
        if other.pixels is not None:
            self.pixels = _merged(self.pixels, other.pixels)
        self.unlabelled += other.unlabelled
        self.maskless += other.maskless
        self.emptied += other.emptied
        self.unread_masks = [*self.unread_masks, *other.unread_masks]
        self.terms = [*self.terms, *other.terms]
        return self

    def measure(self, *, pro: Pro = "aupro", also: Sequence[str] = ()) -> tuple[ResultRow, list[str]]:
        """Return the row of the class and its notes.

        Args:
            pro: the PRO in the column "pixel_pro".
            also: further columns, as `check_also` takes them.
        """
        images = self.images.compute()
        metrics = dict.fromkeys([*COLUMNS, *(f"pixel_{name}" for name in also)], math.nan)
        metrics.update(image_auroc=images.auroc, image_ap=images.ap, image_f1_max=images.f1_max)
        bounds: dict[str, Bound] = {}
        pixels = None
        if self.pixels is not None:
            pixels = self.pixels.compute()
            values = {column: pixels.metric(name) for column, name in PIXEL_COLUMNS.items()}
            if pro != "aupro":
                values["pixel_pro"] = self.pixels.measure(PRO_MEASURES[pro])
            for name in also:
                measure, at, limit = name.partition("@")
                values[f"pixel_{name}"] = self.pixels.measure(measure, limit=float(limit) if at else None)
            metrics.update({column: metric.value for column, metric in values.items()})
            if isinstance(self.pixels, PixelMetrics):
                bounds = {
                    column: UNDEFINED if math.isnan(metric.value) else metric[1:]
                    for column, metric in values.items()
                }
        row = ResultRow(self.dataset, self.name, "class", images.normal, images.anomalous, metrics, bounds)
        notes = [*self._undefined(row, pixels), *self._left_out()]
        return row, [f"{self.title}: {note}" for note in notes]

    def _undefined(self, row: ResultRow, pixels: PixelResult | None) -> Iterator[str]:
        """Yield notes on metrics that are undefined or imprecise."""
        if lacking := _lacking("image", normal=row.normal, anomalous=row.anomalous):
            yield f"{lacking}, image AUROC, AP and F1-max undefined"
        if pixels is None or self.pixels is None:
            yield "no masks, pixel metrics undefined"
            return
        if lacking := _lacking("pixel", normal=pixels.normal_pixels, anomalous=pixels.anomalous_pixels):
            yield f"{lacking}, pixel metrics undefined"
            return
        if math.isnan(row.metrics["pixel_pro"]):
            yield "too few distinct map values, PRO undefined"
        if "pixel_aupimo" in row.metrics and (clean := self.pixels.clean_pixels) < _AUPIMO_PIXELS:
            if clean == 0:
                yield "no map of a normal image, AUPIMO undefined"
            else:
                yield f"{clean} pixels of normal images are too few to tell AUPIMO's lowest rates apart"
        if pixels.clamped:
            yield f"{pixels.clamped} pixels outside the value range, counted at its ends"
        widest = max((row.error(column) for column in row.bounds), default=0.0)
        if widest > WIDE_BOUND:
            yield f"pixel metrics are certain to ±{100 * widest:.2g} points; {EXACT_HINT}"

    def _left_out(self) -> Iterator[str]:
        """Yield notes on images that did not enter the metrics."""
        if self.unlabelled:
            yield f"{self.unlabelled} images without a label, not in the image metrics"
        if self.maskless:
            yield f"{self.maskless} images without a mask and not known as normal, not in the pixel metrics"
        if self.emptied:
            yield f"{self.emptied} anomalous images whose mask is empty at the map size"
        if self.unread_masks:
            yield f"{len(self.unread_masks)} masks unreadable, not in the pixel metrics"
            yield from self.unread_masks[:_NAMED_AT_MOST]


def check_also(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of further columns, checked, each once.

    A name is one of `PIXEL_MEASURES`, or one with the largest false positive rate, as "aupro@0.05".

    Raises:
        ConfigError: an unknown name or an impossible limit.
    """
    for name in names:
        measure, at, limit = name.partition("@")
        if measure not in PIXEL_MEASURES:
            raise ConfigError(f"metric {name!r} is unknown, expected one of {', '.join(PIXEL_MEASURES)}")
        try:
            sane = not at or (measure != "aupimo" and 0.0 < float(limit) <= 1.0)
        except ValueError:
            sane = False
        if not sane:
            raise ConfigError(
                f"metric {name!r} has no such limit, expected a rate in (0, 1], as in aupro@0.05"
            )
    return tuple(dict.fromkeys(names))


def _merged(one: Pixels | None, other: Pixels) -> Pixels:
    """Merge both states into `one`, a new one when None."""
    if isinstance(other, PixelMetrics):
        if one is None:
            one = PixelMetrics(bins=other.bins, value_range=other.value_range, limit=other.limit)
        if isinstance(one, PixelMetrics):
            return one.merge(other)
    else:
        one = ExactPixelMetrics(limit=other.limit) if one is None else one
        if isinstance(one, ExactPixelMetrics):
            return one.merge(other)
    raise MetricError("exact pixels and streaming ones do not merge; measure all classes in one way")


def _terms_of(scored: ScoredImage) -> dict[str, float]:
    terms: dict[str, float] = getattr(scored, "terms", None) or {}
    if not {"map", "map_low", "global"} <= terms.keys():
        raise ConfigError(
            "transductive scores are MoECLIP's; this method's scores have no such terms, leave it out"
        )
    return terms


def _lacking(unit: str, *, normal: int, anomalous: int) -> str:
    """Return "no normal image", "no anomalous image", both joined, or nothing."""
    counts = {"normal": normal, "anomalous": anomalous}
    return " and ".join(f"no {kind} {unit}" for kind, count in counts.items() if count == 0)
