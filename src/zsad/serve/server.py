"""Sockets, slow clients and the end: uvicorn with strict limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from zsad.errors import ConfigError, StorageError
from zsad.serve.app import create_app
from zsad.serve.gate import is_loopback
from zsad.serve.limits import RequestLimits
from zsad.serve.service import Service

_SHORTEST_TOKEN = 16
_KEEP_ALIVE = 15  # seconds that an idle connection is kept


def check_token(token: str | None, host: str) -> None:
    """Refuse to be reached from elsewhere without a token.

    Raises:
        ConfigError: it is missing, too short, or cannot be sent in a header.
    """
    make = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(24))'"
    if token is None:
        if not is_loopback(host):
            raise ConfigError(
                f"--host {host} can be reached from other machines, so a token is needed: --token or ZSAD_TOKEN; {make}"
            )
        return
    if len(token) < _SHORTEST_TOKEN:
        raise ConfigError(
            f"the token has {len(token)} characters, expected {_SHORTEST_TOKEN} or more; {make}"
        )
    if not all("!" <= char <= "~" for char in token):
        raise ConfigError(f"the token holds characters that a header cannot carry; {make}")


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, not yet listening: before the model is loaded, so that errors come at once.

    Raises:
        ConfigError: the port is taken or may not be used, or there is no such address here.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}, expected 0 (any free one) to 65535")
    bound: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        if hasattr(socket, "SO_REUSEADDR") and not hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        if bound is not None:
            bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot serve at {host}:{port} ({reason.lower()}); choose another --port or --host"
        ) from error
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the address at which a bound socket is reached, as in "http://127.0.0.1:8080"."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(service: Service, bound: socket.socket, *, token: str | None, started: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, finish what was accepted, and return.

    Args:
        service: the model; closed at the end.
        bound: socket of `bind`.
        token: that requests must carry.
        started: called when requests are answered.

    Raises:
        StorageError: the socket cannot listen.
    """
    try:
        make_server(service, token=token, started=started).run(sockets=[bound])
    except OSError as error:
        raise StorageError(f"cannot serve at {address_of(bound)}: {error.strerror or error}") from error
    finally:
        service.close()


def make_server(
    service: Service, *, token: str | None = None, started: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """Return a server to be run in any thread, which ends when its `should_exit` is set; arguments as `run`."""
    limits = service.limits
    config = uvicorn.Config(
        create_app(service, token=token),
        http=_protocol(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        # An image may still be arriving, then be answered, then be sent.
        timeout_graceful_shutdown=int(3 * limits.timeout) + 1,
    )
    return _Server(config, service, started)


class _Server(uvicorn.Server):
    """Server that reports its start and ends by itself after a signal, instead of by the signal."""

    def __init__(self, config: uvicorn.Config, service: Service, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._on_start = service, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if threading.current_thread() is not threading.main_thread():
                yield  # signals are none of its business
                return
            for name in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, name, signal.signal(name, self.handle_exit))
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.stopping = True
        super().handle_exit(sig, frame)


def _protocol(limits: RequestLimits) -> type[H11Protocol]:
    class Bounded(StrictProtocol):
        limits_ = limits

    return Bounded


class StrictProtocol(H11Protocol):
    """HTTP/1.1 in which a client cannot keep a connection busy by doing nothing.

    Its clocks run while the service waits for the client: for the head of a request, for the rest of a body that was
    refused, and for the client to read an answer. While a body is being read the application keeps the time.
    """

    limits_: RequestLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock: asyncio.TimerHandle | None = None
        self._write_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first head, or turn the client away."""
        super().connection_made(transport)
        if len(self.connections) > self.limits_.connections:
            self._answer_and_close(503, "connections", "too many connections; try again later")
        else:
            self._start()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a head is whole; start it when the next begins."""
        super().data_received(data)
        if self._in_request():
            self._stop()
        elif self._clock is None:
            self._start()

    def on_response_complete(self) -> None:
        """Give the client a while to finish a body that is not needed any more, and to read the answer."""
        super().on_response_complete()
        if self.cycle.more_body:
            self._start()
        if self.transport.get_write_buffer_size() > 0:
            self._watch_reader()

    def pause_writing(self) -> None:
        """Start the clock of a client that does not read."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Stop the clock of a client that reads again."""
        super().resume_writing()
        self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._stop()
        self._stop_watching()
        super().connection_lost(exc)

    def _in_request(self) -> bool:
        cycle = self._request()
        return cycle is not None and not cycle.response_complete

    def _request(self) -> RequestResponseCycle | None:
        """Return the latest request of this connection; None before the first."""
        return self.cycle

    def _start(self) -> None:
        self._stop()
        self._clock = self.loop.call_later(self.limits_.head_timeout, self._too_slow)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        self._clock = None
        cycle = self._request()
        if self._in_request():
            return
        if cycle is None:
            seconds = self.limits_.head_timeout
            self._answer_and_close(408, "slow_head", f"the request had not arrived after {seconds:g} s")
        elif cycle.more_body or self.conn.trailing_data[0]:
            self.transport.abort()

    def _watch_reader(self) -> None:
        self._stop_watching()
        self._write_clock = self.loop.call_later(self.limits_.timeout, self._reader_too_slow)

    def _stop_watching(self) -> None:
        if self._write_clock is not None:
            self._write_clock.cancel()
            self._write_clock = None

    def _reader_too_slow(self) -> None:
        self._write_clock = None
        if self.transport.get_write_buffer_size() > 0:
            self.transport.abort()

    def _answer_and_close(self, status: int, code: str, reason: str) -> None:
        """Answer without a request, and close."""
        title = {408: "Request Timeout", 503: "Service Unavailable"}[status]
        body = json.dumps({"title": title, "status": status, "code": code, "detail": reason, "request": ""})
        head = (
            f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
        )
        self.transport.write((head + body).encode("ascii"))
        self.transport.close()
