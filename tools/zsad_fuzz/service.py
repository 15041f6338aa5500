"""Broken requests to a service on a real port: each is a 4xx with a reason, or the right answer."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zsad_fuzz.mutations import PATHS, VALUES, json_bytes, mutate_bytes, mutate_json
from zsad_fuzz.seeds import Sound, pictures
from zsad_fuzz.trial import Ledger, snapshot

TOKEN = "a-token-of-the-fuzzer"
_WAIT = 5.0  # seconds of the service for heads and bodies that never end


@dataclass
class Served:
    """A service that runs in a thread."""

    port: int
    service: Any


class _Complaints(logging.Handler):
    """What the service logs as an error: it never should."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        cause = record.exc_info[1] if record.exc_info else None
        self.lines.append(f"{record.getMessage()} {cause!r}")


@contextlib.contextmanager
def serving(sound: Sound, *, token: str | None) -> Iterator[Served]:
    """The tiny model behind a free port."""
    from zsad.loading import load
    from zsad.serve.limits import RequestLimits
    from zsad.serve.server import bind, make_server
    from zsad.serve.service import Service

    limits = RequestLimits.of(
        max_bytes=1_000_000, max_pixels=1_000_000, timeout=60, head_timeout=_WAIT, max_images=20
    )
    service = Service(load(sound.model, device="cpu"), limits)
    bound, started = bind("127.0.0.1", 0), threading.Event()
    server = make_server(service, token=token, started=started.set)
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]), daemon=True)
    thread.start()
    try:
        started.wait(60)
        yield Served(bound.getsockname()[1], service)
    finally:
        server.should_exit = True
        thread.join(120)
        service.close()


