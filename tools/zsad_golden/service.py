"""The answers of `zsad serve`, a process of its own that is asked over HTTP."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from zsad_golden.case import Case
from zsad_golden.outputs import summary
from zsad_golden.workspace import Workspace

NEEDS = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "anyio")


class Server:
    """A running `zsad serve`."""

    def __init__(self, space: Workspace, url: str) -> None:
        self._space = space
        self._address = urlsplit(url).netloc

    def ask(
        self, method: str, path: str, body: bytes | None = None, kind: str = "image/png"
    ) -> dict[str, Any]:
        """The answer to one request: status, type and content."""
        connection = http.client.HTTPConnection(self._address, timeout=120)
        try:
            connection.request(method, path, body, {} if body is None else {"Content-Type": kind})
            answer = connection.getresponse()
            content, said = answer.read(), answer.getheader("Content-Type")
        finally:
            connection.close()
        found: dict[str, Any] = {"request": f"{method} {path}", "status": answer.status, "type": said}
        if said is not None and "json" in said:
            found["json"] = self._space.normaliser().data(_opened(json.loads(content)))
        return found

    def send(self, path: str, files: list[Path]) -> dict[str, Any]:
        """Sends files as a form."""
        parts = [
            b'--cut\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n%s\r\n" % (file.name.encode(), file.read_bytes())
            for file in files
        ]
        return self.ask("POST", path, b"".join(parts) + b"--cut--\r\n", "multipart/form-data; boundary=cut")

    def names_of_metrics(self) -> list[str]:
        """Names and types in the Prometheus text."""
        connection = http.client.HTTPConnection(self._address, timeout=120)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        return sorted(set(re.findall(r"^# TYPE (\S+ \S+)$", text, re.MULTILINE)))


@contextmanager
def serving(space: Workspace, options: str) -> Iterator[Server]:
    """Starts `zsad serve OPTIONS` on a free port and ends it."""
    command = [sys.executable, "-m", "zsad", "serve", *shlex.split(options.format_map(space))]
    process = subprocess.Popen(
        [*command, "--port", "0", "--threads", "1", "--timeout", "120"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        if " at " not in line:
            raise RuntimeError(f"zsad serve {options} did not start: {process.stderr.read()}")
        yield Server(space, line.split(" at ")[1].split()[0])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


def _opened(value: Any) -> Any:
    """JSON with the pixels of pictures instead of their encoding."""
    if isinstance(value, dict):
        return {key: _opened(entry) for key, entry in value.items()}
    if isinstance(value, list):
        array = np.array(value, dtype=object)
        if array.ndim >= 3 and array.size > 1000:
            return summary(array.astype(np.float64))
        return [_opened(entry) for entry in value]
    if isinstance(value, str) and value.startswith("data:image/"):
        content = base64.b64decode(value.partition(",")[2])
        return summary(np.asarray(Image.open(io.BytesIO(content))))
    return value


def _answers(space: Workspace) -> dict[str, Any]:
    """Every endpoint of a service with threshold and region, before, with and after a calibration."""
    inputs = space.root / "in"
    part, mixed = inputs / "mini" / "disc" / "test" / "cut" / "000.png", inputs / "mixed"
    calibration = (space.root / space["calibration"]).read_bytes()
    everything = "/v1/predict?include=heatmap&include=picture&include=grid"
    asked = []
    with serving(space, "promptmoe-tiny --pixel-threshold 0.45 --min-area 3") as server:
        asked += [
            server.ask("GET", path) for path in ("/healthz", "/readyz", "/v1/models", "/v1/calibration")
        ]
        asked.append(server.ask("POST", everything, part.read_bytes()))
        asked.append(
            server.send("/v1/batch", [part, mixed / "good.png", mixed / "broken.png", mixed / "empty.png"])
        )
        asked.append(server.ask("PUT", "/v1/calibration", calibration, "application/json"))
        asked.append(server.ask("GET", "/v1/calibration"))
        asked.append(server.ask("POST", "/v1/predict", part.read_bytes()))
        asked.append(server.ask("DELETE", "/v1/calibration"))
        normals = sorted((inputs / "normals").iterdir())
        asked.append(
            server.send("/v1/calibrate?target_fpr=0.2&confidence=0", [*normals[:8], mixed / "broken.png"])
        )
        asked.append(server.ask("POST", "/v1/predict", part.read_bytes()))
        asked.append(server.ask("POST", "/v1/predict", b"nothing"))
        asked.append(server.ask("POST", "/v1/predict?include=nothing", part.read_bytes()))
        asked.append(server.ask("PUT", "/v1/calibration", b"{}", "application/json"))
        asked.append(server.ask("GET", "/nothing"))
        asked.append(server.ask("GET", "/"))
        asked.append(server.ask("GET", "/api"))
        names = server.names_of_metrics()
        description = server.ask("GET", "/openapi.json")
    return {"answers": asked, "metrics": names, "openapi": _interface(description.get("json", {}))}


def _interface(document: dict[str, Any]) -> dict[str, Any]:
    """Paths, parameters, answers and schemas of an OpenAPI document, without its prose."""
    paths = {
        f"{method.upper()} {path}": {
            "parameters": [[one["name"], one["in"]] for one in described.get("parameters", ())],
            "body": sorted(described.get("requestBody", {}).get("content", {})),
            "answers": sorted(described["responses"]),
        }
        for path, methods in document.get("paths", {}).items()
        for method, described in methods.items()
    }
    schemas = document.get("components", {}).get("schemas", {})
    return {
        "paths": paths,
        "schemas": {name: sorted(schema.get("properties", {})) for name, schema in sorted(schemas.items())},
    }


def _region(space: Workspace) -> dict[str, Any]:
    """A service with a region of interest and an object's name."""
    part = space.root / "in" / "mini" / "disc" / "test" / "cut" / "000.png"
    with serving(space, "winclip-tiny --object washer --roi in/roi.json --pixel-threshold 0.4") as server:
        return {
            "answers": [
                server.ask("POST", "/v1/predict", part.read_bytes()),
                server.ask("POST", "/v1/predict", (space.root / "in/parts/part0.png").read_bytes()),
                server.ask("GET", "/v1/models"),
            ]
        }


SERVICE_CASES = [
    Case("serve", "serve", _answers, NEEDS),
    Case("serve-region", "serve", _region, NEEDS, quick=False),
]
