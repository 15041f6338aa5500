from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from zsad.errors import ConfigError, DataError
from zsad.methods.registry import METHODS
from zsad.runs import page as page_module
from zsad.runs.page import ReportLimits, histogram, render_report, routing_rows, write_report

VOID = {"meta", "link", "img", "input", "br", "hr"}
SHAPES = {"line", "rect"}
TEMPLATES = FileSystemLoader(Path(page_module.__file__).parent / "templates")
CHARTS = (
    Environment(loader=TEMPLATES, trim_blocks=True, lstrip_blocks=True).get_template("charts.html").module
)


class Page(HTMLParser):
    """Collects tags and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES | VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for name, a in self.tags if name == tag and all(a.get(k) == v for k, v in wanted.items())]


@pytest.fixture(scope="module")
def page(toy_run: Path) -> Page:
    return Page((toy_run / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def run(toy_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_run, tmp_path / "run")


def edit_rows(run: Path, **changes: object) -> None:
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    rows[0].update(changes)
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_image_is_shown_by_falling_score(page: Page, toy_run: Path) -> None:
    rows = [json.loads(line) for line in (toy_run / "predictions.jsonl").read_text().splitlines()]
    rows.sort(key=lambda row: -row["score"])
    cards = page.all("article")
    assert [card["data-name"] for card in cards] == [row["source"].lower() for row in rows]
    assert len(page.all("img", loading="lazy")) == 2 * len(rows)


def test_nothing_comes_from_the_network(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), (tag, value)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy and (policy[0]["content"] or "").startswith("default-src 'none'")
    assert "url(" not in "".join(page.text) and "@import" not in "".join(page.text)


def test_pictures_have_descriptions_and_controls_names(page: Page) -> None:
    for tag, attributes in page.tags:
        if tag == "img" and "id" not in attributes:
            assert attributes.get("alt")
        if attributes.get("role") == "img":
            assert attributes.get("aria-label")
        if tag == "input":
            assert attributes.get("aria-label")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {(attributes["href"] or "")[1:] for attributes in page.all("a")}
    assert links <= set(ids)


def test_routing_model_and_environment_are_told(page: Page) -> None:
    text = " ".join("".join(page.text).split())
    for said in ("Which experts spoke", "promptmoe", "Model card", "Environment", "2, 3, 4"):
        assert said in text
    assert len(page.all("svg", **{"class": "routing"})) == 2 * len(page.all("article"))


def test_file_names_cannot_inject(run: Path) -> None:
    name = "/data/<script>alert(1)</script>\"' onload=x.png"
    edit_rows(run, source=name)
    text = render_report(run, limits=ReportLimits())
    assert "<script>alert" not in text
    found = Page(text)
    assert len(found.all("script")) == 2  # the base page's and the report's own
    assert not any("onload" in attributes for _, attributes in found.tags)
    assert name.lower() in {card["data-name"] for card in found.all("article")}


def test_picture_that_is_gone_keeps_its_numbers(run: Path) -> None:
    edit_rows(run, source="/nowhere/gone.png")
    text = render_report(run, limits=ReportLimits())
    assert "no longer at its place" in text and "gone.png" in text


def test_caps_are_said(run: Path) -> None:
    found = Page(render_report(run, limits=ReportLimits(worst=2, best=1, rows=4)))
    text = " ".join("".join(found.text).split())
    assert len(found.all("article")) == 3
    assert "The 2 highest scores of 5" in text and "The 1 lowest scores" in text
    assert "1 more are in scores.csv" in text


def test_errors_and_labels_have_their_place(run: Path) -> None:
    edit_rows(run, label=1)
    lines = (run / "predictions.jsonl").read_text().splitlines()
    second = json.loads(lines[1])
    second["label"] = 0
    lines[1] = json.dumps(second)
    lines.append(json.dumps({"source": "/x/bad.png", "error": "bad.png is <empty>"}))
    (run / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    text = render_report(run, limits=ReportLimits())
    assert "image AUROC" in text and "1 normal, 1 anomalous" in text
    assert "bad.png is &lt;empty&gt;" in text and "1 file could not be used" in text


def test_small_stand_in_is_called_that(run: Path) -> None:
    assert "stand-in" not in render_report(run, limits=ReportLimits())
    content = json.loads((run / "run.json").read_text())
    content["card"]["backbone"]["name"] = "zsad-tiny"
    (run / "run.json").write_text(json.dumps(content))
    assert "stand-in" in render_report(run, limits=ReportLimits())


def test_re_designed_methods_are_called_that(run: Path) -> None:
    entries = [entry for entry in METHODS.values() if entry.sources == "abstract"]
    assert {entry.name for entry in entries} == {"mpa", "mpama", "wmoeclip"}
    assert "re-designed" not in render_report(run, limits=ReportLimits())
    content = json.loads((run / "run.json").read_text())
    for entry in entries:
        content["card"] |= {"method": entry.name, "provenance": entry.provenance}
        (run / "run.json").write_text(json.dumps(content))
        page = Page(render_report(run, limits=ReportLimits()))
        text = " ".join("".join(page.text).split())
        assert f"The method {entry.name} is re-designed from the abstract" in text
        assert f"{entry.name} (re-designed from the abstract)" in text
        assert len(page.all("p", **{"class": "warn"})) == 1


def test_missing_jinja_and_missing_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"run\.json"):
        write_report(tmp_path)
    with monkeypatch.context() as missing, pytest.raises(ConfigError, match=r"pip install 'zsad\[report\]'"):
        missing.setitem(sys.modules, "jinja2", None)
        write_report(run)
    (run / "predictions.jsonl").write_text("")
    with pytest.raises(DataError, match="nothing to report"):
        write_report(run)


def test_histogram_counts_every_score() -> None:
    scores, labels = [0.0, 0.01, 0.5, 1.0, 0.5], [0, 0, 1, None, 0]
    drawn = CHARTS.histogram(histogram(scores, labels))
    said = re.findall(r"<title>([^<]*)</title>", drawn)
    assert said == [
        "0.00 to 0.04: 2 normal",
        "0.48 to 0.52: 1 normal",
        "0.48 to 0.52: 1 anomalous",
        "0.96 to 1.00: 1",
    ]


def test_routing_bars_are_as_high_as_the_weights() -> None:
    weights = np.array([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]], np.float32)
    drawn = CHARTS.routing("normal", routing_rows(weights, [6, 12]))
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', drawn)]
    assert heights == [16.5, 5.5, 22.0]
    assert "layer 12, expert 3: 1.00" in drawn


def test_large_pictures_are_inlined_small(run: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.effect_noise((1600, 1200), 60).convert("RGB").save(large)
    edit_rows(run, source=str(large), size=[1200, 1600], score=0.999)
    sources = re.findall(r"base64,([^\"]+)\"", render_report(run, limits=ReportLimits(worst=1, best=0)))
    for source in sources:
        assert max(Image.open(io.BytesIO(base64.b64decode(source))).size) == 360
    assert len(sources) == 2
