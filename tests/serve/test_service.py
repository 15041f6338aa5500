"""The service without HTTP: its view through any order of calibrations, and its slots."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx2", reason="the test client needs it")

from starlette.testclient import TestClient
from zsad_tests_serve_tools import form, png

from zsad.calibration.calibration import Calibration
from zsad.detector import Detector
from zsad.predict.roi import Area, RegionOfInterest
from zsad.predict.tiles import Tiling
from zsad.predict.view import InputOptions
from zsad.serve.app import create_app
from zsad.serve.limits import Refusal, RequestLimits
from zsad.serve.service import RequestSlot, Service

SIZE = (150, 200)
IMAGES = [png(seed, size=SIZE) for seed in range(3)]
NORMALS = [png(seed, size=SIZE) for seed in range(40, 44)]
STEPS = st.sampled_from(["put", "put with region", "calibrate", "delete", "predict"])


def left_half() -> RegionOfInterest:
    mask = np.zeros(SIZE, dtype=bool)
    mask[:, : SIZE[1] // 2] = True
    return RegionOfInterest(include=Area.from_mask(mask))


def right_half() -> RegionOfInterest:
    mask = np.zeros(SIZE, dtype=bool)
    mask[:, SIZE[1] // 2 :] = True
    return RegionOfInterest(include=Area.from_mask(mask))


VIEWS: list[dict[str, Any]] = [
    {"pixel_threshold": 0.4, "min_area": 30.0, "region": left_half()},
    {"options": InputOptions(keep_aspect=True), "pixel_threshold": 0.45},
    {"options": InputOptions(tiling=Tiling(size=100)), "region": left_half()},
    {},
]


@pytest.fixture(scope="module", params=range(len(VIEWS)))
def served(request: pytest.FixtureRequest, detector: Detector) -> Iterator[tuple[Detector, TestClient]]:
    """A detector with a view of its own, and a client of its service."""
    started = detector.with_(**VIEWS[request.param])
    service = Service(started, RequestLimits(timeout=120))
    with TestClient(create_app(service), base_url="http://localhost") as client:
        yield started, client


def calibrations(started: Detector, tmp: Any) -> tuple[Calibration, Calibration]:
    """A calibration with the detector's own region of interest, and one with another."""
    for index, content in enumerate(NORMALS):
        (tmp / f"{index}.png").write_bytes(content)
    return (
        started.with_().calibrate(tmp, target_fpr=0.4, confidence=0),
        started.with_(region=right_half()).calibrate(tmp, target_fpr=0.4, confidence=0),
    )


def send(client: TestClient, path: str, images: list[bytes]) -> Any:
    body, kind = form([(f"image{index}.png", one) for index, one in enumerate(images)])
    return client.post(path, content=body, headers={"content-type": kind}).json()


def check_answer(client: TestClient, expected: Detector, content: bytes) -> None:
    """Compare an answer with what the detector says."""
    answer = client.post("/v1/predict", content=content, headers={"content-type": "image/png"}).json()
    values = expected.predict(content).to_dict()
    for key in ("score", "verdict", "p_value", "threshold", "pixel_threshold", "regions", "size", "routing"):
        assert answer.get(key) == values.get(key), key
    calibration = expected.calibration
    assert answer["calibration"] == (None if calibration is None else calibration.digest())
    assert answer["model"] == expected.identity()


def test_any_order_of_calibrations_keeps_threshold_region_and_input_options(
    served: tuple[Detector, TestClient], tmp_path_factory: pytest.TempPathFactory
) -> None:
    started, client = served
    same, other = calibrations(started, tmp_path_factory.mktemp("normals"))

    @settings(max_examples=8, deadline=None)
    @given(st.lists(STEPS, max_size=6))
    def play(steps: list[str]) -> None:
        client.delete("/v1/calibration")
        expected = started
        for number, step in enumerate([*steps, "predict"]):
            if step.startswith("put"):
                calibration = other if step == "put with region" else same
                content = calibration.model_dump_json(by_alias=True)
                assert client.put("/v1/calibration", content=content).status_code == 200
                expected = started.with_(calibration=calibration).with_(
                    region=calibration.region, object_name=calibration.object_name
                )
            elif step == "calibrate":
                answer = send(client, "/v1/calibrate?target_fpr=0.4&confidence=0", NORMALS)
                calibration = Calibration.model_validate(answer["calibration"])
                assert calibration.digest() == same.digest()
                expected = started.with_(calibration=calibration)
            elif step == "delete":
                assert client.delete("/v1/calibration").status_code == 204
                expected = started
            else:
                check_answer(client, expected, IMAGES[number % len(IMAGES)])

    play()


