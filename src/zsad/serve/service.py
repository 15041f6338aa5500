"""The service itself, without HTTP: images through decoding, the queue, the model, and a verdict.

Two threads decode and draw, one runs the model. An image has a slot from when its bytes are here until no thread works
on it any more, whether or not the client still waits: so the number of images inside never grows. The verdict of an
answer belongs to one calibration from beginning to end, since a view in use is never changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, cast

import anyio
from PIL import Image

from zsad.calibration.calibration import Calibration
from zsad.detector import Detector
from zsad.errors import ConfigError, ImageError, TooManyPixelsError
from zsad.predict.pipeline import Ready, judge, read, score
from zsad.predict.prediction import Prediction
from zsad.predict.view import View
from zsad.serve.data_uris import heat_layer, preview
from zsad.serve.limits import ByteBudget, Refusal, RequestLimits
from zsad.serve.metrics import Metrics
from zsad.serve.queue import Batcher, QueueClosed, QueueFull, TooLate
from zsad.serve.uploads import Upload

_DECODERS = 2  # threads that decode and draw
_MAX_SCANS = 100  # of a progressive JPEG: each is a pass over all its pixels, however few its bytes
_SCAN_MARKER = b"\xff\xda"
_NEWEST = 0.2  # share of the newest pass in the average of seconds

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image, ready for the model.

    Attributes:
        name: of the file.
        sha256: of its bytes.
        ready: for the model.
        preview: a small picture as a data URI, where one is asked for.
    """

    name: str
    sha256: str
    ready: Ready
    preview: str | None = None


