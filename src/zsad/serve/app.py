"""The endpoints, and the page."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

import zsad
from zsad.calibration.calibration import parse_calibration
from zsad.calibration.thresholds import CalibrationTarget, PixelRule
from zsad.errors import CalibrationError
from zsad.methods.registry import sources_note
from zsad.serve import metrics, streams
from zsad.serve.gate import Gate, problem
from zsad.serve.limits import MEGA, ClientGone, Refusal
from zsad.serve.schemas import (
    BatchAnswer,
    CalibrationAnswer,
    Health,
    Include,
    ModelsAnswer,
    PredictionAnswer,
    Problem,
)
from zsad.serve.service import Service
from zsad.serve.uploads import Upload, read_uploads

_STATIC = Path(__file__).parent / "static"
_BASE = Path(zsad.__file__).parent / "runs" / "templates" / "style.css"
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_CALIBRATION_BYTES = 16 * MEGA
_NO_MODEL_TO_RELY_ON = (
    "The small model that ships with the package makes everything run anywhere in seconds. It is no detector to rely "
    "on: for real work serve one on ViT-L/14@336."
)

Value = TypeVar("Value")
router = APIRouter()
_FILE = {"type": "string", "format": "binary"}


def _bodies(name: str, *, several: bool) -> dict[str, Any]:
    """What a request carries, for the OpenAPI document: bodies are read by hand."""
    field: dict[str, Any] = {"type": "array", "items": _FILE} if several else _FILE
    form = {"schema": {"type": "object", "properties": {name: field}, "required": [name]}}
    kinds: dict[str, Any] = {"multipart/form-data": form}
    if not several:
        kinds |= {"image/*": {"schema": _FILE}, "application/octet-stream": {"schema": _FILE}}
    return {"requestBody": {"required": True, "content": kinds}}


def _problems(**reasons: str) -> dict[int | str, dict[str, Any]]:
    """Refusals of an endpoint, for the OpenAPI document."""
    return {
        int(status[1:]): {"description": text, "content": {"application/problem+json": {}}, "model": Problem}
        for status, text in reasons.items()
    }


_SENDING = _problems(
    s400="The form is broken.",
    s408="The image did not arrive in time.",
    s413="Too many bytes, pixels or images.",
    s415="Neither an image nor a form.",
    s422="The image cannot be used.",
    s429="Too busy: try again after Retry-After seconds.",
    s504="No answer in time.",
)


def service_of(request: Request) -> Service:
    """The service behind the endpoints."""
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(service_of)]


@router.post(
    "/v1/predict",
    response_model=PredictionAnswer,
    openapi_extra=_bodies("image", several=False),
    responses=_SENDING,
    summary="Score one image",
)
async def predict(
    request: Request,
    service: Served,
    include: Annotated[list[Include] | None, Query(description="What else to send; may be repeated.")] = None,
) -> Response:
    """Score, verdict, regions and routing of one image, sent raw or as the one file of a form."""
    service.check_room()
    upload = await _only(request, service)
    try:
        answer = await _attended(request, service.answer(upload, include or ()))
    finally:
        upload.drop()
    return JSONResponse(answer)


@router.post(
    "/v1/batch",
    response_model=BatchAnswer,
    openapi_extra=_bodies("images", several=True),
    responses=_SENDING,
    summary="Score many images",
)
async def batch(request: Request, service: Served) -> Response:
    """A row for each image of a form, in order; one that cannot be used is a row that says why."""
    return JSONResponse(await streams.score_batch(service, request))


@router.post(
    "/v1/calibrate",
    response_model=CalibrationAnswer,
    openapi_extra=_bodies("images", several=True),
    responses=_SENDING,
    summary="Calibrate on normal images",
)
async def calibrate(
    request: Request,
    service: Served,
    target_fpr: Annotated[
        float, Query(description="Rate of normal images that may be called anomalous.")
    ] = 0.01,
    pixel_fpr: Annotated[
        float | None, Query(description="Rate of normal images that may show a region; by default the same.")
    ] = None,
    confidence: Annotated[
        float, Query(description="That the rates hold for this calibration; 0: on average over calibrations.")
    ] = 0.95,
    pixel_rule: Annotated[
        PixelRule,
        Query(description="Pixel threshold from each image's highest value, or from shares of pixels."),
    ] = "maxima",
) -> Response:
    """Thresholds from the normal images of a form. They judge all answers from now on, until the service ends."""
    try:
        wish = CalibrationTarget.of(
            target_fpr=target_fpr, pixel_fpr=pixel_fpr, confidence=confidence, pixel_rule=pixel_rule
        )
    except CalibrationError as error:
        raise Refusal(422, "impossible_wish", str(error)) from None
    return _calibration_answer(await streams.calibrate(service, request, wish))


@router.get("/v1/calibration", response_model=CalibrationAnswer, summary="The calibration in use")
async def calibration(service: Served) -> Response:
    """The thresholds in use, with all that zsad serve --calibration needs to take them up again."""
    made = service.calibration
    if made is None:
        raise Refusal(404, "not_calibrated", "there is no calibration; send normal images to /v1/calibrate")
    return _calibration_answer(
        {"calibration": made, "summary": made.summary(), "warnings": made.warnings(), "skipped": []}
    )


@router.put(
    "/v1/calibration",
    response_model=CalibrationAnswer,
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {}}}},
    responses=_problems(s413="Too large.", s422="It is no calibration, or one of another model."),
    summary="Use a calibration",
)
async def put_calibration(request: Request, service: Served) -> Response:
    """Takes a calibration that was downloaded here or written by zsad calibrate."""
    content = await _small_body(request, service)
    try:
        service.use(parse_calibration(content))
    except CalibrationError as error:
        raise Refusal(422, "no_calibration", str(error)) from None
    return await calibration(service)


@router.delete("/v1/calibration", status_code=204, summary="Go without calibration")
async def delete_calibration(service: Served) -> Response:
    """Scores only from now on, no verdicts."""
    service.use(None)
    return Response(status_code=204)


@router.get("/v1/models", response_model=ModelsAnswer, summary="The model that is served")
async def models(service: Served) -> Response:
    """What it is, how images are prepared for it, and the limits on requests."""
    return JSONResponse({"models": [describe(service)]})


@router.get("/healthz", response_model=Health, summary="Whether the process works")
async def healthz(service: Served) -> Response:
    """200 while the process works at all."""
    return JSONResponse(
        {"status": "ok"} if service.alive else {"status": "broken"}, 200 if service.alive else 503
    )


@router.get("/readyz", response_model=Health, summary="Whether to send requests")
async def readyz(service: Served) -> Response:
    """200 while requests are wanted; 503 while the service stops."""
    return JSONResponse(
        {"status": "ok"} if service.ready else {"status": "stopping"}, 200 if service.ready else 503
    )


@router.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics")
async def show_metrics(service: Served) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(service.metrics.render(), headers={"content-type": metrics.CONTENT_TYPE})


async def _only(request: Request, service: Service) -> Upload:
    """The one image of a request."""
    found: Upload | None = None
    async with aclosing(read_uploads(request, service.limits, budget=service.budget)) as uploads:
        async for upload in uploads:
            if found is not None:
                found.drop()
                upload.drop()
                raise Refusal(422, "too_many_images", "more than one image; send several to /v1/batch")
            found = upload
    if found is None:
        raise Refusal(422, "no_image", "the form holds no image; send one as a file")
    return found


async def _attended(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """The result of some work, unless the client hangs up before.

    Raises:
        ClientGone: it has.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.add_done_callback(_unheard)
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone


