from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.errors import DataError
from zsad.studies.benchmark.cell_results import CellResult, ClassRow, read_cells
from zsad.studies.benchmark.summary import Summary
from zsad.studies.report.benchmark_reports import write_reports
from zsad.studies.report.curve_charts import curve_charts, mean_lines
from zsad.studies.report.drawing import PANEL
from zsad.studies.report.examples import Example, examples, maps_figure
from zsad.studies.report.method_charts import methods_over_sets, quality_over_time, styles
from zsad.studies.report.overview import overview

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)

# Runs inside the page: what it asked for, what it broke, what does not fit, and whether the buttons work.
PROBE_HEAD = """<script>
window.seen = { violations: 0, errors: 0 };
addEventListener("securitypolicyviolation", () => { window.seen.violations += 1; });
addEventListener("error", () => { window.seen.errors += 1; }, true);
</script>"""
PROBE_FOOT = """<script>
addEventListener("load", () => {
  const all = (query) => [...document.querySelectorAll(query)];
  const inside = (svg) => { const box = svg.viewBox.baseVal; return [...svg.querySelectorAll("text")].every((text) => {
    const own = text.getBBox();
    const [right, bottom] = [own.x + own.width, own.y + own.height];
    return own.x >= -1 && own.y >= -1 && right <= box.width + 1 && bottom <= box.height + 1; }); };
  all("details").forEach((one) => { one.open = true; });
  const tabs = all("#sets [role=tab]");
  const before = all("#sets [role=tabpanel]").map((panel) => panel.hidden);
  tabs[1].click();
  const after = all("#sets [role=tabpanel]").map((panel) => panel.hidden);
  const background = () => getComputedStyle(document.body).backgroundColor;
  const first = background();
  document.getElementById("theme").click();
  Object.assign(window.seen, {
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
    tables: all("table").length, headed: all("table").filter((t) => t.querySelector("th[scope]")).length,
    svgs: all("svg[role=img][aria-label]").length, unlabelled: all("svg:not([aria-label]):not([aria-hidden])").length,
    texts_outside: all("svg").filter((svg) => svg.getBoundingClientRect().width > 0 && !inside(svg))
      .map((svg) => svg.getAttribute("aria-label")),
    pictures: all("img").length, nameless: all("img:not([alt]), img[alt='']").length,
    too_wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    before, after, themed: first !== background(), width: innerWidth,
  });
  document.body.dataset.seen = JSON.stringify(window.seen);
});
</script>"""


class Page(HTMLParser):
    """Collects tags and checks that they nest."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def work(benchmark_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with its reports."""
    work = shutil.copytree(benchmark_work, tmp_path_factory.mktemp("reports") / "work")
    write_reports(work, read_cells(work), title="Made-up benchmark")
    return work


