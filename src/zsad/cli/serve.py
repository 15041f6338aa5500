"""`zsad serve`: the model behind HTTP, with a page."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from zsad.cli.options import ModelOptions, RuntimeOptions, ViewOptions


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
    calibration: str = "auto",
    view: ViewOptions | None = None,
    runtime: RuntimeOptions | None = None,
    tower: ModelOptions | None = None,
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
        calibration: File of zsad calibrate; auto takes the one beside the model, if any; none gives scores only.
        verbose: Log each request on stderr.
    """
    import logging
    from importlib.util import find_spec

    from zsad.cli.console import printable, say
    from zsad.errors import ConfigError

    packages = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "anyio")
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(f"zsad serve needs {', '.join(missing)}, get it with: pip install 'zsad[serve]'")
    from zsad.serve.limits import RequestLimits
    from zsad.serve.server import address_of, bind, check_token, run
    from zsad.serve.service import Service

    limits = RequestLimits.of(
        max_queue=max_queue, batch=batch, max_bytes=max_bytes, max_pixels=max_pixels, timeout=timeout
    )
    check_token(token, host)
    view, runtime, tower = view or ViewOptions(), runtime or RuntimeOptions(), tower or ModelOptions()
    region = view.region()
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    with bind(host, port) as bound:
        detector = view.apply(runtime.load(model, tower, calibration=calibration), region)
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
