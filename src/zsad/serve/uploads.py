"""Images out of the body of a request: one raw, or several as multipart/form-data, one after the other.

Nothing is written to disk and nothing is read ahead: the next bytes are taken from the network when the image before
has been passed on. A client that is slow to send is cut off; a client that has to wait for the service is not slow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from zsad.serve.limits import Budget, ClientGone, Limits, Refusal

_HEADS = 64 * 1024  # of boundaries and headers around one image
_NAME = 200
_OCTETS = "application/octet-stream"

Receive = Callable[[], Awaitable[Any]]


@dataclass(slots=True)
class Upload:
    """One image as it was sent.

    Attributes:
        name: as the client calls it: a word for people, never a path to anything.
        content: of the file.
        budget: that its bytes are counted in; None: they are bounded otherwise.
    """

    name: str
    content: bytes
    budget: Budget | None = None

    def drop(self) -> None:
        """Forgets the content, once it is decoded."""
        if self.budget is not None:
            self.budget.give(len(self.content))
        self.budget, self.content = None, b""


@dataclass(slots=True)
class _Part:
    """An image that is arriving."""

    budget: Budget | None
    limit: int
    name: str = "image"
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self.limit:
            self.size -= len(data)
            raise too_large(self.name, self.limit)
        if self.budget is not None:
            try:
                self.budget.take(len(data))
            except Refusal:
                self.size -= len(data)
                raise
        self.chunks.append(data)

    def finish(self) -> Upload:
        upload = Upload(self.name, b"".join(self.chunks), self.budget)
        self.chunks, self.budget = [], None  # the bytes are the upload's now
        return upload

    def drop(self) -> None:
        if self.budget is not None:
            self.budget.give(self.size)
        self.chunks, self.budget = [], None


def too_large(name: str, limit: int) -> Refusal:
    """The refusal of an image with too many bytes."""
    return Refusal(
        413,
        "too_many_bytes",
        f"{name} has more than {limit:,} bytes, which is the most that one image may have",
    )


async def read_uploads(
    request: Request, limits: Limits, *, budget: Budget | None = None
) -> AsyncGenerator[Upload, None]:
    """Yields the images of a request as they arrive.

    Args:
        request: its body not yet read.
        limits: on bytes and seconds of each image.
        budget: that counts the bytes; None where the caller bounds what it keeps.

    Raises:
        Refusal: 408 too slow, 413 too large, 415 of another kind, 400 or 422 broken, 429 no room for more.
        ClientGone: it has hung up.
    """
    kind, options = parse_options_header(request.headers.get("content-type", _OCTETS))
    media = kind.decode("latin-1").lower()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "encoded", "the body is compressed as a whole; send it as it is")
    chunks = _Chunks(request.receive, limits.timeout)
    if media == "multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= 200:
            raise Refusal(400, "broken_form", "multipart/form-data without a boundary of 1 to 200 characters")
        source = _multipart(chunks, boundary, limits, budget)
    elif media == _OCTETS or media.startswith("image/"):
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limits.max_bytes:
            raise too_large("the image", limits.max_bytes)
        source = _raw(chunks, limits, budget)
    else:
        raise Refusal(
            415,
            "media_type",
            f"content type {media[:80]!r}, expected an image (image/..., {_OCTETS}) or multipart/form-data with files",
        )
    async with aclosing(source):
        async for upload in source:
            yield upload


class _Chunks:
    """The pieces of a body, with a clock that runs while the client is waited for."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive, self._seconds = receive, seconds
        self._left = seconds
        self._more = True

    def next_image(self) -> None:
        """The clock starts anew."""
        self._left = self._seconds

    async def next(self) -> bytes | None:
        """The next piece, or None at the end."""
        if not self._more:
            return None
        start = time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(self._left, 0.001))
        except asyncio.TimeoutError:
            raise Refusal(
                408, "slow_upload", f"the image had not arrived after {self._seconds:g} s; send it faster"
            ) from None
        self._left -= time.monotonic() - start
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._more = bool(message.get("more_body", False))
        body: bytes = message.get("body", b"")
        return body


async def _raw(chunks: _Chunks, limits: Limits, budget: Budget | None) -> AsyncGenerator[Upload, None]:
    part = _Part(budget, limits.max_bytes)
    try:
        while (chunk := await chunks.next()) is not None:
            part.add(chunk)
        yield part.finish()
    finally:
        part.drop()


async def _multipart(
    chunks: _Chunks, boundary: bytes, limits: Limits, budget: Budget | None
) -> AsyncGenerator[Upload, None]:
    form = _Form(boundary, limits, budget)
    try:
        while (chunk := await chunks.next()) is not None:
            # In small pieces: a chunk may hold many images, and only finished ones leave the parser.
            for start in range(0, len(chunk), _HEADS):
                form.feed(chunk[start : start + _HEADS])
                while form.done:
                    yield form.done.pop(0)
                    chunks.next_image()
        if not form.ended:
            raise Refusal(
                400, "broken_form", "the multipart form ends in the middle; was the upload cut off?"
            )
    finally:
        form.drop()


class _Form:
    """What a multipart parser calls, piece by piece."""

    def __init__(self, boundary: bytes, limits: Limits, budget: Budget | None) -> None:
        self._limits, self._budget = limits, budget
        self._field = self._value = self._disposition = b""
        self._part: _Part | None = None
        self._around = 0
        self.count = 0
        self.ended = False
        self.done: list[Upload] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_field,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._on_end,
                "on_end": self._finish,
            },
        )

    def feed(self, piece: bytes) -> None:
        """Parses a piece; what it completes lies in `done`."""
        self._around += len(piece) if self._part is None else 0
        if self._around > 2 * _HEADS:
            raise Refusal(413, "broken_form", "the multipart form holds too much besides its images")
        try:
            self._parser.write(piece)
        except FormParserError as error:
            reason = " ".join(str(error).split())[:200]
            raise Refusal(400, "broken_form", f"the multipart form is broken: {reason}") from None

    def drop(self) -> None:
        """Forgets what nobody fetched."""
        if self._part is not None:
            self._part.drop()
        for upload in self.done:
            upload.drop()

    def _begin(self) -> None:
        self._field = self._value = self._disposition = b""

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            shown = label(options.get(b"name", b"?"))
            raise Refusal(
                422,
                "not_a_file",
                f"the field {shown} of the form is no file; send images as files, the rest as query",
            )
        self.count += 1
        if self.count > self._limits.max_images:
            raise Refusal(
                413,
                "too_many_images",
                f"more than {self._limits.max_images:,} images in one request; send fewer",
            )
        self._part = _Part(self._budget, self._limits.max_bytes, label(options[b"filename"]))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._part is not None:
            self._part.add(data[start:end])

    def _on_end(self) -> None:
        if self._part is not None:
            self.done.append(self._part.finish())
        self._part, self._around = None, 0

    def _finish(self) -> None:
        self.ended = True


def label(name: bytes) -> str:
    """A client's name for a file as one line of at most 200 characters that steers nothing.

    Example:
        >>> label(b"C:\\\\fakepath\\\\a\\n.png"), label(b"")
        ('C:\\\\fakepath\\\\a?.png', 'image')
    """
    text = name.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in text)[:_NAME] or "image"
