"""Endpoints of the service."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.requests import ClientDisconnect

from zsad.calibration.calibration import Calibration, parse_calibration
from zsad.calibration.thresholds import CalibrationTarget, PixelRule
from zsad.errors import CalibrationError
from zsad.methods.registry import sources_note
from zsad.serve import metrics, streams
from zsad.serve.limits import MEGA, Refusal
from zsad.serve.schemas import (
    BatchAnswer,
    CalibrationAnswer,
    Health,
    Include,
    ModelsAnswer,
    PredictionAnswer,
    ProblemDetails,
)
from zsad.serve.service import Service
from zsad.serve.uploads import Upload, read_body, read_uploads

_CALIBRATION_BYTES = 16 * MEGA
_TINY_MODEL_NOTE = (
    "The small model that ships with the package makes everything run anywhere in seconds. It is no detector to rely "
    "on: for real work serve one on ViT-L/14@336."
)

Value = TypeVar("Value")
router = APIRouter()
_FILE = {"type": "string", "format": "binary"}


def _bodies(name: str, *, several: bool) -> dict[str, Any]:
    """Return the body of a request for the OpenAPI document: FastAPI does not read bodies here."""
    field: dict[str, Any] = {"type": "array", "items": _FILE} if several else _FILE
    form = {"schema": {"type": "object", "properties": {name: field}, "required": [name]}}
    kinds: dict[str, Any] = {"multipart/form-data": form}
    if not several:
        kinds |= {"image/*": {"schema": _FILE}, "application/octet-stream": {"schema": _FILE}}
    return {"requestBody": {"required": True, "content": kinds}}


def _problems(**reasons: str) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of an endpoint for the OpenAPI document."""
    return {
        int(status[1:]): {
            "description": text,
            "content": {"application/problem+json": {}},
            "model": ProblemDetails,
        }
        for status, text in reasons.items()
    }


_UPLOAD_PROBLEMS = _problems(
    s400="The form is broken.",
    s408="The image did not arrive in time.",
    s413="Too many bytes, pixels or images.",
    s415="Neither an image nor a form.",
    s422="The image cannot be used.",
    s429="Too busy: try again after Retry-After seconds.",
    s504="No answer in time.",
)


def service_of(request: Request) -> Service:
    """Return the service behind the endpoints."""
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(service_of)]


@router.post(
    "/v1/predict",
    response_model=PredictionAnswer,
    openapi_extra=_bodies("image", several=False),
    responses=_UPLOAD_PROBLEMS,
    summary="Score one image",
)
async def predict(
    request: Request,
    service: ServiceOf,
    include: Annotated[list[Include] | None, Query(description="What else to send; may be repeated.")] = None,
) -> Response:
    """Score, verdict, regions and routing of one image, sent raw or as the one file of a form."""
    service.check_room()
    upload = await _single_image(request, service)
    try:
        answer = await run_until_disconnect(request, service.answer(upload, include or ()))
    finally:
        upload.drop()
    return JSONResponse(answer)


@router.post(
    "/v1/batch",
    response_model=BatchAnswer,
    openapi_extra=_bodies("images", several=True),
    responses=_UPLOAD_PROBLEMS,
    summary="Score many images",
)
async def batch(request: Request, service: ServiceOf) -> Response:
    """A row for each image of a form, in order; one that cannot be used is a row that says why."""
    return JSONResponse(await streams.score_batch(service, request))


@router.post(
    "/v1/calibrate",
    response_model=CalibrationAnswer,
    openapi_extra=_bodies("images", several=True),
    responses=_UPLOAD_PROBLEMS,
    summary="Calibrate on normal images",
)
async def calibrate(
    request: Request,
    service: ServiceOf,
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
        target = CalibrationTarget.of(
            target_fpr=target_fpr, pixel_fpr=pixel_fpr, confidence=confidence, pixel_rule=pixel_rule
        )
    except CalibrationError as error:
        raise Refusal(422, "impossible_wish", str(error)) from None
    calibration, skipped = await streams.calibrate(service, request, target)
    return await service.run_in_worker(partial(_calibration_answer, calibration, skipped))


@router.get("/v1/calibration", response_model=CalibrationAnswer, summary="The calibration in use")
async def calibration(service: ServiceOf) -> Response:
    """The thresholds in use, with all that zsad serve --calibration needs to take them up again."""
    calibration = service.calibration
    if calibration is None:
        raise Refusal(404, "not_calibrated", "there is no calibration; send normal images to /v1/calibrate")
    return await service.run_in_worker(partial(_calibration_answer, calibration, []))


@router.put(
    "/v1/calibration",
    response_model=CalibrationAnswer,
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {}}}},
    responses=_problems(s413="Too large.", s422="It is no calibration, or one of another model."),
    summary="Use a calibration",
)
async def put_calibration(request: Request, service: ServiceOf) -> Response:
    """Take a calibration that was downloaded here or written by zsad calibrate."""
    upload = await read_body(request, service.limits, max_bytes=_CALIBRATION_BYTES, budget=service.budget)
    try:
        calibration = await service.run_in_worker(partial(parse_calibration, upload.content))
        service.use(calibration)
    except CalibrationError as error:
        raise Refusal(422, "no_calibration", str(error)) from None
    finally:
        upload.drop()
    return await service.run_in_worker(partial(_calibration_answer, calibration, []))


