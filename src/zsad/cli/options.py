"""Options that verbs share: which model, on what it runs, how its images are read and its scores judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from zsad.types import Domain

if TYPE_CHECKING:
    from zsad.detector import Detector
    from zsad.predict.roi import RegionOfInterest
    from zsad.predict.view import InputOptions
    from zsad.types import Sample

_FILE = "references.safetensors"


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class TowerOptions:
    """Tower and threads.

    Args:
        weights: File or folder of the backbone's weights.
        threads: Processor threads; by default all cores.
    """

    backbone: Annotated[
        str | None,
        Parameter(
            help="Tower to train on, zsad-tiny by default, or of a method without training, or where a model's own "
            "lies; see zsad list backbones."
        ),
    ] = None
    weights: Path | None = None
    threads: int | None = None


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class DeviceOptions(TowerOptions):
    """Tower, threads and device.

    Args:
        device: auto, cpu, cuda, cuda:1 or mps.
    """

    device: str = "auto"


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ModelOptions(DeviceOptions):
    """Tower, threads and device of a model that is loaded."""

    domain: Annotated[
        Domain | None,
        Parameter(
            help="What the images are of, industrial or medical, for MoECLIP, which scores the two differently. By "
            "default as the model has it; measured on a set of the catalogue, as that has it."
        ),
    ] = None

    def load(self, model: str, *, calibration: str | Path | None = None) -> Detector:
        """Load a model in PyTorch, or an exported graph; errors as `zsad.load`."""
        return RuntimeOptions().load(model, self, calibration=calibration)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Runtime of a model; the options of `ModelOptions` lie beside it.

    Args:
        precision: fp32, bf16 or fp16. By default full precision in torch, bf16 in OpenVINO where the processor has it.
    """

    backend: Annotated[
        Literal["auto", "torch", "onnx", "openvino"] | None,
        Parameter(
            help="torch; onnx or openvino for what zsad export wrote; auto for what is fastest here, which exports a "
            "model when it is first used. By default what the model is made for."
        ),
    ] = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"

    def load(
        self,
        model: str,
        options: ModelOptions,
        *,
        calibration: str | Path | None,
        device: str | None = None,
    ) -> Detector:
        """Load a model into the runtime; errors as `zsad.load`.

        Args:
            model: its name.
            options: tower, device and threads.
            calibration: as in `zsad.load`.
            device: None takes that of the options.
        """
        from zsad.device import thread_count, use_threads
        from zsad.loading import load

        detector = load(
            model,
            backbone=options.backbone,
            weights=options.weights,
            device=device or options.device,
            calibration=calibration,
            backend=self.backend,
            precision=self.precision,
            threads=thread_count(options.threads),
            domain=options.domain,
        )
        if detector.backend.name == "torch":
            use_threads(options.threads)
        return detector


@Parameter(name="*")
@dataclass(frozen=True)
class SubjectOptions:
    """Object and region of interest.

    Args:
        object_: What the images show, such as 'metal nut', for methods whose prompts name it.
        roi: Look only here: a mask file, or a .json with polygons in pixels. A calibration brings its own.
        ignore: Do not look here: a mask file, or a .json with polygons in pixels.
    """

    object_: Annotated[str | None, Parameter(name="--object")] = None
    roi: Path | None = None
    ignore: Path | None = None

    def region(self) -> RegionOfInterest | None:
        """Return the region of interest of the files; errors as `zsad.predict.roi.read_region`."""
        if self.roi is None and self.ignore is None:
            return None
        from zsad.predict.roi import read_region

        return read_region(self.roi, self.ignore)

    def apply(self, detector: Detector, region: RegionOfInterest | None) -> Detector:
        """Return the detector with these options; a calibration that was made otherwise does not hold for it.

        Raises:
            CalibrationError: the calibration has another region of interest or object name.
        """
        from zsad.errors import CalibrationError

        view = detector.view
        for asked, calibrated, option in (
            (region, view.region, "--roi or --ignore"),
            (self.object_, detector.object_name, "--object"),
        ):
            if view.calibration is not None and asked is not None and asked != calibrated:
                raise CalibrationError(
                    f"the calibration was made with another {option}; calibrate with the same, leave it out to take "
                    "the calibration's, or go without by --calibration none"
                )
        return detector.with_(region=region or view.region, object_name=self.object_ or view.object_name)


