"""The service itself, without HTTP: images through decoding, the queue, the model, a verdict.

Decoding and drawing are done by two threads, the model by one of its own. An image holds a place from when its bytes
are here until nothing works on it any more, whether or not somebody still waits for the answer: so what is inside
never grows. Verdicts belong to one calibration from beginning to end: a detector in use is never changed, a new
calibration comes as another detector.
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
from types import TracebackType
from typing import Any, TypeVar

from PIL import Image

from zsad.calibration.calibration import Calibration
from zsad.detector import Detector
from zsad.errors import ConfigError, ImageError, TooManyPixelsError
from zsad.predict.pipeline import Ready, judge, read, score
from zsad.predict.prediction import Prediction
from zsad.serve.limits import Budget, Limits, Places, Refusal
from zsad.serve.metrics import Metrics
from zsad.serve.pictures import heat_layer, preview
from zsad.serve.queue import Batcher, QueueClosed, QueueFull, TooLate
from zsad.serve.uploads import Upload

_HANDS = 2  # threads that decode and draw
_MAX_SCANS = 100  # of a progressive JPEG: each is a pass over all its pixels, however few its bytes
_SCAN_MARKER = b"\xff\xda"
_MEMORY = 0.2  # share of the newest pass in the average of seconds

Value = TypeVar("Value")


@dataclass(slots=True)
class Prepared:
    """An image, ready for the model.

    Attributes:
        name: of the file.
        sha256: of its bytes.
        ready: for the model.
        picture: preview, where one is wanted.
        detector: that will judge it.
    """

    name: str
    sha256: str
    ready: Ready
    picture: str | None
    detector: Detector


@dataclass(slots=True)
class Scored:
    """What the model said, not yet judged."""

    image: Prepared
    prediction: Prediction


class Service:
    """A model that answers many clients at once.

    Args:
        detector: the model; not to be changed by anybody else from now on.
        limits: on what a request may cost.

    Raises:
        ConfigError: limits that contradict each other.
    """

    def __init__(self, detector: Detector, limits: Limits) -> None:
        batch = limits.batch or min(detector.backend.batch_size, limits.max_queue)
        if batch > limits.max_queue:
            raise ConfigError(f"--batch is {batch} but --max-queue only {limits.max_queue}; raise the latter")
        self.detector = detector
        self._base = replace(detector.view, calibration=None)
        self.limits, self.batch = limits, batch
        self.identity = detector.identity()
        self.metrics = Metrics()
        self.places, self.budget = Places(limits.max_queue), Budget(limits.held_bytes)
        self.streams = 0
        self.stopping = False
        self._seconds = 0.0  # of the model for an image, on average
        self._pool = ThreadPoolExecutor(_HANDS, "zsad-image")
        self._queue: Batcher[Prepared, Prediction | ImageError] = Batcher(
            self._infer, depth=limits.max_queue, batch=batch, observe=self._observe
        )
        self._watch()

    def _watch(self) -> None:
        watch = self.metrics.watch
        watch(
            "zsad_inside_images", "Images being decoded, waiting or in the model.", lambda: self.places.taken
        )
        watch("zsad_inside_limit", "Images that may be inside at once.", lambda: self.places.count)
        watch("zsad_queue_images", "Images that wait for the model.", lambda: self._queue.waiting)
        watch("zsad_upload_bytes", "Bytes of images that are arriving.", lambda: self.budget.held)
        watch("zsad_calibrated", "Whether there are verdicts.", lambda: self.detector.calibration is not None)
        self.metrics.state(
            "zsad_model_info",
            "The model that is served.",
            {"name": self.detector.name, "method": self.detector.card.method, "identity": self.identity},
        )

    def warm_up(self) -> None:
        """A pass over a grey image, so that the first client does not wait for what is done once."""
        grey = Image.new("RGB", (64, 64), (128, 128, 128))
        ready = read(grey, self.detector.model, self._base)
        image = Prepared("warm-up", "", ready, None, self.bare)
        self._queue.submit(image).result()
        self._seconds = 0.0  # the first pass is not like the others

    @property
    def ready(self) -> bool:
        """Whether new clients should come."""
        return self._queue.alive and not self.stopping

    @property
    def alive(self) -> bool:
        """Whether the thread of the model lives."""
        return self._queue.alive

    def close(self) -> None:
        """Finishes what was accepted and ends the threads."""
        self.stopping = True
        self._pool.shutdown(wait=True)
        self._queue.close()

    # Verdicts

    @property
    def calibration(self) -> Calibration | None:
        """Of the answers from now on."""
        return self.detector.calibration

    @property
    def bare(self) -> Detector:
        """The model as it was asked for, without calibration: what normals are scored with."""
        return Detector(self.detector.model, self._base)

    def use(self, calibration: Calibration | None) -> None:
        """Judges by it from now on; None: no verdicts.

        Raises:
            CalibrationError: it was made for another model.
        """
        base = Detector(self.detector.model, self._base)
        self.detector = base if calibration is None else base.use(calibration)

    # Admission

    def retry_after(self) -> float:
        """Seconds until there is probably room again."""
        return min(60.0, max(1.0, self.places.taken * self._seconds))

    def check_room(self) -> None:
        """Refuses what could not be taken in now, before its body is read.

        Raises:
            Refusal: 429, all places are taken, or a new image would wait longer than the time limit.
        """
        taken = self.places.taken
        if taken >= self.places.count or taken * self._seconds > self.limits.timeout:
            raise Refusal(
                429,
                "busy",
                f"{taken} images are being worked on, which is all that fits in; try again later",
                retry_after=self.retry_after(),
            )

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A request with many images; so few are read at once that they may wait for places.

        Raises:
            Refusal: 429, as many are being read as may.
        """
        if self.streams >= self.limits.streams:
            raise Refusal(
                429,
                "busy",
                f"{self.streams} batches or calibrations are being read, which is all at once; try again later",
                retry_after=max(5.0, self.retry_after()),
            )
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    # Images

    async def answer(
        self,
        upload: Upload,
        include: Sequence[str] = (),
        *,
        wait: bool = False,
        decoded: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """What the model says of an image, as plain values.

        Args:
            upload: the image; its content is dropped.
            include: what else is wanted: "heatmap", "picture", "grid".
            wait: for a place; else there is one or there is not.
            decoded: called once the content is dropped.

        Raises:
            Refusal: 413 or 422 the image cannot be used, 429 no place, 504 no answer in time.
        """
        detector = self.detector
        async with _Errand(self, wait=wait) as errand:
            prepared = await errand.hand(lambda: self._prepare(upload, detector, "picture" in include))
            _dropped(upload, decoded)
            scored = Scored(prepared, await errand.model(prepared))
            return await errand.hand(lambda: self._finish(scored, include))

    async def raw(self, upload: Upload, *, decoded: Callable[[], None] | None = None) -> Scored:
        """What the model says of an image, not judged; waits for a place, else as `answer`."""
        async with _Errand(self, wait=True) as errand:
            prepared = await errand.hand(lambda: self._prepare(upload, self.bare, False))
            _dropped(upload, decoded)
            return Scored(prepared, await errand.model(prepared))

    async def hand(self, work: Callable[[], Value]) -> Value:
        """Has something done by the threads that decode and draw."""
        return await asyncio.wrap_future(self.submit_hand(work))

    def _prepare(self, upload: Upload, detector: Detector, picture: bool) -> Prepared:
        content, name = upload.content, upload.name
        if content[:2] == b"\xff\xd8" and content.count(_SCAN_MARKER) > _MAX_SCANS:
            raise Refusal(
                422, "broken_image", f"{name} is a JPEG of more than {_MAX_SCANS} scans; save it again"
            )
        try:
            options = detector.view.options
            limited = replace(options, reading=replace(options.reading, max_pixels=self.limits.max_pixels))
            view = replace(detector.view, options=limited)
            ready = read(content, detector.model, view, name=name, draft=True)
        except TooManyPixelsError as error:
            raise Refusal(413, "too_many_pixels", str(error)) from None
        except ImageError as error:
            raise Refusal(422, "broken_image", str(error)) from None
        digest = hashlib.sha256(content).hexdigest()
        shown = preview(content, ready.picture, ready.size) if picture and ready.picture is not None else None
        ready.picture = None
        return Prepared(name, digest, ready, shown, detector)

    def _infer(self, images: list[Prepared]) -> list[Prediction | ImageError]:
        """The model's pass; in its own thread."""
        return score(self.detector.model, [image.ready for image in images])

    def _observe(self, count: int, seconds: float) -> None:
        self.metrics.passes.observe(seconds)
        self.metrics.batches.observe(count)
        each = seconds / count
        self._seconds = each if self._seconds == 0 else (1 - _MEMORY) * self._seconds + _MEMORY * each

    def _finish(self, scored: Scored, include: Sequence[str]) -> dict[str, Any]:
        image, prediction = scored.image, scored.prediction
        try:
            judge(prediction, image.detector.view)
        except ImageError as error:
            raise Refusal(422, "outside_region", f"{image.name}: {error}") from None
        made = image.detector.calibration
        values = prediction.to_dict(grid="grid" in include)
        del values["source"]
        answer = {"name": image.name, "sha256": image.sha256, **values, "model": self.identity}
        answer["calibration"] = None if made is None else made.digest()
        if "heatmap" in include:
            peak = float(prediction.canonical_map().max())
            answer["heatmap"] = {"png": heat_layer(prediction), "scale": prediction.scale, "peak": peak}
        if image.picture is not None:
            answer["picture"] = image.picture
        self.metrics.images.add(prediction.verdict or "scored")
        self.metrics.scores.observe(prediction.score)
        return answer

    # What errands need

    def submit_hand(self, work: Callable[[], Value]) -> Future[Value]:
        """Puts work before the threads that decode and draw."""
        return self._pool.submit(work)

    def submit_model(self, image: Prepared, deadline: float) -> Future[Prediction | ImageError]:
        """Puts an image into the queue.

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


def _dropped(upload: Upload, decoded: Callable[[], None] | None) -> None:
    upload.drop()
    if decoded is not None:
        decoded()


class _Errand:
    """One image on its way; keeps its place until no thread works on it any more."""

    def __init__(self, service: Service, *, wait: bool) -> None:
        self._service, self._wait = service, wait
        self._deadline = math.inf
        self._last: Future[Any] | None = None

    async def __aenter__(self) -> _Errand:
        service = self._service
        if self._wait:
            await service.places.take()
        else:
            service.check_room()
            if not service.places.try_take():
                raise Refusal(429, "busy", "others were first; try again", retry_after=service.retry_after())
        self._deadline = time.monotonic() + service.limits.timeout
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._service.metrics.images.add(error.code if isinstance(error, Refusal) else "dropped")
        loop, last, give = asyncio.get_running_loop(), self._last, self._service.places.give
        if last is None or last.done():
            give()
            return

        def leave(_: object) -> None:
            with suppress(RuntimeError):  # the loop is gone, and with it all places
                loop.call_soon_threadsafe(give)

        last.add_done_callback(leave)

    async def hand(self, work: Callable[[], Value]) -> Value:
        """Decoding or drawing."""
        return await self._await(self._service.submit_hand(work))

    async def model(self, image: Prepared) -> Prediction:
        """The model's turn."""
        prediction = await self._await(self._service.submit_model(image, self._deadline))
        if isinstance(prediction, ImageError):
            raise Refusal(422, "no_score", f"{image.name} has no finite score: the model overflowed on it")
        return prediction

    async def _await(self, future: Future[Value]) -> Value:
        self._last = future
        left = self._deadline - time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), max(left, 0.001))
        except (asyncio.TimeoutError, TooLate):
            seconds = self._service.limits.timeout
            raise Refusal(
                504, "too_slow", f"no answer after {seconds:g} s: the service is busy or the image costly"
            ) from None