@pytest.fixture(scope="module")
def html(work: Path) -> str:
    return (work / "benchmark.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def summary(benchmark_work: Path) -> Summary:
    return Summary(read_cells(benchmark_work), work=benchmark_work, resamples=50)


@pytest.fixture(scope="module")
def shown(summary: Summary, benchmark_work: Path) -> list[Example]:
    return examples(summary, benchmark_work)


def test_all_reports_are_written(work: Path) -> None:
    for suffix in ("csv", "json", "tex", "md", "svg", "pdf", "html"):
        assert (work / f"benchmark.{suffix}").stat().st_size > 1000
    for name in ("benchmark.png", "benchmark-maps.png"):
        with Image.open(work / name) as picture:
            assert min(picture.size) > 800
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_page_is_well_formed_and_accessible(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), (tag, value)
        if tag == "img":
            assert attributes.get("alt")
        if attributes.get("role") in ("img", "region"):
            assert attributes.get("aria-label")
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {(a["href"] or "")[1:] for tag, a in page.tags if tag == "a"}
    assert links <= set(ids)
    assert sum(tag == "table" for tag, _ in page.tags) == sum(tag == "caption" for tag, _ in page.tags)
    assert "url(" not in html.replace("url(#", "") and "@import" not in html
    assert "content=\"default-src 'none';" in html


def test_page_tells_values_holes_and_notes(html: str, summary: Summary) -> None:
    text = " ".join("".join(Page(html).text).split())
    for name in summary.names:
        for metric in summary.metrics:
            assert summary.entry(name, "", metric).percent() in text
    for said in (
        "2 holes",
        "CUDA out of memory (seed 0, 1, 2)",
        "not run",
        "the file is empty",
        "not zero-shot",
    ):
        assert said in text
    assert "re-designed from the abstract" in text and "stand-in" in text
    assert 'title="failed: CUDA out of memory"' in html
    assert "no image of a target is used" not in text  # one method has seen a target here


def test_names_cannot_inject(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\"'"
    row = ClassRow(name=bad, normal=3, anomalous=3, masks=0, metrics={"image_auroc": 0.75})
    cells = [
        CellResult(
            key=str(index), method=bad, label=f"{bad}{index}", backbone=bad, backbone_sha256="0", target=bad,
            rows=(row, row.model_copy(update={"name": "other"})), notes=(bad,), environment={bad: bad},
        )
        for index in range(2)
    ]  # fmt: skip
    cells.append(
        cells[0].model_copy(update={"state": "failed", "reason": bad, "target": "second", "rows": ()})
    )
    write_reports(tmp_path, cells, title=bad)
    page = Page((tmp_path / "benchmark.html").read_text(encoding="utf-8"))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert bad in "".join(page.text)
    assert "<script>" not in (tmp_path / "benchmark.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("missing", "charts"),
    [("jinja2", {"svg", "pdf", "png"}), ("matplotlib", set())],
    ids=["jinja2", "matplotlib"],
)
def test_without_a_library_everything_else_is_written(tmp_path: Path, missing: str, charts: set[str]) -> None:
    row = ClassRow(name="c", normal=3, anomalous=3, masks=0, metrics={"image_auroc": 0.75})
    cell = CellResult(
        key="k", method="clip", label="clip", backbone="b", backbone_sha256="0", target="t", rows=(row,)
    )
    cell_path = tmp_path / "cell.json"
    cell_path.write_text(cell.model_dump_json())
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        f"u.find_spec = lambda name, *rest: None if name == {missing!r} else find(name, *rest)\n"
        "from pathlib import Path; from zsad.studies.benchmark.cell_results import read_cell\n"
        "from zsad.studies.report.benchmark_reports import write_reports\n"
        f"work = Path({str(tmp_path)!r}); cells = [read_cell(work / 'cell.json')]\n"
        "print(*(path.name for path in write_reports(work, cells)))\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    names = {f"benchmark.{suffix}" for suffix in {"csv", "json", "tex", "md"} | charts}
    assert set(printed.stdout.split()) == names
    assert ("benchmark.png" in (tmp_path / "benchmark.md").read_text()) == bool(charts)


def test_no_cells_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no results"):
        write_reports(tmp_path, [])


def test_radar_has_a_gap_where_a_result_is_missing(summary: Summary) -> None:
    drawing = methods_over_sets(summary, "image_auroc")
    assert drawing is not None and "moeclip: bolts" in drawing.summary
    (axes,) = [axes for axes in drawing.figure.axes if axes.name == "polar"]
    lines = {
        line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) > 1
    }
    targets = ["bolts", "cloth", "scans", "tiles"]  # those with image metrics
    assert list(lines) == summary.names
    for name, values in lines.items():
        entries = [summary.entry(name, target, "image_auroc") for target in [*targets, "bolts"]]
        expected = [np.nan if entry.hole else entry.spread.mean for entry in entries]
        np.testing.assert_array_equal(values, expected)
    assert np.isnan(lines["moeclip"]).sum() == 1 and np.isnan(lines["promptmoe"]).sum() == 0
    markers = [line for line in axes.lines if len(line.get_xdata()) == 1]
    own = [line for line in markers if line.get_color() == styles(summary.names)["moeclip"].colour]
    assert len(own) == len(targets) - 1
    hollow = [line for line in markers if line.get_markerfacecolor() == PANEL]
    assert len(hollow) == 1  # the data that mpama has seen


def test_methods_differ_without_colours(summary: Summary) -> None:
    drawn = styles([f"method {index}" for index in range(40)])
    assert len({(style.colour, style.marker, style.dashed) for style in drawn.values()}) >= 20
    assert len({style.marker for style in styles(summary.names).values()}) == len(summary.names)


def test_pointing_at_a_marker_tells_its_value(summary: Summary) -> None:
    drawing = methods_over_sets(summary, "pixel_pro")
    assert drawing is not None
    titles = re.findall("<title>([^<]*)</title>", drawing.to_svg())
    assert titles == drawing.tips
    value = summary.entry("promptmoe", "tiles", "pixel_pro").percent()
    assert any(title.startswith(f"promptmoe, tiles: {value}") for title in titles)


def test_the_same_numbers_give_the_same_bytes(summary: Summary) -> None:
    first, second = (overview(summary, title="Made-up $benchmark$ <b>").files("x") for _ in range(2))
    assert first == second and set(first) == {"x.svg", "x.pdf", "x.png"}
    assert "Made-up $benchmark$ &lt;b&gt;" in first["x.svg"].decode()
    assert b"CreationDate" not in first["x.pdf"] and b"Software" not in first["x.png"]


def test_drawings_on_a_page_follow_its_colours(html: str) -> None:
    drawings = re.findall(r'<svg class="drawing".*?</svg>', html, re.DOTALL)
    assert len(drawings) > 20
    for drawing in drawings:
        colours = set(re.findall(r"#[0-9a-f]{6}", " ".join(re.findall(r'style="[^"]*"', drawing))))
        assert not colours and "var(--" in drawing


@pytest.mark.parametrize("count", [6, 24])
def test_texts_of_charts_are_neither_cut_nor_covered(count: int) -> None:
    row = ClassRow(name="c", normal=3, anomalous=3, masks=0, metrics={"image_auroc": 0.7, "pixel_pro": 0.4})
    cells = [
        CellResult(
            key=f"{index}-{target}", method=f"m{index}", label=f"method with a long name {index}", backbone="b",
            backbone_sha256="0", target=target, rows=(row,), seconds_per_image=0.01 * (1 + index % 5),
        )
        for index in range(count)
        for target in ("a data set of a long name", "bolts", "cloth", "another data set of a long name", "e", "f")
    ]  # fmt: skip
    summary = Summary(cells)
    for drawing in (
        overview(summary, title="A title that is much longer than the drawing is wide, " * 3),
        methods_over_sets(summary, "image_auroc"),
        quality_over_time(summary, "pixel_pro"),
    ):
        assert drawing is not None
        drawing.to_png(scale=1)
        texts = [text for axes in drawing.figure.axes for text in axes.texts if text.get_text()]
        boxes = [text.get_window_extent() for text in texts]
        frame = drawing.figure.bbox
        for text, box in zip(texts, boxes, strict=True):
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= frame.x1 and box.y1 <= frame.y1
            assert inside, text.get_text()
        names = [
            (text.get_text(), box)
            for text, box in zip(texts, boxes, strict=True)
            if "name" in text.get_text()
        ]
        for index, (name, box) in enumerate(names):
            assert not [other for other, second in names[:index] if box.overlaps(second)], name


def test_few_data_sets_are_dots_not_a_radar(benchmark_work: Path) -> None:
    cells = [cell for cell in read_cells(benchmark_work) if cell.target in ("bolts", "scans")]
    drawn = methods_over_sets(Summary(cells), "image_auroc")
    assert drawn is not None and drawn.summary.startswith("Chart of")
    assert methods_over_sets(Summary(cells[:1]), "pixel_f1_max") is not None
    assert methods_over_sets(Summary([]), "pixel_f1_max") is None


def test_curves_are_those_of_the_cells(summary: Summary, benchmark_work: Path) -> None:
    titles = {
        target: [d.summary for d in curve_charts(summary, target, benchmark_work)]
        for target in summary.targets
    }
    assert [len(charts) for charts in titles.values()] == [5, 5, 3, 2, 5]  # bolts cloth polyps scans tiles
    assert titles["scans"][0].startswith("image ROC curves on scans")
    assert " moeclip" not in titles["scans"][0]
    # The area under the mean curve is the mean of the areas.
    lines = mean_lines(benchmark_work, summary.finished("promptmoe", "cloth").values())
    x, y = lines["pixel_roc"]
    area = float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())
    assert area == pytest.approx(summary.entry("promptmoe", "cloth", "pixel_auroc").spread.mean, abs=0.01)
    assert lines["pixel_pro"][0][-1] == pytest.approx(0.3)


