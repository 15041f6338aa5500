"""The page in a real browser: clicks, keys, drops, downloads, both colour schemes, a narrow window."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from zsad_tests_serve_browser import EXECUTABLE, Browser
from zsad_tests_serve_tools import Running, png, wait_for

from zsad.detector import Detector
from zsad.loading import load

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="needs Chromium")

FINISHED = "document.getElementById('live').textContent.startsWith('Finished')"


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser() as one:
        one.look(width=1440, height=900)
        yield one


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Three images, one of a kind that browsers do not show, and a broken one."""
    paths = [tmp_path / name for name in ("a.png", "b <b>bold.jpg", "c.tif", "d.png")]
    for seed, (path, kind) in enumerate(zip(paths, ("PNG", "JPEG", "TIFF"), strict=False)):
        path.write_bytes(png(seed, size=(60, 90), kind=kind))
    paths[3].write_bytes(b"\x89PNG but no more")
    return paths


def shown_score(browser: Browser) -> float:
    return float(browser.text(".score-now .value"))


def test_from_a_drop_to_a_report(
    browser: Browser,
    run_service: Callable[..., Running],
    detector: Detector,
    pictures: list[Path],
    tmp_path: Path,
) -> None:
    server = run_service()
    browser.open(f"{server.url}/")
    browser.until("document.getElementById('served').textContent.includes('promptmoe')")
    assert browser.problems == []

    # Dropped anywhere on the window, scored, the broken one told apart, names never taken for markup.
    browser.drop("#hero", pictures)
    browser.until(FINISHED)
    assert browser.text("#tally") == "4 images · 1 unusable"
    assert browser.run("document.querySelectorAll('#items b b, #items .words > b').length") == 0
    scores = [detector.predict(path).score for path in pictures[:3]]
    for number, score in enumerate(scores, 1):
        browser.click(f"#items li:nth-child({number}) button")
        assert browser.text("#h-name") == pictures[number - 1].name
        assert shown_score(browser) == pytest.approx(score, abs=2e-3)
        assert browser.run("document.querySelector('.frame .picture').decode().then(() => true)")
    browser.click("#items li:nth-child(4) button")
    assert "not an image" in browser.text("#judgement") or "damaged" in browser.text("#judgement")

    # By the keyboard alone: through the list, and the slider.
    browser.click("#items li:nth-child(1) button")
    browser.press("ArrowDown")
    assert browser.run("document.activeElement.getAttribute('aria-label')").startswith("b <b>bold.jpg, score")
    assert browser.text("#h-name") == "b <b>bold.jpg"
    browser.run("document.getElementById('opacity').focus()")
    browser.press("ArrowLeft", times=4)
    assert browser.text("#opacity-value") == "50 %"
    assert browser.run("getComputedStyle(document.querySelector('.heat')).opacity") == "0.5"

    _calibrate(browser, server, tmp_path)
    _take_home(browser, server, pictures, scores, tmp_path)
    hosts = {address.split("/")[2] for address in browser.requests if address.startswith("http")}
    assert hosts == {server.url.split("/")[2]}


def _calibrate(browser: Browser, server: Running, tmp_path: Path) -> None:
    """Normals are dropped on their own place; verdicts and regions follow, and what is shown is judged anew."""
    normals = []
    for seed in range(40, 60):
        normals.append(tmp_path / f"normal{seed}.png")
        normals[-1].write_bytes(png(seed, size=(60, 90)))
    browser.run("document.getElementById('rate').value = '0.1'")
    browser.drop("#drop-normals", normals)
    browser.until("document.getElementById('calibrated').textContent === 'in use'")
    browser.until(FINISHED)
    made = server.service.calibration
    assert made is not None and len(made.scores) == 20 and made.image.target == 0.1
    assert "20 normal images" in browser.text("#calibration-state")
    assert f"{made.image.value:.4f}" in browser.text("#promises")
    assert browser.text(".score-now .verdict").strip() in ("Normal", "Anomalous")
    assert "of normal images score as high" in browser.text("#judgement")
    assert browser.run("document.querySelectorAll('.score-line .normals').length") > 0

    # The highest normal has no region above its own peak; a lower threshold gives some to look at.
    lower = made.model_copy(update={"pixel": made.pixel.model_copy(update={"value": made.peaks[0] * 0.9})})
    file = tmp_path / "calibration.json"
    file.write_text(lower.model_dump_json())
    browser.choose("#calibration-file", [file])
    browser.until("document.querySelectorAll('table.regions tbody tr').length > 0")
    count = browser.run("document.querySelectorAll('table.regions tbody tr').length")
    assert browser.run("document.querySelectorAll('.outlines .region').length") == count
    browser.hover_until("table.regions tbody tr", "document.querySelectorAll('.region.lit').length === 1")
    browser.click("#show-regions")
    assert browser.run("getComputedStyle(document.querySelector('.outlines')).display") == "none"
    browser.click("#show-regions")


