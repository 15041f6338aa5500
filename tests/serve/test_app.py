"""The endpoints: the same answers as the library's, refusals with a reason, and who may ask."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx2", reason="the test client needs it")

from starlette.requests import ClientDisconnect, Request
from starlette.testclient import TestClient
from zsad_tests_serve_tools import decoded, form, png

from zsad.calibration.calibration import Calibration, write_calibration
from zsad.errors import ConfigError
from zsad.images.decode import read_image
from zsad.loading import load
from zsad.predict.overlay import colour_table
from zsad.serve.app import create_app
from zsad.serve.gate import is_loopback
from zsad.serve.limits import Refusal, RequestLimits
from zsad.serve.routes import run_until_disconnect
from zsad.serve.service import Service

TOKEN = "correct-horse-battery"
STATIC = Path(__file__).parents[2] / "src" / "zsad" / "serve" / "static"


@pytest.fixture
def client(make_service: Callable[..., Service]) -> Iterator[TestClient]:
    service = make_service(max_bytes=200_000, max_pixels=1_000_000)
    with TestClient(create_app(service), base_url="http://localhost") as one:
        one.service = service  # type: ignore[attr-defined]
        yield one


def predict(client: TestClient, content: bytes, query: str = "", **more: Any) -> Any:
    return client.post(
        f"/v1/predict{query}",
        content=content,
        headers={"content-type": "image/png", **more.pop("headers", {})},
    )


def send(client: TestClient, path: str, images: list[bytes]) -> Any:
    body, kind = form([(f"image{index}.png", one) for index, one in enumerate(images)])
    return client.post(path, content=body, headers={"content-type": kind})


def huge_png(width: int, height: int) -> bytes:
    """The header of a large picture and nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_answer_is_the_library_s(client: TestClient, toy: Any) -> None:
    for seed, kind in enumerate(("PNG", "JPEG", "TIFF", "WEBP")):
        content = png(seed, size=(150, 210), kind=kind)
        answer = predict(client, content).json()
        expected = load(toy.model, device="cpu").predict(content).to_dict()
        assert answer["sha256"] == hashlib.sha256(content).hexdigest()
        assert answer["size"] == expected["size"] == [150, 210]
        assert answer["score"] == pytest.approx(
            expected["score"], abs=2e-3
        )  # a JPEG may be decoded at half its size
        if kind != "JPEG":
            assert answer["score"] == expected["score"] and answer["routing"] == expected["routing"]
        assert answer["verdict"] is None and answer["calibration"] is None and "regions" not in answer


def test_a_form_names_its_image(client: TestClient) -> None:
    body, kind = form([("part 7.png", png(7))])
    answer = client.post("/v1/predict", content=body, headers={"content-type": kind}).json()
    assert answer["name"] == "part 7.png"
    assert answer["score"] == predict(client, png(7)).json()["score"]


def test_what_is_included(client: TestClient, toy: Any) -> None:
    content = png(3, size=(300, 1300), kind="JPEG")
    bare = predict(client, content).json()
    full = predict(client, content, "?include=heatmap&include=picture&include=grid").json()
    assert not {"heatmap", "picture", "grid"} & bare.keys()
    assert {key: value for key, value in bare.items() if key != "ms"}.items() <= full.items()
    picture = decoded(full["picture"])
    assert (picture.format, picture.size) == ("JPEG", (1024, 236))
    layer = decoded(full["heatmap"]["png"]).convert("RGBA")
    own = load(toy.model, device="cpu").predict(content)
    low, high = full["heatmap"]["scale"]
    values = (own.canonical_map() - low) / (high - low)
    alpha = np.asarray(layer)[..., 3]
    assert alpha.shape == values.shape
    assert (alpha[values < 0.08] == 0).all() and (alpha[values > 0.65] == 255).all()
    assert np.asarray(full["grid"]).shape == own.grid.shape


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "broken_image"),
        (b"not an image", 422, "broken_image"),
        (png(1)[:-40], 422, "broken_image"),
        (b"GIF89a" + b"\0" * 20, 422, "broken_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "broken_image"),
        (png(1, size=(4, 4)), 422, "broken_image"),
        (huge_png(2000, 2000), 413, "too_many_pixels"),
        (huge_png(50_000, 50_000), 413, "too_many_pixels"),
        (b"x" * 200_001, 413, "too_many_bytes"),
        (b"\xff\xd8" + b"\xff\xda\0" * 101, 422, "broken_image"),
    ],
)
def test_bad_images_are_refused_with_a_reason(
    client: TestClient, content: bytes, status: int, code: str
) -> None:
    answer = predict(client, content)
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["detail"] and "\n" not in problem["detail"] and "Traceback" not in problem["detail"]
    assert problem["request"] == answer.headers["x-request-id"]
    service: Service = client.service  # type: ignore[attr-defined]
    assert service.capacity.borrowed_tokens == 0 and service.budget.reserved == 0
    assert predict(client, png(1)).status_code == 200


