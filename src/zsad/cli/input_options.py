"""Input options of `predict` and `calibrate`: tiles, proportions, depth, and images to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from zsad.detector import Detector
    from zsad.predict.prediction import Prediction
    from zsad.predict.view import InputOptions
    from zsad.types import Sample

_FILE = "references.safetensors"
_SHRUNK = 4.0  # times a picture is larger than the model's input before it is worth a word


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class InputArguments:
    """Options that both verbs have: a calibration holds for the settings it was made with."""

    tile: Annotated[
        str,
        Parameter(
            help="Cut large pictures into tiles at their own resolution, with a pass of the whole fused in: auto (the "
            "model's input side, for pictures more than twice as large), off, or a side in pixels."
        ),
    ] = "off"
    overlap: Annotated[float, Parameter(help="Share of a tile that the next one covers again.")] = 0.25
    keep_aspect: Annotated[
        bool, Parameter(negative="", help="Keep the proportions of pictures, instead of making them square.")
    ] = False
    references: Annotated[
        Path | None,
        Parameter(
            help="Folder of normal images to compare with, too, or the references.safetensors of an earlier run."
        ),
    ] = None
    remember: Annotated[int, Parameter(help="With --references: patches that are remembered.")] = 10_000
    coreset: Annotated[
        bool,
        Parameter(
            negative="", help="With --references: remember patches that cover the others, not random ones."
        ),
    ] = False
    levels: Annotated[
        str,
        Parameter(
            help="Black and white of 16 bits: depth (the smallest of 8, 10, 12, 14, 16 bits that holds the picture), "
            "full (16 bits), or percentiles of each picture such as 0.5,99.5."
        ),
    ] = "depth"
    matte: Annotated[Literal["white", "black"], Parameter(help="What transparency is laid on.")] = "white"
    window: Annotated[
        str | None,
        Parameter(help="Centre and width of DICOM values, such as 40,400; by default the file's own."),
    ] = None
    max_pixels: Annotated[
        int | None,
        Parameter(help="Refuse larger pictures; by default 120,000,000, and 400,000,000 with --tile."),
    ] = None

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


def with_inputs(
    detector: Detector, arguments: InputArguments, *, mutual: Sequence[Sample] | None = None
) -> Detector:
    """Return the detector with these options, that compares images with references or with each other where asked.

    Raises:
        ConfigError: options that exclude each other, or that an exported graph cannot do.
        ZsadError: as `Detector.with_references` and `Detector.with_mutual`.
    """
    from zsad.cli.console import note, printable
    from zsad.errors import ConfigError, ZsadError

    def report(sample: Sample, error: ZsadError) -> None:
        note(f"zsad: not compared with: {printable(error)}")

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


def shrunk_hint(detector: Detector, prediction: Prediction) -> str | None:
    """Return a line on what is lost of a large picture that is not cut into tiles; None where it is little."""
    # By area: tiles do not help a picture that is long, but thin.
    times = math.sqrt(math.prod(prediction.size) / math.prod(detector.model.preprocess.image_size))
    if detector.view.options.tiling is not None or times <= _SHRUNK:
        return None
    height, width = prediction.size
    patch = max(height / prediction.grid.shape[-2], width / prediction.grid.shape[-1])
    return (
        f"zsad: a picture of {width}x{height} is shrunk {times:.0f} times for the model, a patch of which then covers "
        f"{patch:.0f} pixels: to find what is smaller, add --tile auto, which looks at such pictures in tiles"
    )


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