def test_the_view_at_start_is_there_again_after_the_calibration_at_start(
    detector: Detector, tmp_path: Any
) -> None:
    calibrated = detector.with_(pixel_threshold=0.4, region=left_half())
    for index, content in enumerate(NORMALS):
        (tmp_path / f"{index}.png").write_bytes(content)
    calibrated.calibrate(tmp_path, target_fpr=0.4, confidence=0)
    service = Service(calibrated, RequestLimits(timeout=120))
    with TestClient(create_app(service), base_url="http://localhost") as client:
        check_answer(client, calibrated, IMAGES[0])
        client.delete("/v1/calibration")
        check_answer(client, calibrated.with_(calibration=None), IMAGES[0])


def test_pixels_are_limited_in_tiles_too(detector: Detector) -> None:
    started = detector.with_(options=InputOptions(tiling=Tiling(size=100)))
    service = Service(started, RequestLimits(max_pixels=SIZE[0] * SIZE[1] - 1))
    with TestClient(create_app(service), base_url="http://localhost") as client:
        answer = client.post("/v1/predict", content=IMAGES[0])
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_pixels")


def test_bodies_that_break_after_a_whole_image_give_back_their_bytes(
    make_service: Callable[..., Service],
) -> None:
    service = make_service()
    body, kind = form([("a.png", IMAGES[0])])
    with TestClient(create_app(service), base_url="http://localhost") as client:
        answer = client.post("/v1/predict", content=body[:-4], headers={"content-type": kind})
    assert (answer.status_code, answer.json()["code"]) == (400, "broken_form")
    assert service.budget.reserved == 0


def test_every_body_is_counted_in_the_budget(make_service: Callable[..., Service]) -> None:
    service = make_service()
    service.budget.reserve(service.budget.size - 10)
    content = json.dumps({"format": 1}).encode() + b" " * 100
    with TestClient(create_app(service), base_url="http://localhost") as client:
        for answer in (
            client.post("/v1/predict", content=IMAGES[0]),
            client.put("/v1/calibration", content=content),
            client.post("/v1/batch", content=IMAGES[0]),
            client.post("/v1/calibrate", content=IMAGES[0]),
        ):
            assert (answer.status_code, answer.json()["code"]) == (429, "busy")
        service.budget.release(service.budget.size - 10)
        assert send(client, "/v1/batch", IMAGES)["failed"] == 0
    assert service.budget.reserved == service.streams == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.lists(st.sampled_from(["try", "wait", "end", "leave"]), max_size=40))
def test_slots_never_exceed_their_count(shared: Service, count: int, steps: list[str]) -> None:
    service = shared
    service.capacity.total_tokens = count

    async def wait() -> RequestSlot:
        return await RequestSlot(service, wait=True).__aenter__()

    async def play() -> None:
        slots: list[RequestSlot] = []
        waiting: list[asyncio.Task[RequestSlot]] = []
        for step in steps:
            if step == "try":
                try:
                    slots.append(await RequestSlot(service, wait=False).__aenter__())
                except Refusal as refusal:
                    assert (refusal.status, refusal.code) == (429, "busy") and len(slots) == count
            elif step == "wait":
                waiting.append(asyncio.create_task(wait()))
            elif step == "end" and slots:
                await slots.pop(0).__aexit__(None, None, None)
            elif step == "leave" and waiting:
                waiting.pop().cancel()
            await asyncio.sleep(0.001)
            for task in [one for one in waiting if one.done()]:
                waiting.remove(task)
                slots.append(task.result())
            assert service.capacity.borrowed_tokens == len(slots) <= count
            assert not waiting or len(slots) == count  # nobody waits beside a free slot
        for task in waiting:
            task.cancel()
        await asyncio.sleep(0.001)
        for slot in slots:
            await slot.__aexit__(None, None, None)
        assert service.capacity.borrowed_tokens == 0

    asyncio.run(play())


@pytest.fixture(scope="module")
def shared(detector: Detector) -> Iterator[Service]:
    """One service for all examples of a property."""
    service = Service(detector, RequestLimits())
    yield service
    service.close()
