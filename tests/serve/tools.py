"""Images, requests and servers for the tests of the service."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from zsad.serve.server import bind, make_server
from zsad.serve.service import Service


def png(seed: int = 0, *, size: tuple[int, int] = (48, 64), kind: str = "PNG") -> bytes:
    """An image unlike those of other seeds."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
    picture = Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, format=kind)
    return stream.getvalue()


def form(images: list[tuple[str, bytes]], *, field: str = "image") -> tuple[bytes, str]:
    """A multipart body and its content type."""
    parts = b"".join(
        b'--XyZ\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\nContent-Type: image/png\r\n\r\n%s\r\n'
        % (field.encode(), name.encode(), content)
        for name, content in images
    )
    return parts + b"--XyZ--\r\n", "multipart/form-data; boundary=XyZ"


@dataclass
class Answer:
    """What a server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Address:
    """A server that runs somewhere."""

    url: str

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        kind: str = "application/octet-stream",
        timeout: float = 120,
        **headers: str,
    ) -> Answer:
        """One request on a connection of its own."""
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout)
        try:
            more = {"Content-Type": kind} if body is not None else {}
            more |= {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=more)
            answer = connection.getresponse()
            pairs = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, pairs, answer.read())
        finally:
            connection.close()

    def post(self, path: str, images: list[bytes] | bytes, **more: Any) -> Answer:
        """Sends one image raw, or several as a form."""
        if isinstance(images, bytes):
            return self.ask(path, method="POST", body=images, **more)
        body, kind = form([(f"image{index}.png", one) for index, one in enumerate(images)])
        return self.ask(path, method="POST", body=body, kind=kind, **more)


class Running(Address):
    """A service on a real port, in a thread of this process."""

    def __init__(self, service: Service, *, token: str | None = None) -> None:
        bound = bind("127.0.0.1", 0)
        super().__init__(f"http://127.0.0.1:{bound.getsockname()[1]}")
        started = threading.Event()
        self.service = service
        self.server = make_server(service, token=token, started=started.set)
        self.thread = threading.Thread(target=lambda: self.server.run(sockets=[bound]), daemon=True)
        self.thread.start()
        assert started.wait(60)

    def stop(self) -> None:
        """Ends as a signal would end it."""
        self.service.stopping = True
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


class Process(Address):
    """`zsad serve` as a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "zsad",
                "serve",
                *arguments,
                "--port",
                "0",
                "--threads",
                "1",
                "--timeout",
                "120",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " at " not in line:
            self.process.wait()
            assert self.process.stderr is not None
            pytest.fail(f"zsad serve said {line!r}: {self.process.stderr.read()}")
        super().__init__(line.split(" at ")[1].split()[0])

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Exit code and what was said, after a signal."""
        self.process.send_signal(how)
        said, complained = self.process.communicate(timeout=120)
        return self.process.returncode, said, complained


def wait_for(condition: Callable[[], Any], *, seconds: float = 60) -> None:
    """Waits until something has come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def decoded(uri: str) -> Image.Image:
    """The picture in a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
