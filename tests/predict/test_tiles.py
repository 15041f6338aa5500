"""Tiles: layout, weights, stitching against a slow loop, a small defect in a large picture, rectangles."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zsad.backends.backend import Backend, BackendOutput
from zsad.detector import Detector
from zsad.errors import ConfigError, ImageError
from zsad.images.decode import load_image
from zsad.images.open import open_picture
from zsad.images.picture import Preprocess
from zsad.images.pixels import Reading
from zsad.loading import load
from zsad.nn.maps import MapSpec, interpolation_matrix, render_map_numpy
from zsad.predict.pipeline import read, score
from zsad.predict.prediction import Prediction
from zsad.predict.tiles import Tiling, lay_out, map_rule
from zsad.predict.view import InputOptions, Model, View
from zsad.types import Sample

SIDE, PATCH = 32, 4
PREPROCESS = Preprocess((SIDE, SIDE), mean=(0, 0, 0), std=(1, 1, 1))


class Darkness(Backend):
    """A model whose logits are how much darker than grey a patch is; its score is the map's maximum."""

    name = "darkness"
    spec = MapSpec(size=(SIDE, SIDE), sigma=1.0)  # type: ignore[assignment]
    batch_size = 3  # type: ignore[assignment]
    patch = PATCH  # type: ignore[assignment]

    def __init__(self) -> None:
        self.passes: list[int] = []

    def run(self, pixels: np.ndarray, words: tuple[str, ...] | None = None) -> BackendOutput:
        self.passes.append(len(pixels))
        b, _, height, width = pixels.shape
        cells = (
            pixels.mean(axis=1).reshape(b, height // PATCH, PATCH, width // PATCH, PATCH).mean(axis=(2, 4))
        )
        logits = np.stack([4 - 12 * cells, 2 - 12 * cells], axis=1).astype(np.float32)
        spec = self.spec_of((height, width))
        score = np.array([render_map_numpy(one, spec, smooth=False).max() for one in logits])
        return BackendOutput(logits, score.astype(np.float32))

    def identity(self, card: Any) -> str:
        return "darkness"

    def environment(self) -> dict[str, str]:
        return {}


def plate(size: tuple[int, int], *, pit: tuple[int, int, int] | None = None) -> np.ndarray:
    """A light plate with some structure; a pit is (y, x, side)."""
    rng = np.random.default_rng(0)
    values = rng.normal(200, 4, (*size, 3)) + np.linspace(-20, 20, size[1])[:, None]
    if pit is not None:
        y, x, side = pit
        values[y : y + side, x : x + side] = 30
    return np.clip(values, 0, 255).astype(np.uint8)


def predict(source: object, tile: object, **looking: Any) -> Any:
    config = {"score": "map"}
    given = InputOptions(tiling=Tiling.of(tile), **looking)  # type: ignore[arg-type]
    return predict_with(Darkness(), source, given, config=config)


def predict_with(
    backend: Backend,
    source: object,
    options: InputOptions,
    *,
    config: dict[str, Any] | None = None,
    batch_size: int | None = None,
) -> Prediction:
    """The prediction of one picture by a backend that has no card of its own."""
    card: Any = SimpleNamespace(config=config or {}, preprocess=PREPROCESS.to_dict())
    model = Model(backend, card)
    ready = read(source, model, View(options))  # type: ignore[arg-type]
    [found] = score(model, [ready], batch_size=batch_size)
    assert isinstance(found, Prediction)
    return found


@settings(max_examples=60)
@given(
    st.tuples(st.integers(8, 4000), st.integers(8, 4000)),
    st.integers(16, 500),
    st.floats(0, 0.75),
    st.integers(2, 20),
)
def test_tiles_cover_the_picture_and_weights_sum_to_one(
    size: tuple[int, int], side: int, overlap: float, patches: int
) -> None:
    found = lay_out(size, tile=(patches, patches), side=min(side, *size), overlap=overlap, max_cells=300)
    assert max(found.cells) <= max(300, patches)
    for axis in (0, 1):
        weights = found.weights(axis)
        np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-5)
        assert weights.min() >= 0
        assert found.starts[axis][0] == 0 and found.starts[axis][-1] + patches == found.cells[axis]
        steps = np.diff(found.starts[axis])
        assert len(steps) == 0 or steps.max() <= max(1, np.ceil(patches * (1 - overlap)))
    boxes = [found.box(row, column) for row, column in found.positions()]
    assert min(box[0] for box in boxes) == 0 and max(box[3] for box in boxes) == pytest.approx(size[1])