@router.delete("/v1/calibration", status_code=204, summary="Go without calibration")
async def delete_calibration(service: ServiceOf) -> Response:
    """Scores only from now on, no verdicts."""
    service.use(None)
    return Response(status_code=204)


@router.get("/v1/models", response_model=ModelsAnswer, summary="The model that is served")
async def models(service: ServiceOf) -> Response:
    """Method, backbone, input size and runtime of the model, and the limits on requests."""
    return JSONResponse({"models": [describe(service)]})


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", response_model=Health, summary="Whether the process works")
async def healthz(service: ServiceOf) -> Response:
    """Status 200 while the process works at all."""
    return JSONResponse(
        {"status": "ok"} if service.alive else {"status": "broken"}, 200 if service.alive else 503
    )


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_model=Health, summary="Whether to send requests")
async def readyz(service: ServiceOf) -> Response:
    """Status 200 while requests are welcome; 503 while the service stops."""
    return JSONResponse(
        {"status": "ok"} if service.ready else {"status": "stopping"}, 200 if service.ready else 503
    )


@router.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics")
async def show_metrics(service: ServiceOf) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(service.metrics.render(), headers={"content-type": metrics.CONTENT_TYPE})


async def _single_image(request: Request, service: Service) -> Upload:
    """Return the one image of a request."""
    uploads: list[Upload] = []

    async def collect(upload: Upload) -> None:
        uploads.append(upload)
        if len(uploads) > 1:
            raise Refusal(422, "too_many_images", "more than one image; send several to /v1/batch")

    try:
        await read_uploads(request, service.limits, collect, budget=service.budget)
        if not uploads:
            raise Refusal(422, "no_image", "the form holds no image; send one as a file")
    except BaseException:
        for upload in uploads:
            upload.drop()
        raise
    return uploads[0]


async def run_until_disconnect(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """Return the result of some work, unless the client hangs up before.

    Raises:
        ClientDisconnect: it has.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.add_done_callback(_retrieve)
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of work whose client has gone, so that the event loop does not report it."""
    if not task.cancelled():
        task.exception()


async def _disconnect(request: Request) -> None:
    """Wait for the client to hang up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _calibration_answer(calibration: Calibration, skipped: list[dict[str, Any]]) -> Response:
    return JSONResponse(
        {
            "calibration": calibration.model_dump(mode="json", by_alias=True),
            "summary": calibration.summary(),
            "warnings": calibration.warnings(),
            "skipped": skipped,
        }
    )


def describe(service: Service) -> dict[str, Any]:
    """Return the model that is served, as plain values."""
    model, view, calibration = service.model, service.view, service.calibration
    card = model.card
    note = sources_note(card.method, card.provenance) or ""
    if card.backbone.name == "zsad-tiny":
        note = f"{note} {_TINY_MODEL_NOTE}".strip()
    return {
        "name": model.name,
        "identity": service.key.identity,
        "method": card.method,
        "backbone": card.backbone.name,
        "input": list(model.preprocess.image_size),
        "layers": list(card.config.get("layers", ())),
        "shows": view.object_name or model.object_name,
        "trained_on": [] if card.training is None else list(card.training.datasets),
        "note": note,
        "runtime": {**model.backend.settings(), **model.backend.environment()},
        "calibrated": calibration is not None,
        "calibration": None if calibration is None else calibration.digest(),
        "limits": {**service.limits.model_dump(), "batch": service.batch},
    }
