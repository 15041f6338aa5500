"""Middleware that every request passes first: access, headers of every answer, and counting.

Without a token the service answers its own machine only. That machine's browser visits strangers' pages, too: these
may send requests, or let their name resolve to 127.0.0.1. So a request must name this machine as its host, and what
a browser sends on behalf of another page is refused. With a token neither matters: no browser adds it by itself.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import secrets
import time
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zsad.serve.limits import MEGA, Refusal
from zsad.serve.metrics import Metrics

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_OPEN = frozenset({"/", "/api", "/openapi.json", "/healthz", "/readyz"})
_DISCARDED, _DISCARDING = 256 * MEGA, 5.0  # bytes and seconds of a refused body that are read on
_log = logging.getLogger("zsad.serve")


def problem_response(refusal: Refusal, request: str) -> Response:
    """Return a refusal as an answer (RFC 9457)."""
    document = {
        "title": HTTPStatus(refusal.status).phrase,
        "status": refusal.status,
        "code": refusal.code,
        "detail": refusal.reason,
        "request": request,
    }
    answer = Response(json.dumps(document), status_code=refusal.status, media_type="application/problem+json")
    if refusal.retry_after is not None:
        answer.headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        answer.headers["www-authenticate"] = "Bearer"
    return answer


def is_loopback(host: str) -> bool:
    """Return true for a name or address that means this machine and cannot be reached from another."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


class Gate:
    """ASGI middleware around the application.

    Args:
        app: the application.
        metrics: where requests are counted.
        token: that requests must carry; None: requests of this machine only.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, token: str | None) -> None:
        self._app, self._metrics = app, metrics
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        identity = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = identity
        status: list[int] = []
        body = _BodyEnd(receive)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400 and message["status"] != 408 and _sends_unasked(scope):
                    await body.discard()
                status.append(message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
                headers["x-request-id"] = identity
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, body.receive, sending)
        except Refusal as refusal:
            await problem_response(refusal, identity)(scope, receive, sending)
        except Exception as error:
            _log.error("internal error in request %s", identity, exc_info=error)
            if status:
                raise
            unforeseen = Refusal(500, "internal", "internal error; the log of the service says more")
            await problem_response(unforeseen, identity)(scope, receive, sending)
        finally:
            self._count(scope, status[0] if status else 499, time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        """Refuse clients that may not ask."""
        headers = Headers(scope=scope)
        if self._token is None:
            self._check_local(headers)
            return
        path = scope["path"]
        if path in _OPEN or path.startswith("/static/"):
            return  # the page and its description hold no secret; it asks for the token itself
        scheme, _, given = headers.get("authorization", "").partition(" ")
        sound = hmac.compare_digest(given.strip().encode(), self._token)
        if not (scheme.lower() == "bearer" and sound):
            reason = "wrong token" if given else "no token"
            raise Refusal(401, "token", f"{reason}; send the header Authorization: Bearer TOKEN")

    def _check_local(self, headers: Headers) -> None:
        host = _host_of(f"//{headers.get('host', '')}")
        if host is None or not is_loopback(host):
            raise Refusal(
                403,
                "host",
                "this service answers requests to localhost only; for other names start it with --token",
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
        if foreign or site not in ("same-origin", "none"):
            raise Refusal(403, "origin", "requests from other web pages are refused; start it with --token")

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route: Any = scope.get("route")
        endpoint = getattr(route, "path", "other")
        self._metrics.requests.labels(endpoint, str(status)).inc()
        self._metrics.latency.labels(endpoint).observe(seconds)
        _log.info(
            "%s %s %d %.0f ms %s",
            scope["method"],
            endpoint,
            status,
            1000 * seconds,
            scope["state"]["request_id"],
        )


class _BodyEnd:
    """The messages of a request, and the end of its body."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    async def receive(self) -> Message:
        """Return the next message of the client."""
        message = await self._receive()
        self._more = self._more and bool(message.get("more_body", False))
        return message

    async def discard(self) -> None:
        """Read on for a while: many clients look for an answer only when they have sent all, or else lose it."""
        left = _DISCARDED

        async def rest() -> None:
            nonlocal left
            while self._more and left > 0:
                left -= len((await self.receive()).get("body", b""))

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(rest(), _DISCARDING)


def _sends_unasked(scope: Scope) -> bool:
    """Return true for a client that sends its body without waiting for 100 Continue."""
    return "expect" not in Headers(scope=scope)


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
