"""Options that verbs share: which model, on what it runs, and how its scores are judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from zsad.detector import Detector
    from zsad.predict.roi import RegionOfInterest


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Tower, device and threads of a model."""

    backbone: Annotated[
        str | None,
        Parameter(
            help="Another tower, by name or path, for methods without training; else where the model's own lies."
        ),
    ] = None
    weights: Annotated[Path | None, Parameter(help="File or folder of the backbone's weights.")] = None
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    threads: Annotated[int | None, Parameter(help="Processor threads; by default all cores.")] = None

    def load(self, model: str, *, calibration: str | Path | None = None) -> Detector:
        """Load a model in PyTorch, or an exported graph; errors as `zsad.load`."""
        from zsad.device import use_threads
        from zsad.loading import load

        use_threads(self.threads)
        return load(
            model,
            backbone=self.backbone,
            weights=self.weights,
            device=self.device,
            calibration=calibration,
        )


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Runtime of a model; the options of `ModelOptions` lie beside it."""

    backend: Annotated[
        Literal["auto", "torch", "onnx", "openvino"] | None,
        Parameter(
            help="torch; onnx or openvino for what zsad export wrote; auto for what is fastest here, which exports a "
            "model when it is first used. By default what the model is made for."
        ),
    ] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Parameter(
            help="fp32, bf16 or fp16. By default full precision in torch, bf16 in OpenVINO where the processor has it."
        ),
    ] = "auto"

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
        )
        if detector.backend.name == "torch":
            use_threads(options.threads)
        return detector


@Parameter(name="*")
@dataclass(frozen=True)
class SubjectOptions:
    """Object and region of interest."""

    object_: Annotated[
        str | None,
        Parameter(
            name="--object",
            help="What the images show, such as 'metal nut', for methods whose prompts name it.",
        ),
    ] = None
    roi: Annotated[
        Path | None,
        Parameter(
            help="Look only here: a mask file, or a .json with polygons in pixels. A calibration brings its own."
        ),
    ] = None
    ignore: Annotated[
        Path | None, Parameter(help="Do not look here: a mask file, or a .json with polygons in pixels.")
    ] = None

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
    """Object, region of interest and thresholds."""

    pixel_threshold: Annotated[
        float | None, Parameter(help="Map value above which regions lie; by default the calibration's.")
    ] = None
    min_area: Annotated[float, Parameter(help="Leave out regions of fewer pixels of the image.")] = 0.0

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