def test_stitching_equals_the_slow_loop() -> None:
    array = plate((90, 140), pit=(40, 100, 9))
    found = predict(array, Tiling(SIDE, overlap=0.3, whole=0.2))
    grid = (SIDE // PATCH,) * 2
    layout = lay_out(array.shape[:2], tile=grid, side=SIDE, overlap=0.3)
    total = np.zeros((2, *layout.cells))
    weight = np.zeros(layout.cells)
    down, across = layout.weights(0), layout.weights(1)
    backend = Darkness()
    for row, column in layout.positions():
        top, left, bottom, right = layout.box(row, column)
        crop = Image.fromarray(array).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
        )
        logits = backend.run(PREPROCESS(crop)[None]).logits[0]
        for y in range(grid[0]):
            for x in range(grid[1]):
                cell = (layout.starts[0][row] + y, layout.starts[1][column] + x)
                share = down[row, cell[0]] * across[column, cell[1]]
                total[:, cell[0], cell[1]] += share * logits[:, y, x]
                weight[cell] += share
    np.testing.assert_allclose(weight, 1, atol=1e-6)
    own = backend.run(PREPROCESS(Image.fromarray(array))[None]).logits[0]
    up = [interpolation_matrix(grid[axis], layout.cells[axis], align_corners=False) for axis in (0, 1)]
    expected = 0.8 * total + 0.2 * (up[0] @ own @ up[1].T)
    np.testing.assert_allclose(found.grid, expected, atol=0.08)  # the border of a crop is resampled otherwise
    assert found.score == pytest.approx(
        render_map_numpy(found.grid, found.spec, smooth=False).max(), abs=1e-6
    )


def test_an_even_picture_has_no_seams() -> None:
    found = predict(np.full((200, 300, 3), 128, np.uint8), SIDE)
    assert np.ptp(found.grid, axis=(1, 2)).max() < 1e-4
    assert np.ptp(found.map) < 1e-5


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_small_pit_is_found_where_it_is(tmp_path: Path, suffix: str) -> None:
    size, pit = (900, 1300), (610, 1010, 12)
    scores, peaks = [], []
    for name, where in (("good", None), ("pit", pit)):
        path = tmp_path / f"{name}.{suffix}"
        Image.fromarray(plate(size, pit=where)).save(path)
        found = predict(path, "auto")
        values = found.canonical_map()
        peaks.append(np.array(np.unravel_index(values.argmax(), values.shape)) + 0.5)
        peaks[-1] *= np.array(size) / values.shape
        scores.append(found.score)
    assert scores[1] > scores[0] + 0.05
    assert (peaks[1] >= np.array(pit[:2])).all() and (peaks[1] <= np.array(pit[:2]) + pit[2]).all()
    regions = found.find_regions((scores[0] + scores[1]) / 2 * 0.9)
    x, y, width, height = regions[0].box
    assert x - 12 <= pit[1] and y - 12 <= pit[0]
    assert x + width + 12 >= pit[1] + pit[2] and y + height + 12 >= pit[0] + pit[2]
    assert (
        found.picture is None and found.overlay().size == size[::-1]
    )  # read again, as nobody asked to keep it