def test_pixels_are_counted_before_they_are_decoded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_pixels(self: Image.Image) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load_pixels)
    stream = io.BytesIO()
    Image.new("L", (1001, 1000)).save(stream, format="PNG")
    assert predict(client, stream.getvalue()).json()["code"] == "too_many_pixels"


def test_files_are_never_read_by_path(client: TestClient, toy: Any) -> None:
    path = str(next(toy.images.iterdir()))
    for content in (path.encode(), f"file://{path}".encode(), json.dumps({"path": path}).encode()):
        assert predict(client, content).json()["code"] == "broken_image"
    body, kind = form([(path, b"nothing")])
    answer = client.post("/v1/predict", content=body, headers={"content-type": kind})
    assert answer.json()["code"] == "broken_image"
    for address in ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", f"/static/{path}"):
        assert client.get(address).status_code == 404


def test_one_image_is_one_image(client: TestClient) -> None:
    assert send(client, "/v1/predict", [png(1), png(2)]).json()["code"] == "too_many_images"
    assert send(client, "/v1/predict", []).json()["code"] == "no_image"
    assert send(client, "/v1/batch", []).json()["code"] == "no_image"


def test_a_batch_keeps_order_and_tells_what_failed(client: TestClient) -> None:
    images = [png(seed) for seed in range(9)]
    images[2], images[5] = b"broken", huge_png(3000, 3000)
    answer = send(client, "/v1/batch", images).json()
    assert (answer["images"], answer["failed"]) == (9, 2)
    for index, row in enumerate(answer["results"]):
        assert row["name"] == f"image{index}.png"
        if index in (2, 5):
            assert row["error"]["status"] in (413, 422) and row["error"]["detail"]
        else:
            assert row["sha256"] == hashlib.sha256(images[index]).hexdigest()
            assert row["score"] == predict(client, images[index]).json()["score"]


def test_calibrating_is_the_library_s(client: TestClient, toy: Any, tmp_path: Path) -> None:
    images = [png(seed) for seed in range(30, 50)]
    for index, content in enumerate(images):
        (tmp_path / f"{index:02d}.png").write_bytes(content)
    detector = load(toy.model, device="cpu")
    expected = detector.calibrate(tmp_path, target_fpr=0.2, confidence=0.9)
    before = predict(client, images[0]).json()
    answer = send(client, "/v1/calibrate?target_fpr=0.2&confidence=0.9", [*images, b"broken"]).json()
    made = Calibration.model_validate(answer["calibration"])
    assert made.model_dump(exclude={"created", "model"}) == expected.model_dump(exclude={"created", "model"})
    assert made.model.identity == expected.model.identity == before["model"]
    assert answer["summary"] == expected.summary() and answer["warnings"] == expected.warnings()
    assert [row["name"] for row in answer["skipped"]] == ["image20.png"]
    after = predict(client, png(99)).json()
    judged = detector.predict(png(99)).to_dict()
    for key in ("score", "verdict", "p_value", "threshold", "pixel_threshold", "regions"):
        assert after[key] == judged[key], key
    assert before["verdict"] is None and after["calibration"] == made.digest()
    # Taken home and brought back it judges the same.
    load(toy.model, device="cpu").use(write_calibration(made, tmp_path / "calibration.json"))
    assert client.delete("/v1/calibration").status_code == 204
    assert predict(client, png(99)).json()["verdict"] is None
    assert client.get("/v1/calibration").json()["code"] == "not_calibrated"
    again = client.put("/v1/calibration", content=(tmp_path / "calibration.json").read_bytes())
    assert again.status_code == 200
    assert predict(client, png(99)).json()["verdict"] == after["verdict"]
    assert client.get("/v1/calibration").json()["calibration"] == answer["calibration"]
    assert client.get("/v1/models").json()["models"][0]["calibrated"] is True