def _unheard(task: asyncio.Task[Any]) -> None:
    """Takes notice of how work ended that nobody waits for any more, so that the event loop need not report it."""
    if not task.cancelled():
        task.exception()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _small_body(request: Request, service: Service) -> bytes:
    limits = service.limits.model_copy(update={"max_bytes": _CALIBRATION_BYTES})
    scope = dict(request.scope)
    scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
    async with aclosing(read_uploads(Request(scope, request.receive), limits)) as uploads:
        return b"".join([upload.content async for upload in uploads])


def _calibration_answer(values: dict[str, Any]) -> Response:
    return JSONResponse(
        {**values, "calibration": values["calibration"].model_dump(mode="json", by_alias=True)}
    )


def describe(service: Service) -> dict[str, Any]:
    """The model that is served, as plain values."""
    detector, card, made = service.detector, service.detector.card, service.calibration
    note = sources_note(card.method, card.provenance) or ""
    if card.backbone.name == "zsad-tiny":
        note = f"{note} {_NO_MODEL_TO_RELY_ON}".strip()
    return {
        "name": detector.name,
        "identity": service.identity,
        "method": card.method,
        "backbone": card.backbone.name,
        "input": list(detector.model.preprocess.image_size),
        "layers": list(card.config.get("layers", ())),
        "shows": detector.object_name,
        "trained_on": [] if card.training is None else list(card.training.datasets),
        "note": note,
        "runtime": {**detector.backend.settings(), **detector.backend.environment()},
        "calibrated": made is not None,
        "calibration": None if made is None else made.digest(),
        "limits": {**service.limits.model_dump(), "batch": service.batch},
    }


def _static_files() -> dict[str, tuple[bytes, str, str]]:
    """Content, media type and tag of each file of the page by its address: nothing else can be asked for."""
    paths = {path.name: path for path in sorted(_STATIC.iterdir()) if path.suffix in _MEDIA}
    paths["base.css"] = _BASE  # the style that reports and this page share
    files = {}
    for name, path in paths.items():
        content = path.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        files[f"/static/{name}"] = (content, _MEDIA[path.suffix], tag)
    return files | {"/": files["/static/index.html"], "/api": files["/static/api.html"]}


def _add_pages(app: FastAPI) -> None:
    for address, (content, media, tag) in _static_files().items():

        async def page(
            request: Request, content: bytes = content, media: str = media, tag: str = tag
        ) -> Response:
            headers = {"etag": tag, "cache-control": "no-cache"}
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers=headers)
            return Response(content, media_type=media, headers=headers)

        app.add_route(address, page, methods=["GET", "HEAD"], include_in_schema=False)


def create_app(service: Service, *, token: str | None = None) -> FastAPI:
    """The application around a service, which it closes when it ends.

    Args:
        service: the model.
        token: that requests must carry; None: requests of this machine only.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="zsad",
        version=zsad.__version__,
        description="Zero-shot anomaly detection: what is wrong with an image, and where.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    _add_pages(app)
    _add_problems(app)
    app.add_middleware(Gate, metrics=service.metrics, token=token)
    _describe_token(app, token)
    return app


def _describe_token(app: FastAPI, token: str | None) -> None:
    """Says in the OpenAPI document that a token is wanted."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            if token is not None:
                schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
                schemes["token"] = {"type": "http", "scheme": "bearer"}
                schema["security"] = [{"token": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _add_problems(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)  # registered for it alone
        return problem(error, request.state.request_id)

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method"}.get(error.status_code, "refused")
        answer = problem(
            Refusal(error.status_code, code, f"{error.detail}; see /api"), request.state.request_id
        )
        answer.headers.update(error.headers or {})
        return answer

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        refusal = Refusal(422, "parameter", f"{where} = {str(first['input'])[:80]!r}: {first['msg'].lower()}")
        return problem(refusal, request.state.request_id)

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(RequestValidationError, invalid)
