"""Experts in a plane, curves of a log, and what drawings hold as SVG and as PNG."""

from __future__ import annotations

import io
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from zsad.errors import ConfigError, DataError
from zsad.studies.explain import explain, write_explanation
from zsad.studies.explain.embeddings import cosines, map_experts, principal_plane
from zsad.studies.explain.figure_parts import short_names, slug, wrapped
from zsad.studies.explain.figures import all_figures
from zsad.studies.explain.loss_charts import curves_figure
from zsad.studies.explain.patches import expert_colours, outline
from zsad.studies.explain.training_curves import read_curves
from zsad.studies.report.drawing import COLOURS, Drawing, round_values, shortened, styled, text_width

WEIGHTS = {"balance": "alpha", "decouple": "beta"}


def write_run(folder: Path, *, beta: float, steps: int = 500, raw: bool = True) -> Path:
    folder.mkdir()
    lines = [json.dumps({"step": 0, "skipped": "a.png", "reason": "broken"})]
    for step in range(1, steps + 1):
        record = {"step": step, "epoch": (step - 1) // 100, "dice": 4 / step, "balance": 0.08, "lr": 0.1}
        record["decouple"] = beta * (2 + step)
        if beta == 0 and raw:
            record["raw_decouple"] = 2.0 + step
        lines.append(json.dumps({**record, "total": 1.0, "seconds": 0.1}))
    (folder / "log.jsonl").write_text("\n".join([*lines, '{"step": 501, "di']))
    (folder / "run.json").write_text(json.dumps({"config": {"alpha": 0.01, "beta": beta, "layers": [1]}}))
    return folder


def test_curves_are_without_their_weights(tmp_path: Path) -> None:
    first = read_curves(write_run(tmp_path / "a", beta=0.005), name="a", weights=WEIGHTS)
    second = read_curves(write_run(tmp_path / "b", beta=0), name="b", weights=WEIGHTS)
    assert list(first.curves) == ["balance", "decouple", "dice", "total"] == list(second.curves)
    assert (first.steps, first.epochs) == (500, 5)
    for run in (first, second):
        curve = run.curves["decouple"]
        assert len(curve.steps) == 80
        assert curve.low[0] == pytest.approx(3) and curve.high[-1] == pytest.approx(502)
        np.testing.assert_allclose(curve.mean, 2 + curve.steps, rtol=1e-6)
        assert run.curves["balance"].mean == pytest.approx(8) and run.curves["dice"].weight is None
        assert run.curves["dice"].low.min() == pytest.approx(4 / 500)
    blind = read_curves(write_run(tmp_path / "c", beta=0, raw=False), name="c", weights=WEIGHTS)
    assert "decouple" not in blind.curves and blind.unrecorded == ("decouple",)


def test_the_image_auroc_of_watched_data_is_drawn_as_measured(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", beta=0.005)
    plain = read_curves(folder, name="plain", weights=WEIGHTS)
    with (folder / "log.jsonl").open("a") as stream:
        for epoch in range(5):
            record = {"step": 100 * (epoch + 1), "epoch": epoch, "image_auroc": 0.5 + epoch / 10}
            stream.write("\n" + json.dumps(record))
    watched = read_curves(folder, name="watched", weights=WEIGHTS)
    assert list(watched.curves) == [*plain.curves, "image AUROC"] and watched.steps == plain.steps
    curve = watched.curves["image AUROC"]
    assert curve.steps.tolist() == [100, 200, 300, 400, 500] and curve.weight is None
    assert curve.mean.tolist() == curve.low.tolist() == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    both, without = curves_figure([watched, plain]), curves_figure([plain])
    assert "image AUROC" in both.drawing.to_svg() and "measured after every epoch" in both.caption
    assert "image AUROC" not in without.drawing.to_svg() and "measured" not in without.caption


def test_runs_without_a_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no readable log\.jsonl"):
        read_curves(tmp_path, name="x", weights={})
    (tmp_path / "log.jsonl").write_text('[1]\nnot json\n{"step": 0}\n')
    with pytest.raises(DataError, match="no finished training step"):
        read_curves(tmp_path, name="x", weights={})


def test_plane_keeps_the_greatest_distances() -> None:
    draw = np.random.default_rng(1).normal(size=(12, 2)) * [5, 2]
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(7, 7)))[0][:2]
    rows = draw @ turn + 3
    places, explained = principal_plane(rows)
    assert sum(explained) == pytest.approx(1)
    between = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)  # noqa: E731
    np.testing.assert_allclose(between(places), between(rows), atol=1e-9)
    np.testing.assert_allclose(principal_plane(rows[::-1])[0][::-1], places, atol=1e-9)
    variances = np.linalg.eigvalsh(np.cov(rows.T))[::-1][:2]
    np.testing.assert_allclose(places.var(axis=0, ddof=1), variances, rtol=1e-9)
    assert principal_plane(np.ones((3, 4)))[1] == (0, 0)
    assert principal_plane(np.eye(1))[0].shape == (1, 2)


