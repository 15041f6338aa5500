"""Bodies of requests: one raw image, or many as multipart/form-data, within limits on bytes and time.

Starlette parses the forms. Its parser asks for the next piece of a body when it has stored the files of the piece
before, so each image is passed on as soon as it is complete, and the network is read again when the image has been
dealt with. Files stay in memory. A client that is slow to send is cut off; a client that has to wait for the service
is not slow.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from zsad.serve.limits import ByteBudget, Refusal, RequestLimits

_PIECE = 64 * 1024
_MAX_AROUND = 2 * _PIECE  # bytes of boundaries and headers around one image
_MAX_NAME = 200
# What `curl --data-binary @photo.jpg` says of any file; a form of fields has no meaning here.
_OF_CURL = "application/x-www-form-urlencoded"
_OCTETS = "application/octet-stream"


@dataclass(slots=True)
class Upload:
    """One image as it was sent.

    Attributes:
        name: as the client calls it: a word for people, never a path to anything.
        content: of the file.
        budget: counts the bytes; None: they are bounded otherwise.
        dropped: set when the content is not needed any more.
    """

    name: str
    content: bytes
    budget: ByteBudget | None = None
    dropped: asyncio.Event = field(default_factory=asyncio.Event)

    def drop(self) -> None:
        """Forget the content, once it is decoded."""
        if self.budget is not None:
            self.budget.release(len(self.content))
        self.budget, self.content = None, b""
        self.dropped.set()


async def read_uploads(
    request: Request,
    limits: RequestLimits,
    handle: Callable[[Upload], Awaitable[None]],
    *,
    budget: ByteBudget | None = None,
) -> None:
    """Pass on the images of a request as they arrive.

    Args:
        request: its body not yet read.
        limits: on bytes and seconds of each image.
        handle: gets each image; the next is read when it has returned.
        budget: counts the bytes; None where the caller has reserved them.

    Raises:
        Refusal: 408 too slow, 413 too large, 415 of another kind, 400 or 422 broken, 429 no room for more.
        ClientDisconnect: the client has hung up.
    """
    kind, options = parse_options_header(request.headers.get("content-type", _OCTETS))
    media = kind.decode("latin-1").lower()
    if media in (_OCTETS, _OF_CURL) or media.startswith("image/"):
        await handle(await read_body(request, limits, budget=budget))
        return
    _check_encoding(request)
    if media != "multipart/form-data":
        raise Refusal(
            415,
            "media_type",
            f"content type {media[:80]!r}, expected an image (image/..., {_OCTETS}) or multipart/form-data with files",
        )
    if not 0 < len(options.get(b"boundary", b"")) <= 200:
        raise Refusal(400, "broken_form", "multipart/form-data without a boundary of 1 to 200 characters")
    with closing(_Body(request, limits.timeout, budget)) as body:
        await _read_form(body, request.headers, limits, handle)


async def read_body(
    request: Request, limits: RequestLimits, *, max_bytes: int | None = None, budget: ByteBudget | None = None
) -> Upload:
    """Return the whole body of a request, whatever its content type says.

    Args:
        request: its body not yet read.
        limits: on bytes and seconds.
        max_bytes: another limit than that of an image.
        budget: counts the bytes.

    Raises:
        Refusal, ClientDisconnect: as `read_uploads`.
    """
    _check_encoding(request)
    limit = limits.max_bytes if max_bytes is None else max_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large("the image", limit)
    pieces, size = [], 0
    with closing(_Body(request, limits.timeout, budget)) as body:
        async for piece in body.pieces():
            size += len(piece)
            if size > limit:
                raise _too_large("image", limit)
            pieces.append(piece)
        return body.upload("image", b"".join(pieces))


class _Body:
    """The body of a request in small pieces, with a clock that runs while the client is waited for.

    Args:
        request: its body not yet read.
        seconds: that an image may take to arrive.
        budget: counts the bytes until they are an upload's.
    """

    def __init__(self, request: Request, seconds: float, budget: ByteBudget | None) -> None:
        self._receive, self._seconds, self._budget = request.receive, seconds, budget
        self._left = seconds
        self._reserved = 0

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the pieces: a message may hold many images, and only whole ones leave the parser."""
        more = True
        while more:
            message = await self._message()
            more = bool(message.get("more_body", False))
            content: bytes = message.get("body", b"")
            for start in range(0, len(content), _PIECE):
                piece = content[start : start + _PIECE]
                if self._budget is not None:
                    self._budget.reserve(len(piece))
                    self._reserved += len(piece)
                yield piece

    async def _message(self) -> Message:
        start = time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(self._left, 0.001))
        except asyncio.TimeoutError:
            raise Refusal(
                408, "slow_upload", f"the image had not arrived after {self._seconds:g} s; send it faster"
            ) from None
        self._left -= time.monotonic() - start
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        return message

    def upload(self, name: str, content: bytes) -> Upload:
        """Return bytes of this body as an image, which counts them from now on; restart the clock."""
        self._left = self._seconds
        if self._budget is not None:
            self._reserved -= len(content)
        return Upload(name, content, self._budget)

    def close(self) -> None:
        """Count bytes no longer that are no upload's."""
        if self._budget is not None:
            self._budget.release(self._reserved)
        self._reserved = 0