def test_small_pictures_are_not_cut() -> None:
    array = plate((60, 60))
    alone = Darkness()
    predict_with(alone, array, InputOptions(tiling=Tiling()))
    assert alone.passes == [1]
    whole = predict(array, "auto")
    plain = Darkness().run(PREPROCESS(Image.fromarray(array))[None])
    np.testing.assert_array_equal(whole.grid, plain.logits[0])
    assert predict(plate((80, 60)), "auto").grid.shape == (2, 20, 15)


def test_tiles_go_in_batches() -> None:
    backend = Darkness()
    predict_with(backend, plate((70, 70)), InputOptions(tiling=Tiling(SIDE)), batch_size=4)
    assert backend.passes[0] == 1 and set(backend.passes[1:-1]) == {4}


def test_memory_is_bounded_by_the_picture_as_bytes(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    path = tmp_path / "large.png"
    Image.new("RGB", (9000, 4000), (200, 200, 200)).save(path, compress_level=1)
    process = psutil.Process()
    before, highest = process.memory_info().rss, 0

    class Watched(Darkness):
        def run(self, pixels: np.ndarray, words: tuple[str, ...] | None = None) -> BackendOutput:
            nonlocal highest
            highest = max(highest, process.memory_info().rss)
            return super().run(pixels, words)

    predict_with(Watched(), path, InputOptions(tiling=Tiling(500)))
    assert highest - before < 1.6 * 4 * 9000 * 4000  # four bytes a pixel, once


def test_what_is_too_large_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("L", (300, 200)).save(path)
    with pytest.raises(ImageError, match="60,000 pixels, at most 50,000"):
        predict(path, Tiling(64, max_pixels=50_000))


@pytest.mark.parametrize(
    ("tile", "overlap"), [("wide", 0.2), (8, 0.2), ("-5", 0.2), ("auto", 0.9), ("auto", float("nan"))]
)
def test_impossible_tiles_are_refused(tile: str, overlap: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Tiling.of(tile, overlap=overlap)
    assert "\n" not in str(caught.value)


def test_rules_of_scores() -> None:
    assert map_rule({"score": "map"}) == (1.0, False)
    assert map_rule({"score": "map_and_global", "score_map": "smoothed"}) == (0.5, True)
    assert map_rule({"score": "map_and_cosine", "smooth": "grid"}) == (0.5, True)
    assert map_rule({"score": "global"}) is None
    assert map_rule({"score": "map", "oddness": "fused"}) is None


# large pictures


@pytest.mark.parametrize("turn", range(1, 9))
def test_parts_are_upright(tmp_path: Path, turn: int) -> None:
    values = np.random.default_rng(turn).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    exif = image.getexif()
    exif[0x0112] = turn
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    expected = np.asarray(load_image(path))
    with open_picture(path) as picture:
        assert picture.size == expected.shape[:2]
        part = picture.part((5, 7, 25, 31), (20, 24), resample=Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.asarray(part), expected[5:25, 7:31])
        np.testing.assert_array_equal(np.asarray(picture.preview(1000)), expected)


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "P", "CMYK", "I;16", "1", "LA"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_parts_equal_the_whole(tmp_path: Path, kind: str, compression: str | None) -> None:
    values = np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    if kind == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 11)
    else:
        image = Image.fromarray(values).convert(kind)
    path = tmp_path / ("x.tif" if kind != "P" else "x.png")
    image.save(path, **({} if compression is None or kind == "P" else {"compression": compression}))
    for levels in ("depth", (2.0, 98.0)):
        reading = Reading(levels=levels, matte="black")  # type: ignore[arg-type]
        expected = np.asarray(load_image(path, reading=reading))
        with open_picture(path, reading) as picture:
            part = picture.part((5, 7, 25, 31), (20, 24), resample=Image.Resampling.BICUBIC)
        np.testing.assert_allclose(np.asarray(part), expected[5:25, 7:31], atol=1)


def test_a_cut_off_tiff_is_an_image_error(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(plate((300, 300))).save(path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ImageError) as caught:
        predict(path, 64)
    assert "\n" not in str(caught.value)


# rectangles


@settings(max_examples=80)
@given(st.integers(8, 30_000), st.integers(8, 30_000))
def test_rectangles_keep_area_and_proportion(height: int, width: int) -> None:
    rows, columns = Preprocess((320, 320)).fitted((height, width), 16).image_size
    assert rows % 16 == columns % 16 == 0 and min(rows, columns) >= 80
    assert rows * columns <= 1.3 * 320 * 320
    if 0.3 < height / width < 3.3:
        assert abs(rows / columns / (height / width) - 1) < 0.12


@pytest.fixture(scope="module")
def detector(toy: Any) -> Detector:
    return load(toy.model, device="cpu")


def test_a_detector_takes_tiles_and_rectangles(detector: Detector, toy: Any, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.fromarray(plate((100, 250), pit=(40, 200, 16))).save(wide)
    plain, own = detector.predict(wide), detector.identity()
    cut = detector.predict(wide, tile=64)
    assert cut.grid.shape == (3, 12, 31) and cut.map.shape == (100, 250) and cut.spec.size != plain.spec.size
    assert plain.grid.shape == (3, 8, 8)
    try:
        detector = detector.with_(options=InputOptions(keep_aspect=True))
        assert detector.identity() != own
        kept = detector.predict(wide)
        assert kept.grid.shape == (3, 5, 13) and kept.spec.size == (40, 104) and kept.map.shape == (100, 250)
        square = detector.predict(plate((90, 90)))
        many = list(detector.predict_folder(toy.images, batch_size=4))
        assert {found.grid.shape[1:] for found in many} > {(7, 9)}
        for found in many:
            alone = detector.predict(found.source)
            assert found.score == pytest.approx(alone.score, abs=1e-5)
        detector = detector.with_(options=InputOptions())
        assert detector.predict(plate((90, 90))).score == square.score
        detector = detector.with_(options=InputOptions(tiling=Tiling(64)))
        [again] = list(detector.predict_folder(wide))
        assert again.score == cut.score
    finally:
        detector = detector.with_(options=InputOptions())


def test_tiles_are_counted_while_a_large_picture_is_looked_at(detector: Detector, toy: Any) -> None:
    large = detector.with_(options=InputOptions(tiling=Tiling(48)))
    seen: list[tuple[int, int]] = []

    def count(done: int, total: int) -> None:
        seen.append((done, total))

    large.predict(plate((120, 160)), on_tile=count)
    first = seen.copy()
    assert [done for done, _ in first] == sorted({done for done, _ in first})
    assert first[-1][0] == first[-1][1] > 1
    list(large.predict_samples([Sample(toy.images / "part00.jpg")], batch_size=1, on_tile=count))
    assert len(seen) > len(first)
    assert [done for done, _ in seen[len(first) :]] == list(range(1, seen[-1][1] + 1))


def test_a_large_picture_is_kept_only_where_it_will_be_drawn(detector: Detector, toy: Any) -> None:
    large, path = detector.with_(options=InputOptions(tiling=Tiling(48))), toy.images / "part00.jpg"
    [plain], [drawn] = (list(large.predict_samples([Sample(path)], draw_side=side)) for side in (None, 64))
    assert plain.picture is None and drawn.picture is not None and plain.score == drawn.score
    assert large.predict(path).picture is not None and large.predict(plate((120, 160))).picture is not None


def test_a_calibration_holds_for_the_tiles_it_was_made_with(detector: Detector, toy: Any) -> None:
    from zsad.errors import CalibrationError

    fresh = detector.with_(options=InputOptions(tiling=Tiling(64)))
    made = fresh.calibrate(toy.images, target_fpr=0.5, confidence=0)
    with pytest.raises(CalibrationError):
        detector.with_().use(made)
