"""`zsad predict`: own images in, scores, heat maps and a report out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from zsad.cli.options import (
    InputArguments,
    ModelOptions,
    RuntimeOptions,
    ViewOptions,
    keep_references,
    with_inputs,
)

# Said again here: the help of a verb imports nothing heavy.
_Format = Literal["jsonl", "csv", "coco", "labelstudio"]
_Engine = Literal["local", "ray"]


def predict_command(
    *inputs: str,
    model: str = "promptmoe-tiny",
    out: Path = Path("results"),
    batch_size: int | None = None,
    overlay: bool = True,
    max_overlay_side: int = 1024,
    report: bool = True,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    calibration: str = "auto",
    regions: Annotated[list[_Format] | None, Parameter(consume_multiple=True)] = None,
    engine: _Engine = "local",
    address: str | None = None,
    workers: int | None = None,
    column: str | None = None,
    view: ViewOptions | None = None,
    runtime: RuntimeOptions | None = None,
    tower: ModelOptions | None = None,
    input_options: InputArguments | None = None,
    mutual: Annotated[bool, Parameter(negative="")] = False,
    every: int = 1,
) -> int:
    """Score images and outline what is wrong with them.

    Prints a line for each image and writes predictions.jsonl, scores.csv, overlays and report.html. The same
    command goes on where it was interrupted. A file that cannot be read is reported and skipped (exit code 3).

    Args:
        inputs: Images, folders (searched recursively), patterns such as 'parts/*.png', videos, or cameras (rtsp://...,
            /dev/video0). Each page of a TIFF is an image, called scan.tif#2, each frame of a video, too.
        model: Bundled model, run folder, checkpoint, exported graph, or a method without training (clip, clip-tiny).
        out: Folder for the results.
        batch_size: Images a pass; by default what suits the device.
        overlay: Write a heat-map overlay for each image.
        max_overlay_side: Longest side of an overlay, in pixels.
        report: Write report.html.
        overwrite: Throw away the run that lies in the folder.
        calibration: File of zsad calibrate; auto takes the one beside the model, if any; none gives scores only.
        regions: Write the connected parts above the pixel threshold to files; several may be named.
        engine: ray deals the images out to several workers, on this machine or a cluster; inputs may then be Parquet or
            addresses such as s3://bucket/folder, too. Writes predictions.parquet, and neither overlays nor a report.
        address: Of a running Ray cluster, such as ray://head:10001 or auto; by default one is started here.
        workers: Copies of the model; by default one a GPU, or without GPUs one a machine.
        column: Of Parquet, with images or paths; by default bytes, content, image or path.
        mutual: Compare the images with each other, too: what most others do not have is odd.
        every: Of videos and cameras take the 1st frame, and then each one so many frames later.
    """
    from zsad.cli.console import print_summary, printing
    from zsad.runs.folder import check_place
    from zsad.runs.predict_run import RunInputs, RunOptions, named_inputs, predict, run_title

    view, runtime, tower = view or ViewOptions(), runtime or RuntimeOptions(), tower or ModelOptions()
    input_options = input_options or InputArguments()
    options = RunOptions(
        out=out,
        overwrite=overwrite,
        overlay=overlay,
        max_overlay_side=max_overlay_side,
        batch_size=batch_size,
        report=report,
        regions=tuple(regions or ()),
        every=every,
    )
    check_place(out)
    local = engine == "local"
    run_inputs = RunInputs.find(inputs, out) if local else RunInputs(inputs, ())
    _check_engine(engine, mutual=mutual, backend=runtime.backend, cluster_options=(address, workers, column))
    region = view.region()
    plain = input_options.is_default and not mutual
    device = None if local else "cpu"  # with Ray this process only says what the model is
    detector = runtime.load(model, tower, calibration=calibration if plain else None, device=device)
    if not plain:
        detector = with_inputs(detector, input_options, mutual=run_inputs.samples if mutual else None)
        # No calibration can be of the very images that a batch compares: none is looked for.
        detector.use_default(None if mutual and calibration == "auto" else calibration)
    detector = view.apply(detector, region)
    if not local:
        from zsad.cli.cluster import ClusterRequest, score_on_ray

        request = ClusterRequest(model, tower, calibration, address, workers, column)
        return score_on_ray(detector, list(inputs), request=request, options=options)
    run_inputs = named_inputs(run_inputs, detector)
    with printing(detector, run_inputs) as printer:
        outcome = predict(
            detector, run_inputs, options=options, title=run_title(list(inputs)), reporter=printer
        )
    code = print_summary(outcome, options)
    keep_references(detector, out, input_options)
    return code


def _check_engine(
    engine: _Engine, *, mutual: bool, backend: str | None, cluster_options: tuple[object, ...]
) -> None:
    """Raise a ConfigError for options that the engine does not have."""
    from zsad.errors import ConfigError

    if engine == "ray" and mutual:
        raise ConfigError("--engine ray scores each image alone; leave out --mutual, or --engine")
    if engine == "local" and any(cluster_options):
        raise ConfigError("--address, --workers and --column are for --engine ray; add it, or leave them out")
    if engine == "ray" and backend == "auto":
        raise ConfigError("--backend auto may differ between machines; with --engine ray, name one")