def _take_home(
    browser: Browser, server: Running, pictures: list[Path], scores: list[float], tmp_path: Path
) -> None:
    """JSON, calibration and report come as files; the report opens alone."""
    browser.until(FINISHED)
    folder = tmp_path / "downloads"
    folder.mkdir()
    finished = browser.downloads(folder)
    for count, query in enumerate(("#save-json", "#save-calibration", "#save-report"), 1):
        browser.click(query)
        wait_for(lambda count=count: len(finished()) == count)
    files = {path.suffix if "calibration" not in path.name else "calibration": path for path in finished()}
    told = json.loads(files[".json"].read_text())
    assert [row["name"] for row in told["results"]] == [path.name for path in pictures]
    assert [row.get("score") for row in told["results"][:3]] == pytest.approx(scores, abs=2e-3)
    assert "error" in told["results"][3] and "heatmap" not in told["results"][0]
    again = load(server.service.model.name, device="cpu").use(files["calibration"])
    assert again.calibration is not None and again.calibration.digest() == told["results"][0]["calibration"]
    report = files[".html"].read_text()
    assert "<script" not in report and "<b>bold" not in report and 'src="http' not in report
    assert report.count("data:image/jpeg") == 3 and report.count("data:image/png") == 3
    before = len(browser.problems)
    browser.open(files[".html"].as_uri())
    assert browser.run("document.querySelectorAll('.cards .panel').length") == 4
    assert browser.run("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    assert browser.run("getComputedStyle(document.querySelector('.frame')).position") == "relative"
    assert browser.problems[before:] == []


def test_it_can_be_used_without_eyes_or_mouse(
    browser: Browser, run_service: Callable[..., Running], pictures: list[Path]
) -> None:
    server = run_service()
    server.post("/v1/calibrate", [png(seed) for seed in range(30, 36)])
    browser.open(f"{server.url}/")
    browser.until("document.getElementById('calibrated').textContent === 'in use'")
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == "Skip to the picture"
    reached = set()
    for _ in range(14):
        browser.press("Tab")
        if browser.run("document.activeElement === document.body"):
            break  # once round
        reached.add(browser.run("document.activeElement.id || document.activeElement.textContent"))
        ring = browser.run(
            "(() => { const one = document.activeElement;"
            " const shown = one.matches('.unseen') ? one.parentElement : one;"
            " const target = shown.matches('.file') ? shown.querySelector('label') : shown;"
            " return getComputedStyle(target).outlineStyle; })()"
        )
        assert ring != "none", reached
    assert {"API", "theme", "files", "rate", "normals", "save-calibration", "calibration-file"} <= reached
    browser.choose("#files", pictures[:2])
    browser.until(FINISHED)
    for role in ("button", "link", "slider", "checkbox", "combobox", "img", "image", "region", "heading"):
        assert all(browser.names(role)), (role, browser.names(role))
    said = browser.names("image") + browser.names("img")
    assert any("Score" in name and "threshold" in name for name in said)
    assert any("pool, strongest in each layer" in name for name in said)
    assert browser.run("document.querySelector('[aria-live=polite]').textContent").startswith(
        "Finished: 2 images"
    )


def test_it_fits_and_has_two_colour_schemes(
    browser: Browser, run_service: Callable[..., Running], pictures: list[Path]
) -> None:
    server = run_service()
    for address in ("/", "/api"):
        browser.open(f"{server.url}{address}")
        if address == "/":
            browser.choose("#files", pictures)
            browser.until(FINISHED)
        else:
            browser.until("document.querySelectorAll('.endpoint').length > 10")
            assert "/v1/predict" in browser.text("#endpoints") and "PredictionAnswer" in browser.text(
                "#contents"
            )
        grounds = set()
        for width in (1440, 1000, 700, 360):
            for dark in (False, True):
                browser.look(width=width, height=800, dark=dark)
                grounds.add(browser.run("getComputedStyle(document.body).backgroundColor"))
                assert browser.run("document.documentElement.scrollWidth - innerWidth") <= 0, (address, width)
        assert len(grounds) == 2
        browser.look(width=1440, height=800)
        chosen = browser.run("getComputedStyle(document.body).backgroundColor")
        browser.click("#theme")
        assert browser.run("getComputedStyle(document.body).backgroundColor") != chosen
        browser.click("#theme")


def test_it_asks_for_the_token(
    browser: Browser, run_service: Callable[..., Running], pictures: list[Path]
) -> None:
    server = run_service(token="a-token-for-this-test")
    browser.open(f"{server.url}/")
    browser.until("document.getElementById('ask-token').open")
    for token in ("a-wrong-token", "a-token-for-this-test"):
        browser.send("Input.insertText", text=token)
        browser.press("Enter")
        if token == "a-wrong-token":
            browser.until("document.getElementById('served').textContent.includes('wrong token')")
            browser.until("document.getElementById('ask-token').open")
    browser.until("document.getElementById('served').textContent.includes('promptmoe')")
    browser.choose("#files", pictures[:1])
    browser.until(FINISHED)
    assert 0 <= shown_score(browser) <= 1
    assert "a-token" not in browser.run("JSON.stringify(localStorage)")


def test_it_waits_where_the_service_is_busy(
    browser: Browser, run_service: Callable[..., Running], tmp_path: Path
) -> None:
    server = run_service(max_queue=1)
    paths = []
    for seed in range(6):
        paths.append(tmp_path / f"{seed}.png")
        paths[-1].write_bytes(png(seed))
    server.service.capacity.total_tokens = 0  # as if other images were inside
    browser.open(f"{server.url}/")
    browser.until("document.getElementById('served').textContent.includes('promptmoe')")
    browser.choose("#files", paths)
    wait_for(lambda: 'status="429"' in server.service.metrics.render())
    time.sleep(0.2)
    assert "6 to go" in browser.text("#tally")
    server.service.capacity.total_tokens = 1
    browser.until(FINISHED)
    assert browser.text("#tally") == "6 images"