@pytest.mark.parametrize(
    ("query", "images", "code"),
    [
        ("?target_fpr=2", [png(1)], "impossible_wish"),
        ("?target_fpr=nonsense", [png(1)], "parameter"),
        ("?pixel_rule=guess", [png(1)], "parameter"),
        ("", [], "no_calibration"),
        ("", [b"broken"], "no_calibration"),
    ],
)
def test_impossible_calibrations(client: TestClient, query: str, images: list[bytes], code: str) -> None:
    answer = send(client, f"/v1/calibrate{query}", images)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert client.get("/v1/calibration").status_code == 404


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 99}', b'{"format": 1}', b"\xff" * 50])
def test_what_is_no_calibration_is_refused(client: TestClient, content: bytes) -> None:
    answer = client.put("/v1/calibration", content=content)
    assert (answer.status_code, answer.json()["code"]) == (422, "no_calibration")


def test_a_calibration_of_another_model_is_refused(
    client: TestClient, make_service: Callable[..., Service]
) -> None:
    made = send(client, "/v1/calibrate", [png(1), png(2)]).json()["calibration"]
    made["model"]["identity"] = "0" * 16
    answer = client.put("/v1/calibration", json=made)
    assert answer.status_code == 422 and "was made for" in answer.json()["detail"]


def test_what_the_service_says_of_itself(client: TestClient) -> None:
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}
    [model] = client.get("/v1/models").json()["models"]
    assert model["method"] == "promptmoe" and model["input"] == [64, 64] and model["layers"] == [2, 3, 4]
    assert model["limits"]["max_bytes"] == 200_000 and model["limits"]["batch"] == 1
    predict(client, png(1))
    predict(client, b"broken")
    text = client.get("/metrics").text
    assert 'zsad_requests_total{endpoint="/v1/predict",status="200"} 1.0' in text
    assert 'zsad_requests_total{endpoint="/v1/predict",status="422"} 1.0' in text
    assert 'zsad_images_total{outcome="broken_image"} 1.0' in text and "zsad_inside_images 0.0" in text
    client.get("/made/up/by/a/scanner")
    assert 'endpoint="other",status="404"' in client.get("/metrics").text


def test_it_is_not_ready_while_it_stops(client: TestClient) -> None:
    client.service.stopping = True  # type: ignore[attr-defined]
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == client.head("/healthz").status_code == 200
    assert client.head("/readyz").content == b""
    assert predict(client, png(1)).status_code == 200  # what was accepted is finished


