"""`zsad serve`: the model behind HTTP, with a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

_Backend = Literal["auto", "torch", "onnx", "openvino"]
_Precision = Literal["auto", "fp32", "bf16", "fp16"]


def serve_command(
    model: str = "promptmoe-tiny",
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: Annotated[str | None, Parameter(env_var="ZSAD_TOKEN")] = None,
    max_queue: int = 32,
    batch: int | None = None,
    max_bytes: int = 32 * 1024 * 1024,
    max_pixels: int = 64_000_000,
    timeout: float = 30.0,
    object_: Annotated[str | None, Parameter(name="--object")] = None,
    backbone: str | None = None,
    weights: Path | None = None,
    device: str = "auto",
    backend: _Backend | None = None,
    precision: _Precision = "auto",
    threads: int | None = None,
    calibration: str = "auto",
    roi: Path | None = None,
    ignore: Path | None = None,
    pixel_threshold: float | None = None,
    min_area: float = 0.0,
    verbose: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Serve a model over HTTP: a web page at /, the interface under /v1, its description at /api.

    Answers this machine alone unless --host says otherwise, which needs a token. Ctrl+C or SIGTERM finishes what
    was accepted and ends.

    Args:
        model: Bundled model, run folder, checkpoint, method without training, or what zsad export wrote.
        host: Address to serve at; 0.0.0.0 for all of this machine.
        port: Port to serve at; 0 takes a free one.
        token: That requests must carry as 'Authorization: Bearer TOKEN'; better kept in ZSAD_TOKEN.
        max_queue: Images inside at once; more are refused with 429 until there is room.
        batch: Images a pass of the model at most; by default what suits the device.
        max_bytes: Of one image, as it is sent.
        max_pixels: Of one image, checked before it is decoded.
        timeout: Seconds an image may take to arrive, and then to be answered.
        object_: What the images show, such as 'metal nut', for methods whose prompts name it.
        backbone: Another tower, by name or path, for methods without training; else where the model's own lies.
        weights: File or folder of the backbone's weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        backend: torch; onnx or openvino for what zsad export wrote; auto for what is fastest here.
        precision: fp32, bf16 or fp16.
        threads: Processor threads of the model; by default all cores.
        calibration: File of zsad calibrate; auto takes the one beside the model, if any; none gives scores only.
        roi: Look only here: a mask file, or a .json with polygons in pixels. A calibration brings its own.
        ignore: Do not look here: a mask file, or a .json with polygons in pixels.
        pixel_threshold: Map value above which regions lie; by default the calibration's.
        min_area: Leave out regions of fewer pixels of the image.
        verbose: Log each request on stderr.
    """
    import logging
    from importlib.util import find_spec

    from zsad.cli.console import printable, say
    from zsad.cli.input_options import with_view
    from zsad.device import thread_count, use_threads
    from zsad.errors import ConfigError
    from zsad.loading import load
    from zsad.predict.roi import read_region

    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"zsad serve needs {', '.join(missing)}, get it with: pip install 'zsad[serve]'")
    from zsad.serve.limits import Limits
    from zsad.serve.server import address_of, bind, check_token, run
    from zsad.serve.service import Service

    limits = Limits.of(
        max_queue=max_queue, batch=batch, max_bytes=max_bytes, max_pixels=max_pixels, timeout=timeout
    )
    check_token(token, host)
    region = read_region(roi, ignore)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    with bind(host, port) as bound:
        detector = load(
            model,
            backbone=backbone,
            weights=weights,
            device=device,
            calibration=calibration,
            backend=backend,
            precision=precision,
            threads=thread_count(threads),
        )
        if detector.backend.name == "torch":
            use_threads(threads)
        detector = with_view(
            detector, region=region, object_name=object_, pixel_threshold=pixel_threshold, min_area=min_area
        )
        service = Service(detector, limits)
        service.warm_up()
        address = address_of(bound)
        run(
            service,
            bound,
            token=token,
            started=lambda: say(f"serving {printable(model)} at {address} (Ctrl+C ends)"),
        )
    say("stopped; every request that was accepted has been answered")
    return 0
