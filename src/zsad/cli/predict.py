"""`zsad predict`: own images in, scores, heat maps and a report out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from zsad.cli.input_options import InputArguments, keep_references, with_inputs, with_view

# Said again here: the help of a verb imports nothing heavy.
_Format = Literal["jsonl", "csv", "coco", "labelstudio"]
_Backend = Literal["auto", "torch", "onnx", "openvino"]
_Precision = Literal["auto", "fp32", "bf16", "fp16"]
_Engine = Literal["local", "ray"]


def predict_command(
    *inputs: str,
    model: str = "promptmoe-tiny",
    object_: Annotated[str | None, Parameter(name="--object")] = None,
    out: Path = Path("results"),
    backbone: str | None = None,
    weights: Path | None = None,
    device: str = "auto",
    backend: _Backend | None = None,
    precision: _Precision = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    overlay: bool = True,
    max_overlay_side: int = 1024,
    report: bool = True,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    calibration: str = "auto",
    roi: Path | None = None,
    ignore: Path | None = None,
    regions: Annotated[list[_Format] | None, Parameter(consume_multiple=True)] = None,
    pixel_threshold: float | None = None,
    min_area: float = 0.0,
    engine: _Engine = "local",
    address: str | None = None,
    workers: int | None = None,
    column: str | None = None,
    look: InputArguments | None = None,
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
        object_: What the images show, such as 'metal nut', for methods whose prompts name it (winclip, moeclip, ...).
        out: Folder for the results.
        backbone: Another tower, by name or path, for methods without training; else where the model's own lies.
        weights: File or folder of the backbone's weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        backend: torch; onnx or openvino for what zsad export wrote; auto for what is fastest here, which exports a
            model when it is first used. By default what the model is made for.
        precision: fp32, bf16 or fp16. By default full precision in torch, bf16 in OpenVINO where the processor has it.
        batch_size: Images a pass; by default what suits the device.
        threads: Processor threads; by default all cores.
        overlay: Write a heat-map overlay for each image.
        max_overlay_side: Longest side of an overlay, in pixels.
        report: Write report.html.
        overwrite: Throw away the run that lies in the folder.
        calibration: File of zsad calibrate; auto takes the one beside the model, if any; none gives scores only.
        roi: Look only here: a mask file, or a .json with polygons in pixels. A calibration brings its own.
        ignore: Do not look here: a mask file, or a .json with polygons in pixels.
        regions: Write the connected parts above the pixel threshold to files; several may be named.
        pixel_threshold: Map value above which regions lie; by default the calibration's.
        min_area: Leave out regions of fewer pixels of the image.
        engine: ray deals the images out to several workers, on this machine or a cluster; inputs may then be Parquet or
            addresses such as s3://bucket/folder, too. Writes predictions.parquet, and neither overlays nor a report.
        address: Of a running Ray cluster, such as ray://head:10001 or auto; by default one is started here.
        workers: Copies of the model; by default one a GPU, or without GPUs one a machine.
        column: Of Parquet, with images or paths; by default bytes, content, image or path.
        mutual: Compare the images with each other, too: what most others do not have is odd.
        every: Of videos and cameras take the 1st frame, and then each one so many frames later.
    """
    from zsad.cli.printing import print_summary, printing
    from zsad.device import thread_count, use_threads
    from zsad.errors import ConfigError
    from zsad.loading import load
    from zsad.predict.roi import read_region
    from zsad.runs.folder import check_place
    from zsad.runs.predict_run import RunInputs, RunOptions, named_inputs, predict, run_title

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
    look = look or InputArguments()
    found = RunInputs.find(inputs, out) if engine == "local" else RunInputs(inputs, ())
    _check_engine(engine, mutual=mutual, backend=backend, cluster_options=(address, workers, column))
    region = read_region(roi, ignore)
    detector = load(
        model,
        backbone=backbone,
        weights=weights,
        device=device if engine == "local" else "cpu",  # here it only says what the model is
        calibration=calibration if look.is_default and not mutual else None,
        backend=backend,
        precision=precision,
        threads=thread_count(threads),
    )
    if detector.backend.name == "torch":
        use_threads(threads)
    if not look.is_default or mutual:
        detector = with_inputs(detector, look, mutual=found.samples if mutual else None)
        # No calibration can be of the very images that a batch compares: none is looked for.
        detector.use_default(None if mutual and calibration == "auto" else calibration)
    detector = with_view(
        detector, region=region, object_name=object_, pixel_threshold=pixel_threshold, min_area=min_area
    )
    if regions and detector.view.map_threshold is None:
        raise ConfigError("--regions needs a pixel threshold: run zsad calibrate, or give --pixel-threshold")
    if engine == "ray":
        from zsad.cli.cluster import ClusterRequest, score_on_ray

        request = ClusterRequest(
            model, backbone, weights, device, calibration, threads, address, workers, column
        )
        return score_on_ray(detector, list(inputs), request=request, options=options)
    found = named_inputs(found, detector)
    with printing(detector, found) as printer:
        outcome = predict(detector, found, options=options, title=run_title(list(inputs)), reporter=printer)
    code = print_summary(outcome, options)
    keep_references(detector, out, look)
    return code


def _check_engine(
    engine: _Engine, *, mutual: bool, backend: _Backend | None, cluster_options: tuple[object, ...]
) -> None:
    """Raise a ConfigError for options that the engine does not have."""
    from zsad.errors import ConfigError

    if engine == "ray" and mutual:
        raise ConfigError("--engine ray scores each image alone; leave out --mutual, or --engine")
    if engine == "local" and any(cluster_options):
        raise ConfigError("--address, --workers and --column are for --engine ray; add it, or leave them out")
    if engine == "ray" and backend == "auto":
        raise ConfigError("--backend auto may differ between machines; with --engine ray, name one")
