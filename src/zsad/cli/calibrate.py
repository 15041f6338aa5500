"""`zsad calibrate`: from normal images to thresholds, and what they guarantee."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zsad.cli.options import InputArguments, ModelOptions, SubjectOptions, with_inputs

if TYPE_CHECKING:
    from zsad.calibration.calibration import Calibration
    from zsad.errors import ZsadError
    from zsad.types import Sample


def calibrate_command(
    model: str,
    /,
    *,
    normals: str | None = None,
    target_fpr: float = 0.01,
    pixel_fpr: float | None = None,
    confidence: float = 0.95,
    pixel_rule: Literal["maxima", "pixels"] = "maxima",
    labelled: Path | None = None,
    goal: str = "f1",
    out: Path | None = None,
    batch_size: int | None = None,
    subject: SubjectOptions | None = None,
    tower: ModelOptions | None = None,
    input_options: InputArguments | None = None,
) -> int:
    """Find the thresholds above which an image is anomalous, from normal images of your own.

    Writes calibration.json beside the model's weights, where zsad predict finds it by itself, or into --out. Says
    which false-positive rate the thresholds guarantee, and how many normal images a stricter guarantee needs.

    Args:
        model: Bundled model, run folder, checkpoint, or a method without training (clip, clip-tiny).
        normals: Folder or pattern of normal images; of a labelled data set the normal ones are taken.
        target_fpr: Rate of normal images that may be called anomalous.
        pixel_fpr: Rate of normal images that may show a region; by default the same.
        confidence: That the rates hold for this calibration; 0 guarantees them on average over calibrations.
        pixel_rule: Pixel threshold from each image's highest map value, or from the share of its pixels.
        labelled: Data set with normal and anomalous images, to choose the image threshold on.
        goal: With --labelled: f1, or recall=0.99.
        out: File to write; needed for bundled models.
        batch_size: Images a pass; by default what suits the device.
    """
    from zsad.calibration.calibration import write_calibration
    from zsad.calibration.thresholds import CalibrationTarget
    from zsad.cli.console import note, printable, progress
    from zsad.errors import CalibrationError
    from zsad.runs.folder import check_place

    target = CalibrationTarget.of(
        target_fpr=target_fpr, pixel_fpr=pixel_fpr, confidence=confidence, pixel_rule=pixel_rule, goal=goal
    )
    if normals is None and labelled is None:
        raise CalibrationError(
            "no images given: name normal ones with --normals, or labelled ones with --labelled"
        )
    path = _place(model, out)
    check_place(path.parent)
    normal_samples = [] if normals is None else _normals(normals)
    labelled_samples = [] if labelled is None else _labelled(labelled)
    subject = subject or SubjectOptions()
    region = subject.region()
    detector = (tower or ModelOptions()).load(model)
    if input_options is not None and not input_options.is_default:
        detector = with_inputs(detector, input_options)
    detector = subject.apply(detector, region)
    failed = 0
    with progress("calibrating", len(normal_samples) + len(labelled_samples)) as advance:

        def report(sample: Sample, error: ZsadError) -> None:
            nonlocal failed
            failed += 1
            note(f"zsad: skipped: {printable(error)}")

        calibration = detector.calibrate(
            normal_samples,
            labelled=labelled_samples,
            batch_size=batch_size,
            on_error=report,
            progress=advance,
            on_tile=advance.tiles,
            **target.model_dump(),
        )
    write_calibration(calibration, path)
    _print_calibration(calibration, path)
    return 3 if failed else 0


def _print_calibration(calibration: Calibration, path: Path) -> None:
    """Print what a calibration guarantees, and where it was written."""
    from zsad.cli.console import note, plural, printable, say

    scores = calibration.scores
    say(f"{plural(len(scores), 'normal image')}, scores {scores[0]:.3f} to {scores[-1]:.3f}")
    for line in calibration.summary():
        say(line)
    for line in calibration.warnings():
        note(f"zsad: {line}")
    say(f"wrote {printable(path)}")


def _place(model: str, out: Path | None) -> Path:
    """The file to write."""
    from zsad.errors import CalibrationError
    from zsad.predict.view import CALIBRATION_FILE, calibration_beside
    from zsad.train.checkpoint import holds_run, is_bundled, resolve_model

    if out is not None:
        return out / CALIBRATION_FILE if out.is_dir() else out
    if not holds_run(Path(model)):
        from zsad.loading import untrained_methods

        built_in = {name for method in untrained_methods() for name in (method, f"{method}-tiny")}
        if model in built_in or is_bundled(model):
            raise CalibrationError(
                f"model {model} is part of zsad, where nothing is written; name a file with --out {CALIBRATION_FILE}"
            )
    return calibration_beside(resolve_model(model))


def _normals(given: str) -> list[Sample]:
    """Normal images of a folder or pattern; what is labelled anomalous is left out, and said so."""
    from zsad.cli.console import note, plural, printable
    from zsad.datasets.manifest import discover
    from zsad.errors import DataError
    from zsad.images.inputs import expand_inputs

    path = Path(given).expanduser()
    if not path.is_dir() and path.suffix.lower() not in (".jsonl", ".ndjson", ".csv", ".json"):
        return expand_inputs([given])
    samples = discover(path).samples
    kept = [sample for sample in samples if sample.label != 1]
    if not kept:
        raise DataError(
            f"all {len(samples)} images of {path} are labelled anomalous; name a folder of normal ones"
        )
    if len(kept) < len(samples):
        left = plural(len(samples) - len(kept), "image")
        note(f"zsad: {left} of {printable(path)} labelled anomalous, left out")
    return kept


def _labelled(folder: Path) -> list[Sample]:
    """Labelled samples of a data set, both labels among them."""
    from zsad.datasets.manifest import discover
    from zsad.errors import DataError

    kept = [sample for sample in discover(folder).samples if sample.label is not None]
    labels = {sample.label for sample in kept}
    if labels != {0, 1}:
        contents = "no labels" if not labels else f"only {'anomalous' if labels == {1} else 'normal'} images"
        raise DataError(
            f"--labelled {folder} holds {contents}, expected normal and anomalous ones, such as good/ beside scratch/; "
            "with normal images alone use --normals"
        )
    return kept
