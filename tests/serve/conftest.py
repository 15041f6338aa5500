"""A service around a tiny random model: in this process with a test client or a real port, and as a process."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from zsad.detector import Detector
from zsad.loading import load
from zsad.serve.limits import RequestLimits
from zsad.serve.service import Service

if TYPE_CHECKING:
    from zsad_tests_serve_tools import Process, Running

for _name in ("tools", "browser"):
    _spec = importlib.util.spec_from_file_location(
        f"zsad_tests_serve_{_name}", Path(__file__).with_name(f"{_name}.py")
    )
    assert _spec is not None and _spec.loader is not None
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_spec.name])


@pytest.fixture(scope="session")
def detector(toy: Any) -> Detector:
    """The tiny model; not to be changed."""
    return load(toy.model, device="cpu")


@pytest.fixture
def make_service(detector: Detector) -> Iterator[Callable[..., Service]]:
    """`make_service(**limits)`; every service is closed at the end."""
    made: list[Service] = []

    def make(**limits: Any) -> Service:
        service = Service(detector, RequestLimits.of(**{"timeout": 120, **limits}))
        made.append(service)
        return service

    yield make
    for service in made:
        service.close()


@pytest.fixture
def run_service(make_service: Callable[..., Service]) -> Iterator[Callable[..., Running]]:
    """`run_service(**limits)`, or with `token`, or with a `service` that was made before."""
    from zsad_tests_serve_tools import Running

    running: list[Running] = []

    def run(*, service: Service | None = None, token: str | None = None, **limits: Any) -> Running:
        one = Running(service or make_service(**limits), token=token)
        running.append(one)
        return one

    yield run
    for one in running:
        one.stop()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """`start("MODEL", "--option", ...)` starts `zsad serve`; killed at the end if it is still there."""
    from zsad_tests_serve_tools import Process

    started: list[Process] = []

    def begin(*arguments: str) -> Process:
        started.append(Process(*arguments))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()