@Parameter(name="*")
@dataclass(frozen=True)
class ViewOptions(SubjectOptions):
    """Object, region of interest and thresholds.

    Args:
        pixel_threshold: Map value above which regions lie; by default the calibration's.
        min_area: Leave out regions of fewer pixels of the image.
    """

    pixel_threshold: float | None = None
    min_area: float = 0.0

    def region(self) -> RegionOfInterest | None:
        """As `SubjectOptions.region`, and raise a ConfigError for numbers that make no sense."""
        from zsad.errors import ConfigError

        if self.min_area < 0:
            raise ConfigError(f"--min-area is {self.min_area:g}, expected 0 or more pixels")
        if self.pixel_threshold is not None and not math.isfinite(self.pixel_threshold):
            raise ConfigError(
                f"--pixel-threshold is {self.pixel_threshold:g}, expected a map value between 0 and 1"
            )
        return super().region()

    def apply(self, detector: Detector, region: RegionOfInterest | None) -> Detector:
        """As `SubjectOptions.apply`, with the thresholds."""
        detector = super().apply(detector, region)
        return detector.with_(pixel_threshold=self.pixel_threshold, min_area=self.min_area)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class InputArguments:
    """Options that both verbs have: a calibration holds for the settings it was made with.

    Args:
        overlap: Share of a tile that the next one covers again.
        keep_aspect: Keep the proportions of pictures, instead of making them square.
        references: Folder of normal images to compare with, too, or the references.safetensors of an earlier run.
        remember: With --references: patches that are remembered.
        coreset: With --references: remember patches that cover the others, not random ones.
        matte: What transparency is laid on.
        window: Centre and width of DICOM values, such as 40,400; by default the file's own.
        max_pixels: Refuse larger pictures; by default 120,000,000, and 400,000,000 with --tile.
    """

    tile: Annotated[
        str,
        Parameter(
            help="Cut large pictures into tiles at their own resolution, with a pass of the whole fused in: auto (the "
            "model's input side, for pictures more than twice as large), off, or a side in pixels."
        ),
    ] = "off"
    overlap: float = 0.25
    keep_aspect: Annotated[bool, Parameter(negative="")] = False
    references: Path | None = None
    remember: int = 10_000
    coreset: Annotated[bool, Parameter(negative="")] = False
    levels: Annotated[
        str,
        Parameter(
            help="Black and white of 16 bits: depth (the smallest of 8, 10, 12, 14, 16 bits that holds the picture), "
            "full (16 bits), or percentiles of each picture such as 0.5,99.5."
        ),
    ] = "depth"
    matte: Literal["white", "black"] = "white"
    window: str | None = None
    max_pixels: int | None = None

    def options(self) -> InputOptions:
        """Return the options; ConfigError where something makes no sense."""
        from zsad.images.pixels import MAX_PIXELS, Levels, Reading
        from zsad.predict.tiles import Tiling
        from zsad.predict.view import InputOptions

        levels: Levels = self.levels  # type: ignore[assignment]
        if "," in self.levels:
            levels = _pair(self.levels, "--levels", "0.5,99.5")
        window = None if self.window is None else _pair(self.window, "--window", "40,400")
        tiling = Tiling.of(self.tile, overlap=self.overlap)
        reading = Reading(
            levels=levels, matte=self.matte, window=window, max_pixels=self.max_pixels or MAX_PIXELS
        )
        if tiling is not None and self.max_pixels is not None:
            tiling = Tiling(tiling.size, tiling.overlap, tiling.whole, self.max_pixels)
        return InputOptions(tiling=tiling, keep_aspect=self.keep_aspect, reading=reading)

    @property
    def is_default(self) -> bool:
        """True if no option is given."""
        return self == InputArguments()


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class MetricOptions:
    """Classes and metrics of an evaluation.

    Args:
        classes: Measure only these classes; may be repeated.
        metrics: Streaming takes constant memory and says how exact it is; exact keeps every pixel.
        pro: Every score a threshold, as in MVTec AD's evaluation; AnomalyCLIP's 200 thresholds; MVTec 3D-AD's 100.
        pro_limit: Largest false positive rate of it.
        also: A further column: aupimo, pro_anomalyclip, aupro_mvtec3d, or aupro@0.05 for another rate; may be repeated.
        micro: Add a row with all classes of a data set pooled as one.
        allow_seen: Measure on data that the model was trained on, else refused; marks the table.
    """

    classes: list[str] | None = None
    metrics: Literal["streaming", "exact"] = "streaming"
    pro: Literal["aupro", "anomalyclip", "mvtec3d"] = "aupro"
    pro_limit: float = 0.3
    also: list[str] | None = None
    micro: Annotated[bool, Parameter(negative="")] = False
    allow_seen: Annotated[bool, Parameter(negative="")] = False


def with_inputs(
    detector: Detector, arguments: InputArguments, *, mutual: Sequence[Sample] | None = None
) -> Detector:
    """Return the detector with these options, that compares images with references or with each other where asked.

    Raises:
        ConfigError: options that exclude each other, or that an exported graph cannot do.
        ZsadError: as `Detector.with_references` and `Detector.with_mutual`.
    """
    from functools import partial

    from zsad.cli.console import note_skipped
    from zsad.errors import ConfigError

    report = partial(note_skipped, what="not compared with")
    if arguments.references is not None and mutual is not None:
        raise ConfigError(
            "--references and --mutual exclude each other; take references where there are normal images"
        )
    detector = detector.with_(options=arguments.options())
    if arguments.keep_aspect:
        _ = detector.backend.patch  # an exported graph says that it cannot
    if arguments.references is not None:
        pick: Literal["random", "coreset"] = "coreset" if arguments.coreset else "random"
        return detector.with_references(
            str(arguments.references), limit=arguments.remember, pick=pick, on_error=report
        )
    return detector if mutual is None else detector.with_mutual(mutual, on_error=report)


def keep_references(detector: Detector, out: Path, arguments: InputArguments) -> None:
    """Write the references of a run into its folder, for others to take."""
    from zsad.cli.console import printable, say

    references = arguments.references
    if references is not None and references.suffix != ".safetensors" and out.is_dir():
        from zsad.comparison.load import save_references  # with PyTorch, which exported graphs do without

        save_references(detector.model, detector.view, out / _FILE)
        say(f"wrote the references into {printable(out / _FILE)}, to be given to --references again")


def _pair(text: str, option: str, example: str) -> tuple[float, float]:
    from zsad.errors import ConfigError

    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is {text!r}, expected two numbers such as {example}") from None
    return first, second