def test_cosines_within_and_between_pools() -> None:
    pools = {"n": [[2.0, 0], [3, 0]], "a": [[0, 1.0], [1, 1]], "one": [[-1.0, 0]]}
    half = 0.5**0.5
    expected = {"n": 1, "a": half, "between": np.mean([half / 2, -1, -half / 2])}
    assert cosines({pool: np.array(rows) for pool, rows in pools.items()}) == pytest.approx(expected)


class NeighbourMap:
    """Takes the place of scikit-learn's t-SNE, whose import costs seconds."""

    def __init__(self, **settings: object) -> None:
        assert settings == {"n_components": 2, "init": "pca", "perplexity": 5 / 3, "random_state": 0}

    def fit_transform(self, rows: np.ndarray) -> np.ndarray:
        assert np.ptp(np.linalg.norm(rows, axis=1)) > 0.1  # the embeddings, not their directions
        return rows[:, :2]


def test_a_compact_and_a_dispersed_pool_look_so() -> None:
    directions = np.random.default_rng(0).normal(size=(1, 8, 64))
    pools = {"compact": 0.1 * directions, "dispersed": directions[:, ::-1]}
    [found] = map_experts(pools, ("layer 1",))
    wide = {pool: np.linalg.norm(points - points.mean(axis=0)) for pool, points in found.points.items()}
    assert wide["dispersed"] > 5 * wide["compact"]
    assert found.spread["dispersed"] == pytest.approx(10 * found.spread["compact"])
    apart = directions[0] - directions[0].mean(axis=0)
    assert found.spread["dispersed"] == pytest.approx(np.sqrt((apart**2).sum(axis=1).mean()))
    assert found.cosine["compact"] == pytest.approx(found.cosine["dispersed"])  # directions alone cannot tell


def test_tsne_needs_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = {pool: np.random.default_rng(seed).normal(size=(1, 3, 4)) for seed, pool in enumerate("na")}
    monkeypatch.setitem(sys.modules, "sklearn.manifold", SimpleNamespace(TSNE=NeighbourMap))
    found = map_experts(pools, ("layer 1",), projection="tsne")[0]
    assert found.points["a"].shape == (3, 2) and found.explained is None
    with pytest.raises(ConfigError, match="says nothing"):
        map_experts({"n": pools["n"]}, ("layer 1",), projection="tsne")
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ConfigError, match="needs scikit-learn"):
        map_experts(pools, ("layer 1",), projection="tsne")