def test_the_description_is_whole_and_local(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/predict",
        "/v1/batch",
        "/v1/calibrate",
        "/v1/calibration",
        "/v1/models",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    answer = document["components"]["schemas"]["PredictionAnswer"]["properties"]
    assert set(predict(client, png(1), "?include=heatmap&include=picture&include=grid").json()) <= set(answer)
    bodies = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"multipart/form-data", "image/*", "application/octet-stream"}
    assert "security" not in document


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    for address in ("/", "/api"):
        answer = client.get(address)
        assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
        for name in ("x-content-type-options", "referrer-policy", "cross-origin-opener-policy"):
            assert name in answer.headers
        again = client.get(address, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for path in STATIC.iterdir():
        answer = client.get(f"/static/{path.name}")
        assert answer.status_code == 200 and answer.content == path.read_bytes()
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "//cdn" not in text, path.name
    html = (STATIC / "index.html").read_text()
    assert "style=" not in html and "onclick" not in html  # the policy forbids both


def test_the_page_s_colours_are_those_of_the_maps() -> None:
    css = (STATIC / "page.css").read_text()
    table = colour_table()
    colours = ", ".join("#{:02x}{:02x}{:02x}".format(*table[place]) for place in range(0, 256, 15))
    assert f"linear-gradient(90deg, {colours})" in css


def test_only_this_machine_may_ask_without_a_token(client: TestClient) -> None:
    for host in ("localhost", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST:1", "127.1.2.3"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "10.0.0.1", "[::", "127.0.0.1.nip.io", "a@b:c"):
        answer = client.get("/v1/models", headers={"host": host})
        assert (answer.status_code, answer.json()["code"]) == (403, "host"), host


def test_other_pages_may_not_ask_through_the_browser(client: TestClient) -> None:
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        answer = predict(client, png(1), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "origin"), headers
    own = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    assert predict(client, png(1), headers=own).status_code == 200


def test_a_token_is_asked_for(make_service: Callable[..., Service]) -> None:
    with TestClient(create_app(make_service(), token=TOKEN), base_url="http://factory.example") as client:
        for headers in (
            {},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": "Bearer"},
            {"authorization": f"Bearer {TOKEN}x"},
            {"authorization": f"Bearer {TOKEN[:-1]}"},
            {"authorization": b"Bearer \xff\xfe"},
        ):
            for answer in (
                predict(client, png(1), headers=headers),
                client.get("/v1/models", headers=headers),
                client.get("/metrics", headers=headers),
                client.delete("/v1/calibration", headers=headers),
            ):
                assert (answer.status_code, answer.json()["code"]) == (401, "token"), headers
                assert answer.headers["www-authenticate"] == "Bearer"
                assert TOKEN not in answer.text
        known = {"authorization": f"Bearer {TOKEN}", "origin": "https://factory.example"}
        assert predict(client, png(1), headers=known).status_code == 200
        for address in ("/", "/api", "/static/page.js", "/healthz", "/readyz"):
            assert client.get(address).status_code == 200
        assert client.get("/openapi.json").json()["security"] == [{"token": []}]


def test_tokens_are_compared_in_constant_time(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append((one, other)) or False)
    with TestClient(create_app(make_service(), token=TOKEN), base_url="http://localhost") as client:
        assert client.get("/v1/models", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 401
    assert compared == [(TOKEN.encode(), TOKEN.encode())]


def test_a_bug_is_told_without_its_traceback(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    service: Service = client.service  # type: ignore[attr-defined]
    monkeypatch.setattr(service, "_answer", lambda *_: 1 / 0)
    answer = predict(client, png(1))
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "ZeroDivision" not in answer.text and service.capacity.borrowed_tokens == 0
    [row] = send(client, "/v1/batch", [png(1)]).json()["results"]
    assert row["error"]["code"] == "internal"


def test_unknown_addresses_and_verbs(client: TestClient) -> None:
    assert client.get("/v2/predict").json()["code"] == "not_found"
    answer = client.get("/v1/predict")
    assert (answer.status_code, answer.json()["code"], answer.headers["allow"]) == (405, "method", "POST")
    assert client.head("/").status_code == 200


def test_a_region_of_interest_holds_for_all(toy: Any, tmp_path: Path) -> None:
    from zsad.predict.roi import Area, RegionOfInterest

    detector = load(toy.model, device="cpu")
    mask = np.zeros((48, 64), dtype=bool)
    mask[:, :32] = True
    detector = detector.with_(region=RegionOfInterest(include=Area.from_mask(mask)))
    expected = detector.predict(png(5)).score
    service = Service(detector, RequestLimits())
    with TestClient(create_app(service), base_url="http://localhost") as client:
        assert predict(client, png(5)).json()["score"] == pytest.approx(expected, abs=1e-8)
        other = predict(client, png(5, size=(60, 64)))
        assert (other.status_code, other.json()["code"]) == (422, "outside_region")
        answer = send(client, "/v1/calibrate", [png(6), png(7, size=(60, 64))]).json()
        assert len(answer["calibration"]["scores"]) == len(answer["skipped"]) == 1
        assert answer["calibration"]["region"] is not None
        assert predict(client, png(5)).json()["score"] == pytest.approx(expected, abs=1e-8)


def test_limits_that_contradict_each_other(make_service: Callable[..., Service]) -> None:
    with pytest.raises(ConfigError, match="--batch is 9"):
        make_service(batch=9, max_queue=4)


def test_names_of_this_machine() -> None:
    assert all(map(is_loopback, ("localhost", "Localhost.", "127.0.0.1", "::1", "[::1]", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.7", "factory", "", "127.0.0.1.evil")))


def test_bytes_are_what_the_reader_of_files_makes_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(8))
    assert read_image(png(8))[0].tobytes() == read_image(tmp_path / "a.png")[0].tobytes()


def test_work_that_fails_after_its_client_has_gone_is_no_news_for_the_event_loop() -> None:
    reported: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise Refusal(422, "broken_image", "the image is empty") from None

    async def ask() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        with pytest.raises(ClientDisconnect):
            await run_until_disconnect(Request({"type": "http"}, receive), work())
        await asyncio.sleep(0.01)
        gc.collect()

    asyncio.run(ask())
    assert reported == []