class _ImageParser(MultiPartParser):
    """Starlette's parser with files in memory, a limit on each, and its position in the form."""

    def __init__(self, headers: Headers, pieces: AsyncGenerator[bytes, None], *, max_bytes: int) -> None:
        super().__init__(headers, pieces, max_files=math.inf, max_fields=math.inf, max_part_size=max_bytes)
        self.spool_max_size = max_bytes
        self._max_bytes = max_bytes
        self._size = 0
        self.inside_part = self.ended = False

    def on_headers_finished(self) -> None:
        """Begin the content of a part."""
        super().on_headers_finished()
        self._size, self.inside_part = 0, True

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Store content of a part; Refusal 413 where it becomes too large."""
        self._size += end - start
        if self._size > self._max_bytes:
            super().on_part_end()  # it becomes the last item, which has its name
            raise _too_large(_name_of(self.items[-1][1]), self._max_bytes)
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        """End the content of a part."""
        super().on_part_end()
        self.inside_part = False

    def on_end(self) -> None:
        """End the form."""
        self.ended = True


async def _read_form(
    body: _Body, headers: Headers, limits: RequestLimits, handle: Callable[[Upload], Awaitable[None]]
) -> None:
    """Pass on the files of a form as they arrive."""
    count = 0

    async def pieces() -> AsyncGenerator[bytes, None]:
        around = 0
        async for piece in body.pieces():
            around += 0 if parser.inside_part else len(piece)
            if around > _MAX_AROUND:
                raise Refusal(413, "broken_form", "the multipart form holds too much besides its images")
            yield piece
            if parser.items:  # and all of them are stored, now that the parser asks for more
                await pass_on()
                around = 0

    async def pass_on() -> None:
        nonlocal count
        items, parser.items = parser.items, []
        for field_name, item in items:
            if isinstance(item, str):
                raise Refusal(
                    422,
                    "not_a_file",
                    f"the field {label(field_name)} of the form is no file; send images as files, the rest as query",
                )
            count += 1
            if count > limits.max_images:
                raise Refusal(
                    413,
                    "too_many_images",
                    f"more than {limits.max_images:,} images in one request; send fewer",
                )
            with closing(item.file) as file:
                upload = body.upload(_name_of(item), file.read())
            await handle(upload)

    parser = _ImageParser(headers, pieces(), max_bytes=limits.max_bytes)
    try:
        await parser.parse()
    except (MultiPartException, FormParserError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise Refusal(400, "broken_form", f"the multipart form is broken: {reason}") from None
    if not parser.ended:
        raise Refusal(400, "broken_form", "the multipart form ends in the middle; was the upload cut off?")


def _check_encoding(request: Request) -> None:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "encoded", "the body is compressed as a whole; send it as it is")


def _too_large(name: str, limit: int) -> Refusal:
    return Refusal(
        413,
        "too_many_bytes",
        f"{name} has more than {limit:,} bytes, which is the most that one image may have",
    )


def _name_of(item: object) -> str:
    return label(getattr(item, "filename", None) or "")


def label(name: str) -> str:
    """Return a client's name for a file as one line of at most 200 characters that steers nothing.

    Example:
        >>> label("C:\\\\fakepath\\\\a\\n.png"), label("")
        ('C:\\\\fakepath\\\\a?.png', 'image')
    """
    return "".join(char if char.isprintable() else "?" for char in name)[:_MAX_NAME] or "image"
