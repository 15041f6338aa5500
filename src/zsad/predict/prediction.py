"""The prediction of one image: score, grid, map, regions, overlay, and its one serialised form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.errors import ConfigError, ImageError
from zsad.images.decode import load_image
from zsad.images.pixels import PLAIN, Reading
from zsad.nn.maps import MapSpec, render_map_numpy
from zsad.predict.overlay import anchored_scale, blend, outline
from zsad.types import Sample

if TYPE_CHECKING:
    from zsad.predict.regions import Region
    from zsad.predict.roi import RegionOfInterest

Float32 = npt.NDArray[np.float32]


def as_written(value: float) -> float:
    """Return the number of nine digits that tells a float32 from all others.

    Scores and thresholds are compared, stored and printed in this one form, so that no reader of a file finds another
    order than the one that was judged by.

    Example:
        >>> as_written(0.17415845394134521)
        0.174158454
    """
    return float(f"{value:.9g}")


@dataclass(slots=True)
class Prediction:
    """The result for one image. Only the small grid is stored: maps are rebuilt from it when asked for.

    Attributes:
        source: path of the image; None for one given as array or Pillow image.
        size: (H, W) of the upright image.
        score: image score in [0, 1], higher is more anomalous; never changed by a calibration.
        verdict: "normal" or "anomalous" once a detector is calibrated, else None.
        seconds: time of the model for this image (of a batch: its equal share).
        grid: (L, h, w) logits of the patches, a grid a layer.
        spec: how the grid becomes a map.
        routing: for each pool of experts their weights (L, E); None for a method without experts.
        terms: the parts of the score by name, for a method that has them apart.
        sample: the image as part of a data set, with its label and mask; None for one given in memory.
        picture: the image itself where it was given in memory or is to be drawn, perhaps reduced.
        p_value: how often a normal image scores as high, once a detector is calibrated.
        threshold: the image score above which the verdict is "anomalous".
        pixel_threshold: the map value above which regions lie.
        min_area: regions smaller than so many pixels of the image are left out.
        region: where anomalies count; None: everywhere.
        known_regions: regions that were found before; see `regions`.
        reading: how the file is read again for drawing.
        time: seconds since the beginning, for a frame of a video.
    """

    source: str | None
    size: tuple[int, int]
    score: float
    verdict: str | None
    seconds: float
    grid: Float32
    spec: MapSpec
    routing: dict[str, Float32] | None = None
    terms: dict[str, float] | None = None
    sample: Sample | None = None
    picture: Image.Image | None = field(default=None, repr=False, compare=False)
    p_value: float | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    min_area: float = 0.0
    region: RegionOfInterest | None = field(default=None, repr=False)
    known_regions: tuple[Region, ...] | None = field(default=None, repr=False, compare=False)
    reading: Reading = field(default=PLAIN, repr=False, compare=False)
    time: float | None = None

    def __post_init__(self) -> None:
        self.score = as_written(self.score)

    @property
    def label(self) -> int | None:
        """0 normal, 1 anomalous, None where not known."""
        return None if self.sample is None else self.sample.label

    @property
    def is_anomalous(self) -> bool | None:
        """The verdict as a truth value; None without calibration."""
        return None if self.verdict is None else self.verdict == "anomalous"

    @property
    def regions(self) -> tuple[Region, ...] | None:
        """Connected parts above the pixel threshold, the highest first; None without a pixel threshold."""
        if self.known_regions is None and self.pixel_threshold is not None:
            self.known_regions = self.find_regions(self.pixel_threshold, min_area=self.min_area)
        return self.known_regions

    def find_regions(self, threshold: float, *, min_area: float = 0.0) -> tuple[Region, ...]:
        """Connected parts above any threshold of map values; see `zsad.predict.regions.find_regions`."""
        from zsad.predict.regions import find_regions

        return find_regions(self.canonical_map(), threshold, size=self.size, min_area=min_area)

    def confine(self, region: RegionOfInterest | None) -> None:
        """Looks at a region of interest alone: the score becomes the highest map value inside.

        Raises:
            ImageError: nothing of the image lies inside, or the region is made for images of another size.
        """
        if region is None:
            return
        region.mask(self.size, self.spec.size)  # may refuse, before anything is changed
        self.region, self.known_regions = region, None
        if math.isfinite(self.score):
            self.score = as_written(float(self.canonical_map().max()))

    def inside(self, size: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
        """(H, W) of `size`, true where anomalies count; None: everywhere."""
        return None if self.region is None else self.region.mask(self.size, (size[0], size[1]))

    @property
    def scale(self) -> tuple[float, float]:
        """Map values of the coldest and hottest colour: the model's, or anchored at the pixel threshold."""
        scale = self.spec.scale
        return scale if self.pixel_threshold is None else anchored_scale(scale, self.pixel_threshold)

    @property
    def map(self) -> Float32:
        """(H, W) anomaly map in [0, 1] at the image's own size, rebuilt at each access."""
        return self.map_at(self.size)

    def canonical_map(self) -> Float32:
        """The map at the size on which metrics are taken, `spec.size`; zero outside the region of interest."""
        return self.map_at(self.spec.size)

    def map_at(self, size: tuple[int, int]) -> Float32:
        """The map at any size (H, W); zero outside the region of interest."""
        values = render_map_numpy(self.grid, self.spec, size=size)
        inside = self.inside(size)
        if inside is not None:
            values *= inside
        return values

    def overlay(
        self, image: Image.Image | None = None, *, max_side: int | None = None, opacity: float = 0.7
    ) -> Image.Image:
        """The picture with its heat map and the outlines of its regions; where the map is low it shows unaltered.

        The colours stand for `scale`, the same for every image of a run, so overlays can be compared. With a pixel
        threshold, nothing below it is coloured.

        Args:
            image: the picture; None reads it from `source` again.
            max_side: shrink the result so that no side is longer; None keeps the image's size.
            opacity: in [0, 1], of the hottest places.

        Raises:
            ConfigError: `max_side` below 1.
            ImageError: no picture is given or known, or its file is gone or broken.
        """
        picture = self._picture(image, max_side)
        mixed = blend(picture, self.canonical_map(), scale=self.scale, opacity=opacity)
        inside = self.inside((picture.height, picture.width))
        if inside is not None:  # colours must not spread over the border, either
            mixed = Image.composite(mixed, picture, Image.fromarray(inside))
        polygons = [region.polygon for region in self.regions or ()]
        return outline(mixed, polygons, size=self.size) if polygons else mixed

    def thumbnail(self, *, max_side: int) -> Image.Image:
        """The picture without heat map, no side longer than `max_side`; errors as `overlay`."""
        return self._picture(None, max_side)

    def _picture(self, image: Image.Image | None, max_side: int | None) -> Image.Image:
        if max_side is not None and max_side < 1:
            raise ConfigError(f"max_side is {max_side}, expected 1 or more")
        if image is None and self.picture is not None:
            picture = self.picture.copy()
        elif image is None and self.source is None:
            raise ImageError("the picture is not known any more: give it, as in prediction.overlay(image)")
        else:
            # Half the side: the decoder keeps at least twice the target, so the shrinking below stays sharp.
            target = None if max_side is None else (max(1, max_side // 2),) * 2
            source = image if image is not None else str(self.source)
            picture = load_image(source, target=target, reading=self.reading)
        if max_side is not None and max(picture.size) > max_side:
            picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        return picture

    def to_dict(self, *, grid: bool = False) -> dict[str, Any]:
        """Plain JSON values: everything but the picture, and the grid only if asked for."""
        values: dict[str, Any] = {
            "source": self.source,
            "size": list(self.size),
            "score": self.score,
            "verdict": self.verdict,
            "ms": round(1000 * self.seconds, 2),
        }
        if self.p_value is not None:
            values["p_value"] = float(f"{self.p_value:.7g}")
        if self.threshold is not None:
            values["threshold"] = self.threshold
        if self.pixel_threshold is not None:
            values["pixel_threshold"] = self.pixel_threshold
            values["regions"] = [region.to_dict() for region in self.regions or ()]
        if self.time is not None:
            values["time"] = self.time
        if self.label is not None:
            values["label"] = self.label
        if self.terms is not None:
            values["terms"] = {name: float(f"{value:.9g}") for name, value in self.terms.items()}
        if self.routing is not None:
            values["routing"] = {name: _rounded(weights) for name, weights in self.routing.items()}
        if grid:
            values["map_spec"] = self.spec.model_dump(mode="json")
            values["grid"] = _rounded(self.grid)
        return values

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        *,
        grid: npt.NDArray[np.floating],
        spec: MapSpec,
        region: RegionOfInterest | None = None,
    ) -> Prediction:
        """Build a prediction from `to_dict()`'s result.

        Args:
            values: plain JSON values; a `map_spec` in them counts more than `spec`.
            grid: (L, h, w) logits, which are stored apart.
            spec: turns the grid into a map.
            region: where anomalies counted.

        Raises:
            KeyError, TypeError, ValueError: values that are missing or of the wrong kind.
        """
        routing, regions, own_spec = values.get("routing"), values.get("regions"), values.get("map_spec")
        source, label = values["source"], values.get("label")
        return cls(
            source=source,
            size=(int(values["size"][0]), int(values["size"][1])),
            score=float(values["score"]),
            verdict=values["verdict"],
            seconds=values.get("ms", 0.0) / 1000,
            grid=np.asarray(grid, dtype=np.float32),
            spec=spec if own_spec is None else MapSpec.model_validate(own_spec),
            routing=None if routing is None else {k: np.asarray(v, np.float32) for k, v in routing.items()},
            terms=values.get("terms"),
            sample=None if source is None else Sample(Path(source), label=label),
            p_value=values.get("p_value"),
            threshold=values.get("threshold"),
            pixel_threshold=values.get("pixel_threshold"),
            region=region,
            known_regions=None if regions is None else _regions(regions),
            time=values.get("time"),
        )

    def save(self, folder: str | Path, *, name: str | None = None) -> dict[str, Path]:
        """Writes `name.json`, `name.overlay.jpg` and `name.map.png` (16 bits, 65535 for 1.0) into `folder`.

        Args:
            folder: created where missing.
            name: stem of the files; None takes the source's, or "prediction".

        Returns:
            The paths under "json", "overlay" and "map".

        Raises:
            ImageError: the picture is not known any more.
            StorageError: the disk is full or the folder cannot be written.
        """
        from PIL.PngImagePlugin import PngInfo

        from zsad.files import atomic_write, write_text
        from zsad.images.open import WRITTEN_BY

        stem = name or (Path(self.source).stem if self.source else "prediction")
        paths = {
            kind: Path(folder) / f"{stem}.{suffix}"
            for kind, suffix in (("overlay", "overlay.jpg"), ("map", "map.png"), ("json", "json"))
        }
        overlay = self.overlay()
        depth = Image.fromarray(np.rint(np.clip(self.map, 0, 1) * 65535).astype(np.uint16))
        by = PngInfo()
        by.add_text("comment", WRITTEN_BY)
        atomic_write(
            paths["overlay"],
            lambda stream: overlay.save(stream, format="JPEG", quality=90, comment=WRITTEN_BY),
        )
        atomic_write(paths["map"], lambda stream: depth.save(stream, format="PNG", pnginfo=by))
        write_text(paths["json"], json.dumps(self.to_dict(grid=True)) + "\n")
        return paths


def _rounded(values: Float32) -> Any:
    """Nested lists with four decimals; as float64, since a float32 has no short decimal form."""
    return np.round(values.astype(np.float64), 4).tolist()


def _regions(values: Sequence[dict[str, Any]]) -> tuple[Region, ...]:
    from zsad.predict.regions import Region

    return tuple(Region.from_dict(each) for each in values)