@styled
def test_svg_and_png_show_the_same() -> None:
    drawing = Drawing(120, 60, 'says "<this>"')
    drawing.tip(drawing.rectangle(10, 10, 40, 20, facecolor=COLOURS["normal"]), "a & b")
    drawing.rectangle(60, 10, 40, 20, facecolor="#000000", alpha=0.5)
    drawing.line((60, 110), (40, 40), color=COLOURS["ink"], linewidth=2)
    drawing.image(Image.new("RGB", (4, 3), "#123456"), 100, 44, 16, 12)
    drawing.text(10, 55, "<&> é $x$")
    root = ElementTree.fromstring(drawing.to_svg())
    assert root.attrib["aria-label"] == 'says "<this>"' and root.attrib["width"] == "120"
    assert [element.text for element in root.iter() if element.tag.endswith("title")] == ["a & b"]
    assert [element.text for element in root.iter() if element.tag.endswith("}text")] == ["<&> é $x$"]
    (picture,) = [element for element in root.iter() if element.tag.endswith("image")]
    assert picture.attrib["{http://www.w3.org/1999/xlink}href"].startswith("data:image/jpeg;base64,")
    assert COLOURS["normal"] in drawing.to_svg() and "var(" not in drawing.to_svg()
    inline = drawing.to_svg(inline=True)
    assert "var(--normal)" in inline and "<style" not in inline and COLOURS["normal"] not in inline
    image = Image.open(io.BytesIO(drawing.to_png())).convert("RGB")
    assert image.size == (240, 120)
    at = lambda x, y: "#{:02x}{:02x}{:02x}".format(*image.getpixel((2 * x, 2 * y)))  # noqa: E731
    assert (at(30, 20), at(5, 5), at(80, 40)) == (COLOURS["normal"], COLOURS["panel"], COLOURS["ink"])
    assert at(80, 20) in ("#7f7f7f", "#808080") and at(108, 50) == "#123456"
    assert drawing.to_pdf().startswith(b"%PDF")


def test_names_and_round_values_fit() -> None:
    cut = shortened("x" * 200, 12, 90)
    assert cut.count("…") == 1 and text_width(cut, 12) <= 90
    assert short_names(["E1", "E2"], 30) == (["E1", "E2"], [])
    assert short_names(["E1", "E2"], 3) == (["1", "2"], [])
    assert short_names(["frozen", "a very long name"], 30) == (["1", "2"], ["1 frozen", "2 a very long name"])
    assert len(wrapped([f"{i} expert" for i in range(9)], 11, 150)) > 2
    assert round_values(0, 1) == pytest.approx([0, 0.25, 0.5, 0.75, 1]) and round_values(0, 128) == [
        0,
        50,
        100,
    ]
    for low, high in ((0, 1e-7), (3.2, 3.9), (-5, 1e6), (0.3, 1)):
        values = round_values(low, high)
        assert 1 <= len(values) <= 5 and all(low - 1e-9 <= value <= high + 1e-9 for value in values)
    assert len(set(expert_colours(40))) == 40 and slug("Zero / Experts") == "zero___experts"


def test_outline_runs_around_marked_patches() -> None:
    defect = np.zeros((4, 4), bool)
    assert outline(None) == outline(defect) == []
    defect[1, 1:3] = True
    found = outline(defect)
    assert len(found) == 6 and ((0.25, 0.25), (0.5, 0.25)) in found and ((0.5, 0.25), (0.5, 0.5)) not in found


@pytest.fixture(scope="module")
def found(router, discs, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / name, beta=beta) for name, beta in (("with", 0.005), ("without", 0))]
    return explain(router, [discs], run=runs[0], compare=runs[1], images=2)


