"""Requests with many images: each is scored when it has arrived, and the next is read when there is room."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from zsad.calibration.calibration import Calibration, make_calibration
from zsad.calibration.thresholds import CalibrationTarget, NormalScores
from zsad.errors import CalibrationError, ImageError
from zsad.predict.pipeline import judge
from zsad.predict.prediction import Prediction
from zsad.serve.limits import Refusal
from zsad.serve.service import Service
from zsad.serve.uploads import Upload, read_uploads

Value = TypeVar("Value")
Row = dict[str, Any]

_log = logging.getLogger("zsad.serve")


async def map_uploads(
    service: Service,
    request: Request,
    work: Callable[[Upload], Coroutine[Any, Any, Value]],
    emit: Callable[[Value], Awaitable[None]],
) -> None:
    """Work on each image of a request and pass on the results in the order of the images.

    Args:
        service: decides how many images of a request are worked on at once: enough to fill a batch while another is
            in the model.
        request: its body not yet read.
        work: drops the image when its bytes are not needed any more; only then the next image is read.
        emit: gets each result.

    Raises:
        Refusal: the request as a whole cannot be served.
    """
    ahead = min(2 * service.batch + 1, service.limits.max_queue)
    tasks: deque[asyncio.Task[Value]] = deque()

    async def start(upload: Upload) -> None:
        task = asyncio.create_task(work(upload))
        task.add_done_callback(lambda _: upload.drop())
        tasks.append(task)
        await upload.dropped.wait()
        while tasks and (len(tasks) >= ahead or tasks[0].done()):
            await emit(await tasks.popleft())

    with service.stream():
        try:
            await read_uploads(request, service.limits, start)
            while tasks:
                await emit(await tasks.popleft())
        finally:
            for task in tasks:
                task.cancel()


def failed_image(name: str, error: Exception) -> Row:
    """Return the row of an image that could not be used."""
    if not isinstance(error, Refusal):
        _log.error("internal error on %s", name, exc_info=error)
        error = Refusal(500, "internal", "internal error; the log of the service says more")
    return {"name": name, "error": {"status": error.status, "code": error.code, "detail": error.reason}}


async def score_batch(service: Service, request: Request) -> Row:
    """Return a row for each image of the request.

    Raises:
        Refusal: the request as a whole cannot be served.
    """
    rows: list[Row] = []

    async def score(upload: Upload) -> Row:
        try:
            return await service.answer(upload, wait=True)
        except Exception as error:
            return failed_image(upload.name, error)

    async def collect(row: Row) -> None:
        rows.append(row)

    await map_uploads(service, request, score, collect)
    if not rows:
        raise Refusal(422, "no_image", "the form holds no image; send files as multipart/form-data")
    return {"images": len(rows), "failed": sum("error" in row for row in rows), "results": rows}


async def calibrate(
    service: Service, request: Request, target: CalibrationTarget
) -> tuple[Calibration, list[Row]]:
    """Find thresholds on the normal images of the request, and use them from now on.

    Returns:
        The calibration, and a row for each image that was left out.

    Raises:
        Refusal: the request as a whole cannot be served, or no image of it can be used.
    """
    normals, skipped, view = NormalScores(), list[Row](), service.base.without_thresholds()

    async def score(upload: Upload) -> tuple[str, Prediction] | Row:
        try:
            return upload.name, await service.score(upload)
        except Exception as error:
            return failed_image(upload.name, error)

    async def collect(result: tuple[str, Prediction] | Row) -> None:
        if isinstance(result, dict):
            skipped.append(result)
            return
        name, prediction = result
        try:
            await service.run_in_worker(lambda: normals.add(judge(prediction, view)))
        except ImageError as error:
            skipped.append(failed_image(name, Refusal(422, "outside_region", str(error))))

    await map_uploads(service, request, score, collect)
    try:
        calibration = await service.run_in_worker(
            partial(
                make_calibration,
                normals,
                target,
                model=service.key,
                object_name=view.object_name or service.model.object_name,
                region=view.region,
            )
        )
    except CalibrationError as error:
        reason = str(error)
        if skipped and not normals.scores:
            reason = (
                f"none of the {len(skipped)} images can be used; the first: {skipped[0]['error']['detail']}"
            )
        raise Refusal(422, "no_calibration", reason) from None
    service.use(calibration)
    return calibration, skipped
