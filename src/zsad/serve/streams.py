"""Requests with many images: each is passed on when it has arrived, and the next is read when there is room."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from zsad.calibration.calibration import make_calibration
from zsad.calibration.thresholds import CalibrationTarget, NormalScores
from zsad.errors import CalibrationError, ImageError
from zsad.predict.prediction import Prediction
from zsad.serve.limits import Refusal
from zsad.serve.service import Scored, Service
from zsad.serve.uploads import Upload, read_uploads

Value = TypeVar("Value")
Row = dict[str, Any]
Work = Callable[[Upload, Callable[[], None]], Coroutine[Any, Any, Value]]

_log = logging.getLogger("zsad.serve")


async def in_order(
    uploads: AsyncIterator[Upload], work: Work[Value], *, ahead: int
) -> AsyncGenerator[Value, None]:
    """Yields the results in the order of the uploads, while at most `ahead` of them are in the works.

    Args:
        uploads: the images.
        work: gets an image, and what it calls once the image's bytes are not needed any more; only then the next
            image is read.
        ahead: at least 1.
    """
    tasks: deque[asyncio.Task[Value]] = deque()

    async def attended(upload: Upload, decoded: asyncio.Event) -> Value:
        try:
            return await work(upload, decoded.set)
        finally:
            decoded.set()

    try:
        async for upload in uploads:
            decoded = asyncio.Event()
            tasks.append(asyncio.create_task(attended(upload, decoded)))
            await decoded.wait()
            while tasks and (len(tasks) >= ahead or tasks[0].done()):
                yield await tasks.popleft()
        while tasks:
            yield await tasks.popleft()
    finally:
        for task in tasks:
            task.cancel()


def failure(name: str, error: Exception) -> Row:
    """The row of an image that could not be used."""
    if not isinstance(error, Refusal):
        _log.error("internal error on %s", name, exc_info=error)
        error = Refusal(500, "internal", "internal error; the log of the service says more")
    return {"name": name, "error": {"status": error.status, "code": error.code, "detail": error.reason}}


async def score_batch(service: Service, request: Request) -> Row:
    """A row for each image of the request.

    Raises:
        Refusal: the request as a whole cannot be served.
    """

    async def row(upload: Upload, decoded: Callable[[], None]) -> Row:
        try:
            return await service.answer(upload, wait=True, decoded=decoded)
        except Exception as error:
            return failure(upload.name, error)

    with service.stream():
        async with (
            aclosing(read_uploads(request, service.limits)) as uploads,
            aclosing(in_order(uploads, row, ahead=_ahead(service))) as found,
        ):
            rows = [one async for one in found]
    if not rows:
        raise Refusal(422, "no_image", "the form holds no image; send files as multipart/form-data")
    return {"images": len(rows), "failed": sum("error" in one for one in rows), "results": rows}


async def calibrate(service: Service, request: Request, wish: CalibrationTarget) -> Row:
    """Thresholds from the normal images of the request, in use from now on.

    Raises:
        Refusal: the request as a whole cannot be served, or no image of it can be used.
    """
    normals, skipped, bare = NormalScores(), [], service.bare

    def collect(prediction: Prediction) -> None:
        prediction.confine(bare.view.region)
        normals.add(prediction)

    async def score(upload: Upload, decoded: Callable[[], None]) -> Scored | Row:
        try:
            return await service.raw(upload, decoded=decoded)
        except Exception as error:
            return failure(upload.name, error)

    with service.stream():
        async with (
            aclosing(read_uploads(request, service.limits)) as uploads,
            aclosing(in_order(uploads, score, ahead=_ahead(service))) as found,
        ):
            async for one in found:
                if isinstance(one, dict):
                    skipped.append(one)
                    continue
                try:
                    await service.hand(partial(collect, one.prediction))
                except ImageError as error:
                    skipped.append(failure(one.image.name, Refusal(422, "outside_region", str(error))))
    try:
        made = make_calibration(
            normals, wish, model=bare.key(), object_name=bare.object_name, region=bare.view.region
        )
    except CalibrationError as error:
        reason = str(error)
        if skipped and not normals.scores:
            reason = (
                f"none of the {len(skipped)} images can be used; the first: {skipped[0]['error']['detail']}"
            )
        raise Refusal(422, "no_calibration", reason) from None
    service.use(made)
    return {"calibration": made, "summary": made.summary(), "warnings": made.warnings(), "skipped": skipped}


def _ahead(service: Service) -> int:
    """Images of one request in the works: enough to fill a batch while another is in the model."""
    return min(2 * service.batch + 1, service.limits.max_queue)