def test_every_number_has_its_figure(found) -> None:
    figures = {figure.name: figure for figure in all_figures(found)}
    names = ["activation", "weights", "regions-patches", "patches-patches", "experts", "curves"]
    assert list(figures) == names
    for figure in figures.values():
        drawing = figure.drawing
        ElementTree.fromstring(drawing.to_svg())
        drawing.to_png(scale=1)
        frame = drawing.figure.bbox
        for axes in drawing.figure.axes:
            labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title] if axes.axison else []
            for text in [*axes.texts, *labels]:  # nothing lies outside the drawing
                box = text.get_window_extent()
                inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= frame.x1 + 1 and box.y1 <= frame.y1 + 1
                assert inside or not text.get_text() or not text.get_visible(), (figure.name, text.get_text())
    titles = re.findall("<title>([^<]*)</title>", figures["activation"].drawing.to_svg())
    assert len(titles) == 2 * (3 * 4 + 3 * 4 + 2 * 5)
    share = found.usage[0].share("chosen")
    assert f"parts, normal, layer 2, E1: {100 * share[0, 0]:.1f} %" in titles
    curves = [line for axes in figures["curves"].drawing.figure.axes for line in axes.lines]
    # The key, and the four terms of the second run.
    assert sum(line.get_linestyle() == "--" for line in curves) == 1 + 4


@pytest.mark.parametrize("layer", [0, 1])
def test_patches_are_painted_with_the_colours_of_their_experts(found, layer: int) -> None:
    figures = {figure.name: figure for figure in all_figures(found)}
    images = figures["patches-patches"].drawing.sheet.images
    assert len(images) == 2 * (1 + 2)  # two pictures, each with the maps of two layers
    picture = found.collected.pictures[0]
    pixels = np.asarray(images[1 + layer].get_array()).astype(int)
    colours = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in expert_colours(5)]
    hues = np.array(colours) - np.mean(colours, axis=1, keepdims=True)
    rows, columns = picture.strongest["patches"][layer].shape
    hits = 0
    for row, column in np.ndindex(rows, columns):
        y, x = (
            (2 * row + 1) * pixels.shape[0] // (2 * rows),
            (2 * column + 1) * pixels.shape[1] // (2 * columns),
        )
        tint = (pixels[y, x] - pixels[y, x].mean()) / 0.62  # of the colour over grey
        hits += (
            int(np.linalg.norm(hues - tint, axis=1).argmin())
            == picture.strongest["patches"][layer][row, column]
        )
    assert hits >= 0.9 * rows * columns


def test_folder_holds_page_numbers_and_figures(found, tmp_path: Path) -> None:
    (tmp_path / "explain.json").write_text(json.dumps({"figures": ["old", "../out", 3]}))
    (tmp_path / "old.png").write_bytes(b"")
    (tmp_path / "mine.png").write_bytes(b"")
    written = write_explanation(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*written, "mine.png"} and "explain.html" in written
    document = json.loads((tmp_path / "explain.json").read_text())
    assert document["pools"]["patches"]["unit"] == "patch" and len(document["activation"]) == 6
    entry, first = document["activation"][0], found.usage[0]
    assert entry["chosen"] == first.chosen.tolist() and entry["count"] == 3
    np.testing.assert_allclose(entry["mean_weight"], first.share("weight"), rtol=1e-5)
    assert [curve["run"] for curve in document["curves"]] == ["with", "without"]
    assert np.shape(document["patches"][0]["strongest"]["patches"]) == (2, 8, 8)
    page = (tmp_path / "explain.html").read_text()
    assert page.count('<svg class="drawing"') == 6 and "default-src 'none'" in page
    for source in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert source.startswith(("#", "data:image/jpeg;base64,"))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]*)"', page)) <= set(ids)


def test_without_a_library_everything_else_is_written(router, tmp_path: Path, monkeypatch) -> None:
    import zsad.studies.explain.explanation_page as page

    explanation = explain(router, kinds=("embeddings",))
    monkeypatch.setattr(page, "find_spec", lambda name: None if name == "jinja2" else find_spec(name))
    written = write_explanation(explanation, tmp_path)
    assert "explain.html" not in written and {"experts.svg", "experts.pdf", "experts.png"} < set(written)
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    assert write_explanation(explanation, tmp_path) == ["explain.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["explain.json"]
    assert json.loads((tmp_path / "explain.json").read_text())["embeddings"]["maps"]