class Service:
    """A model that answers many clients at once.

    The detector's view is the base of all others: region of interest, object name, input options, smallest area and
    pixel threshold that the service was started with. A calibration adds its thresholds and replaces region and object
    name by those that it holds for; without a calibration the base view is in use again.

    Args:
        detector: model and view.
        limits: on what a request may cost.

    Raises:
        ConfigError: limits that contradict each other.
    """

    def __init__(self, detector: Detector, limits: RequestLimits) -> None:
        batch = limits.batch or min(detector.backend.batch_size, limits.max_queue)
        if batch > limits.max_queue:
            raise ConfigError(f"--batch is {batch} but --max-queue only {limits.max_queue}; raise the latter")
        self.model, self.view = detector.model, detector.view
        self.base = replace(detector.view, calibration=None)
        self.key = detector.key()
        self.limits, self.batch = limits, batch
        self.metrics = Metrics()
        self.capacity = anyio.CapacityLimiter(limits.max_queue)
        self.budget = ByteBudget(limits.upload_bytes)
        self.streams = 0
        self.stopping = False
        self._seconds = 0.0  # of the model for an image, on average
        self._decoders = ThreadPoolExecutor(_DECODERS, "zsad-image")
        self._queue: Batcher[PreparedImage, Prediction] = Batcher(
            self._score, depth=limits.max_queue, batch=batch, observe=self._observe
        )
        self._add_gauges()

    def _add_gauges(self) -> None:
        watch = self.metrics.watch
        watch(
            "zsad_inside_images",
            "Images being decoded, waiting or in the model.",
            lambda: self.capacity.borrowed_tokens,
        )
        watch("zsad_inside_limit", "Images that may be inside at once.", lambda: self.limits.max_queue)
        watch("zsad_queue_images", "Images that wait for the model.", lambda: self._queue.waiting)
        watch("zsad_upload_bytes", "Bytes of images that are arriving.", lambda: self.budget.reserved)
        watch("zsad_calibrated", "Whether there are verdicts.", lambda: self.calibration is not None)
        self.metrics.describe_model(
            name=self.model.name, method=self.model.card.method, identity=self.key.identity
        )

    def warm_up(self) -> None:
        """Score a grey image, so that the first client does not wait for what is done once."""
        grey = Image.new("RGB", (64, 64), (128, 128, 128))
        self._queue.submit(PreparedImage("warm-up", "", read(grey, self.model, self.base))).result()
        self._seconds = 0.0  # the first pass is not like the others

    @property
    def ready(self) -> bool:
        """True while new clients are welcome."""
        return self._queue.alive and not self.stopping

    @property
    def alive(self) -> bool:
        """True while the model's thread takes images."""
        return self._queue.alive

    def close(self) -> None:
        """Finish what was accepted and end the threads."""
        self.stopping = True
        self._decoders.shutdown(wait=True)
        self._queue.close()

    # Calibration

    @property
    def calibration(self) -> Calibration | None:
        """The calibration that judges from now on; None: scores only."""
        return cast("Calibration | None", self.view.calibration)

    def use(self, calibration: Calibration | None) -> None:
        """Judge by a calibration from now on; None: no verdicts.

        Raises:
            CalibrationError: it was made for another model.
        """
        if calibration is not None:
            calibration.check_model(self.key)
        self.view = self.base.calibrated(calibration)

    # Admission

    def retry_after(self) -> float:
        """Seconds until there is probably room again."""
        return min(60.0, max(1.0, self.capacity.borrowed_tokens * self._seconds))

    def check_room(self) -> None:
        """Refuse what could not be taken in now, before its body is read.

        Raises:
            Refusal: 429, all slots are taken, or a new image would wait longer than the time limit.
        """
        count = self.capacity.borrowed_tokens
        if count >= self.capacity.total_tokens or count * self._seconds > self.limits.timeout:
            raise Refusal(
                429,
                "busy",
                f"{count} images are being worked on, which is all that fits in; try again later",
                retry_after=self.retry_after(),
            )

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Admit a request with many images, of which one at a time is in memory as it was sent.

        Its bytes are reserved at once, so that it is not refused halfway; so few requests are read that their images
        may wait for slots.

        Raises:
            Refusal: 429, as many are being read as may, or there is no room for an image.
        """
        if self.streams >= self.limits.streams:
            raise Refusal(
                429,
                "busy",
                f"{self.streams} batches or calibrations are being read, which is all at once; try again later",
                retry_after=max(5.0, self.retry_after()),
            )
        self.budget.reserve(self.limits.max_bytes)
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1
            self.budget.release(self.limits.max_bytes)

    # Images

    async def answer(
        self, upload: Upload, include: Sequence[str] = (), *, wait: bool = False
    ) -> dict[str, Any]:
        """Return what the model says of an image, as plain values.

        Args:
            upload: the image; dropped once it is decoded.
            include: what else to return: "heatmap", "picture", "grid".
            wait: for a slot; else there is one or there is not.

        Raises:
            Refusal: 413 or 422 the image cannot be used, 429 no slot, 504 no answer in time.
        """
        view = self.view
        async with RequestSlot(self, wait=wait) as slot:
            image = await slot.prepare(upload, view, with_preview="picture" in include)
            prediction = await slot.score(image)
            return await slot.run_in_worker(partial(self._answer, image, prediction, view, include))

    async def score(self, upload: Upload) -> Prediction:
        """Return the prediction of an image with the base view, not judged; waits for a slot, else as `answer`."""
        async with RequestSlot(self, wait=True) as slot:
            return await slot.score(await slot.prepare(upload, self.base))

    async def run_in_worker(self, work: Callable[[], Value]) -> Value:
        """Return the result of some work, done by the threads that decode and draw."""
        return await asyncio.wrap_future(self._decoders.submit(work))

    def _prepare(self, upload: Upload, view: View, with_preview: bool) -> PreparedImage:
        content, name = upload.content, upload.name
        if content[:2] == b"\xff\xd8" and content.count(_SCAN_MARKER) > _MAX_SCANS:
            raise Refusal(
                422, "broken_image", f"{name} is a JPEG of more than {_MAX_SCANS} scans; save it again"
            )
        try:
            ready = read(content, self.model, self._limited(view), name=name, draft=True)
        except TooManyPixelsError as error:
            raise Refusal(413, "too_many_pixels", str(error)) from None
        except ImageError as error:
            raise Refusal(422, "broken_image", str(error)) from None
        picture, ready.picture = ready.picture, None
        small = preview(content, picture, ready.size) if with_preview and picture is not None else None
        return PreparedImage(name, hashlib.sha256(content).hexdigest(), ready, small)

    def _limited(self, view: View) -> View:
        """Return a view that refuses images of more pixels than the service allows."""
        options, most = view.options, self.limits.max_pixels
        tiling = options.tiling
        if tiling is not None:
            tiling = replace(tiling, max_pixels=min(tiling.max_pixels, most))
        reading = replace(options.reading, max_pixels=most)
        return replace(view, options=replace(options, tiling=tiling, reading=reading))

    def _score(self, images: list[PreparedImage]) -> list[Prediction | ImageError]:
        """Run the model, in its own thread."""
        return score(self.model, [image.ready for image in images])

    def _observe(self, count: int, seconds: float) -> None:
        self.metrics.passes.observe(seconds)
        self.metrics.batches.observe(count)
        each = seconds / count
        self._seconds = each if self._seconds == 0 else (1 - _NEWEST) * self._seconds + _NEWEST * each

    def _answer(
        self, image: PreparedImage, prediction: Prediction, view: View, include: Sequence[str]
    ) -> dict[str, Any]:
        try:
            judge(prediction, view)
        except ImageError as error:
            raise Refusal(422, "outside_region", f"{image.name}: {error}") from None
        calibration = cast("Calibration | None", view.calibration)
        values = prediction.to_dict(grid="grid" in include)
        del values["source"]
        answer = {"name": image.name, "sha256": image.sha256, **values, "model": self.key.identity}
        answer["calibration"] = None if calibration is None else calibration.digest()
        if "heatmap" in include:
            peak = float(prediction.canonical_map().max())
            answer["heatmap"] = {"png": heat_layer(prediction), "scale": prediction.scale, "peak": peak}
        if image.preview is not None:
            answer["picture"] = image.preview
        self.metrics.images.labels(prediction.verdict or "scored").inc()
        self.metrics.scores.observe(prediction.score)
        return answer

    def _submit(self, image: PreparedImage, deadline: float) -> Future[Prediction]:
        """Put an image into the queue.

        Raises:
            Refusal: there is no room, or the service is stopping.
        """
        try:
            return self._queue.submit(image, deadline=deadline)
        except QueueFull:
            raise Refusal(
                429, "busy", "the queue is full; try again", retry_after=self.retry_after()
            ) from None
        except QueueClosed:
            raise Refusal(503, "stopping", "the service is stopping; try again", retry_after=5) from None


class RequestSlot:
    """Room for one image; kept until no thread works on the image any more.

    Args:
        service: of which it is a part.
        wait: for a slot that is free; else the image is refused where there is none.
    """

    def __init__(self, service: Service, *, wait: bool) -> None:
        self._service, self._wait = service, wait
        self._deadline = math.inf
        self._latest: Future[Any] | None = None

    async def __aenter__(self) -> RequestSlot:
        service = self._service
        if self._wait:
            await service.capacity.acquire_on_behalf_of(self)
        else:
            service.check_room()
            try:
                service.capacity.acquire_on_behalf_of_nowait(self)
            except anyio.WouldBlock:
                raise Refusal(
                    429, "busy", "others were first; try again", retry_after=service.retry_after()
                ) from None
        self._deadline = time.monotonic() + service.limits.timeout
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            outcome = error.code if isinstance(error, Refusal) else "dropped"
            self._service.metrics.images.labels(outcome).inc()
        if self._latest is None or self._latest.done():
            self._release()
            return
        loop = asyncio.get_running_loop()

        def release_later(_: object) -> None:
            with suppress(RuntimeError):  # the loop is gone, and with it all slots
                loop.call_soon_threadsafe(self._release)

        self._latest.add_done_callback(release_later)

    def _release(self) -> None:
        self._service.capacity.release_on_behalf_of(self)

    async def prepare(self, upload: Upload, view: View, *, with_preview: bool = False) -> PreparedImage:
        """Decode an image and drop its bytes."""
        work = partial(self._service._prepare, upload, view, with_preview)
        try:
            return await self.run_in_worker(work)
        finally:
            upload.drop()

    async def score(self, image: PreparedImage) -> Prediction:
        """Run the model when its turn has come."""
        try:
            return await self._finish(self._service._submit(image, self._deadline))
        except ImageError as error:
            raise Refusal(422, "no_score", str(error)) from None

    async def run_in_worker(self, work: Callable[[], Value]) -> Value:
        """Decode or draw."""
        return await self._finish(self._service._decoders.submit(work))

    async def _finish(self, future: Future[Value]) -> Value:
        self._latest = future
        left = self._deadline - time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), max(left, 0.001))
        except (asyncio.TimeoutError, TooLate):
            seconds = self._service.limits.timeout
            raise Refusal(
                504, "too_slow", f"no answer after {seconds:g} s: the service is busy or the image costly"
            ) from None