def test_cost_is_drawn_for_those_measured(summary: Summary) -> None:
    drawn = quality_over_time(summary, "image_auroc")
    assert drawn is not None and "winclip: 16" in drawn.summary
    bare = [cell.model_copy(update={"seconds_per_image": None}) for cell in summary.cells]
    assert quality_over_time(Summary(bare), "image_auroc") is None


def test_examples_are_chosen_by_the_ranking(shown: list[Example], benchmark_work: Path) -> None:
    by_kind = {(example.target, example.kind): example for example in shown}
    assert {kind for target, kind in by_kind if target == "bolts"} == {
        "best",
        "median",
        "worst",
        "false alarm",
    }
    assert {kind for target, kind in by_kind if target == "polyps"} == {"best", "median", "worst"}
    for target in ("bolts", "cloth", "polyps", "scans", "tiles"):
        right = [by_kind[target, kind].right for kind in ("best", "median", "worst")]
        assert right == sorted(right, reverse=True) and right[0] > right[-1]
    for example in shown:
        assert example.label == (example.kind != "false alarm")
        assert example.picture is not None and f"/{'bad' if example.label else 'good'}/" in example.image
        assert (example.mask is not None) == bool(example.label and example.target != "scans")
    assert "moeclip" not in by_kind["scans", "best"].maps and "wmoeclip" not in by_kind["tiles", "best"].maps
    with np.load(benchmark_work / "cells" / "tiles-clip-None.scores.npz") as content:
        scores = dict(zip(content["image"].tolist(), content["score"].tolist(), strict=True))
    best = by_kind["tiles", "best"]
    assert best.scores["clip"] == scores[best.image]