def fuzz_requests(ledger: Ledger, sound: Sound, count: int, rng: random.Random) -> None:
    """Mutated requests, half of them to a service that wants a token; now and then a sound one as a check."""
    use_calibration(sound)
    heard = _Complaints()
    loggers = [logging.getLogger(name) for name in ("zsad.serve", "uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(heard)
    before = snapshot(ledger.folder)
    try:
        for token in (None, TOKEN):
            with serving(sound, token=token) as served:
                _ask(ledger, served, count // 2, rng, token=token)
    finally:
        for logger in loggers:
            logger.removeHandler(heard)
    for line in heard.lines:
        ledger.fail("requests", f"logged: {line}")
    for name in before ^ snapshot(ledger.folder):
        ledger.fail("requests", f"{name} was written")


def _ask(ledger: Ledger, served: Served, count: int, rng: random.Random, *, token: str | None) -> None:
    whole = pictures()
    sound = _request("POST", "/v1/predict", whole["plain.png"], token=token)
    expected = json.loads(_send(served.port, sound)[1])["score"]
    for number in range(count):
        request, closes = _broken(rng, whole, token)
        case = f"request {number} {'with' if token else 'without'} token {request[:150]!r}"
        try:
            status, body = _send(served.port, request, closes=closes)
        except TimeoutError:
            ledger.fail(case, "no answer in time")
            continue
        except ConnectionError:
            status, body = 0, b""  # cut off while still sending: what a client that lies has to expect
        _judge(ledger, case, status, body, closes=closes)
        ledger.count("requests", refused=status >= 400 or status == 0)
        if number % 50 == 49:
            served.service.use(None)
            answer = json.loads(_send(served.port, sound)[1])
            if abs(answer.get("score", -1) - expected) > 1e-4:
                ledger.fail(case, f"a sound request afterwards: {answer}")
    if not _is_idle(served.service):
        ledger.fail("requests", "slots or bytes were not given back")


def _is_idle(service: Any) -> bool:
    """Wait for threads that still work for clients that have gone; return true where all is given back then."""
    deadline = time.monotonic() + 2 * _WAIT
    while service.capacity.borrowed_tokens or service.budget.reserved:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _judge(ledger: Ledger, case: str, status: int, body: bytes, *, closes: bool) -> None:
    if status >= 500 or (status == 0 and not closes and body):
        ledger.fail(case, f"status {status}: {body[:300]!r}")
    elif status >= 400 and body[:1] == b"{":
        detail = json.loads(body).get("detail", "")
        if not detail or "\n" in detail or "Traceback" in detail:
            ledger.fail(case, f"status {status} without a reason: {body[:300]!r}")
    elif b"Traceback" in body:
        ledger.fail(case, f"status {status}: {body[:300]!r}")


def _request(
    verb: str, path: str, body: bytes, *, token: str | None, kind: str = "image/png", length: object = None
) -> bytes:
    size = len(body) if length is None else length
    bearer = "" if token is None else f"Authorization: Bearer {token}\r\n"
    head = (
        f"{verb} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\n"
        f"{bearer}Content-Length: {size}\r\n\r\n"
    )
    return head.encode("utf-8", "surrogatepass") + body


def _form(rng: random.Random, whole: dict[str, bytes], field: str) -> bytes:
    parts = b""
    for _ in range(rng.choice((0, 1, 1, 2, 3, 25))):
        name = (
            rng.choice((*PATHS, "/etc/passwd", "a.png")).replace("\n", " ").encode("utf-8", "surrogatepass")
        )
        content = rng.choice(list(whole.values()))
        content = mutate_bytes(content, rng) if rng.random() < 0.5 else content
        parts += b'--XyZ\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n' % (
            field.encode(),
            name,
            content,
        )
    return parts + b"--XyZ--\r\n"


def _broken(rng: random.Random, whole: dict[str, bytes], token: str | None) -> tuple[bytes, bool]:
    """A request, and whether the client closes its side after it."""
    if token is not None and rng.random() < 0.2:
        token = rng.choice(
            (None, "", token[:-1], token.upper(), "\x00", "é" * 40, "x" * 5000, f"{token} {token}")
        )
    kinds = (
        "image/png",
        "image/",
        "text/plain",
        "",
        "multipart/form-data",
        "a" * 300,
        "application/json",
        "é",
    )
    picture = rng.choice(list(whole.values()))
    what = rng.randrange(9)
    if what == 0:  # a picture
        return _request("POST", "/v1/predict", mutate_bytes(picture, rng), token=token), False
    if what == 1:  # a form
        path, field = rng.choice(
            (("/v1/predict", "image"), ("/v1/batch", "images"), ("/v1/calibrate", "images"))
        )
        body = _form(rng, whole, field)
        body = mutate_bytes(body, rng) if rng.random() < 0.6 else body
        return _request("POST", path, body, token=token, kind="multipart/form-data; boundary=XyZ"), False
    if what == 2:  # another content type than the body
        return _request("POST", "/v1/predict", picture, token=token, kind=rng.choice(kinds)), False
    if what == 3:  # a length that lies; the client closes, since the service would have to wait
        lie = rng.choice((-1, 0, len(picture) // 2, len(picture) + 5, 10**12, 10**30, "x", "1,2", ""))
        return _request("POST", "/v1/predict", picture, token=token, length=lie), True
    if what == 4:  # addresses
        name = rng.choice((*PATHS, "../../etc/passwd", "%2e%2e/%2e%2e/app.py", "static/../app.py"))
        path = rng.choice(("/", "/static/", "/v1/")) + name.replace("\n", "").replace(" ", "%20")
        return _request(rng.choice(("GET", "POST", "PUT", "DELETE")), path, b"", token=token), True
    if what == 5:  # queries
        name = rng.choice(("include", "target_fpr", "confidence", "pixel_rule", "pixel_fpr", "x"))
        value = str(rng.choice((*VALUES, *PATHS, "1e999", "nan"))).replace(" ", "%20").replace("\n", "%0a")
        path = rng.choice(("/v1/predict", "/v1/calibrate")) + f"?{name}={value}"
        body = _form(rng, {"a": whole["plain.png"]}, "images")
        return _request("POST", path, body, token=token, kind="multipart/form-data; boundary=XyZ"), True
    if what == 6:  # a calibration
        body = json_bytes(mutate_json(_CALIBRATION, rng))
        body = mutate_bytes(body, rng) if rng.random() < 0.3 else body
        return _request("PUT", "/v1/calibration", body, token=token, kind="application/json"), False
    whole_request = _request("POST", "/v1/predict", picture, token=token)
    if what == 7:  # the head
        head, _, body = whole_request.partition(b"\r\n\r\n")
        return mutate_bytes(head, rng) + b"\r\n\r\n" + body, True
    return mutate_bytes(whole_request, rng), True


_CALIBRATION: dict[str, Any] = {}


def use_calibration(sound: Sound) -> None:
    """Takes the calibration that requests break."""
    _CALIBRATION.update(json.loads((sound.model / "calibration.json").read_text()))


def _send(port: int, request: bytes, *, closes: bool = False, seconds: float = 120) -> tuple[int, bytes]:
    """Status and body of the answer; 0 where the service hung up without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        with contextlib.suppress(OSError):  # it may hang up on what it refuses
            connection.sendall(request)
            if closes:
                connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(1 << 16):
                answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0, body