def test_mask_shown_is_that_of_the_image(shown: list[Example]) -> None:
    """A scratch is dark where its mask is white."""
    for example in shown:
        if example.mask is not None and example.picture is not None:
            inside = np.asarray(example.mask.convert("L")) > 200
            grey = np.asarray(example.picture.convert("L"), float)
            assert grey[inside].mean() < 60 < grey[~inside].mean()


def test_maps_figure_has_a_column_for_each_target(shown: list[Example], summary: Summary) -> None:
    figure = maps_figure(shown, summary.names)
    assert figure is not None
    pictures = figure.sheet.images
    assert len(pictures) == 5 * (2 + 6) - 1 - 2  # no mask of scans, two missing results
    assert maps_figure([], summary.names) is None


def test_moved_data_and_broken_grids_leave_the_rest(benchmark_work: Path, tmp_path: Path) -> None:
    work = shutil.copytree(benchmark_work, tmp_path / "work")
    for path in (work / "cells").glob("bolts-*.grids/predictions.jsonl"):
        path.write_text(path.read_text().replace("/data/bolts/", "/data/gone/"))
    for path in (work / "cells").glob("tiles-clip-*.grids/grids.npy"):
        path.write_bytes(path.read_bytes()[:64])
    for path in (work / "cells").glob("cloth-clip-*.curves.npz"):
        path.write_bytes(b"no archive")
    cells = [c for c in read_cells(work) if c.seed in (None, 0) and c.label in ("clip", "winclip", "mpama")]
    summary = Summary(cells, work=work, resamples=20)
    found = {(e.target, e.kind): e for e in examples(summary, work)}
    assert found["bolts", "best"].picture is None and found["bolts", "best"].scores
    assert "clip" not in found["tiles", "best"].maps and "winclip" in found["tiles", "best"].maps
    pixel_roc = curve_charts(summary, "cloth", work)[2].summary
    assert ": winclip" in pixel_roc and ": clip" not in pixel_roc


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_page_in_a_browser(html: str, tmp_path: Path) -> None:
    probed = html.replace("<head>", f"<head>{PROBE_HEAD}", 1).replace("</body>", f"{PROBE_FOOT}</body>", 1)
    (tmp_path / "page.html").write_text(probed, encoding="utf-8")
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900"),
        *(
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--dump-dom"),
        (tmp_path / "page.html").as_uri(),
    ]
    environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": "/dev/null"}
    try:
        told = subprocess.run(
            command, capture_output=True, timeout=180, env=environment, check=False
        ).stdout.decode()
    except subprocess.TimeoutExpired:
        pytest.skip("the browser did not answer")
    found = re.search(r'data-seen="([^"]*)"', told)
    assert found is not None, told[-2000:]
    seen = json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))
    assert seen["requests"] == [] and seen["violations"] == 0 and seen["errors"] == 0
    assert seen["tables"] == seen["headed"] >= 20
    assert seen["svgs"] >= 2 + 20 + 2 and seen["unlabelled"] == 0 and seen["texts_outside"] == []
    assert seen["pictures"] > 150 and seen["nameless"] == 0
    assert seen["before"] == [False, *[True] * 6] and seen["after"] == [True, False, *[True] * 5]
    assert seen["themed"] and seen["too_wide"] <= 0
