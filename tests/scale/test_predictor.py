"""The predictor for data engines: the same results whatever carries the images, and whatever else is in the batch."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zsad
from zsad.errors import CheckpointError, DataError
from zsad.runs.rows import COLUMNS, prediction_of
from zsad.runs.store import as_stored
from zsad.scale.predictor import BatchPredictor, read_address


@pytest.fixture(scope="module")
def predictor(toy):
    return BatchPredictor(str(toy.model), device="cpu")


@pytest.fixture(scope="module")
def paths(toy) -> list[str]:
    return sorted(str(path) for path in toy.images.iterdir())


@pytest.fixture(scope="module")
def expected(toy, paths):
    """What one detector says of one image after the other."""
    detector = zsad.load(toy.model, device="cpu")
    return {path: detector.predict(path) for path in paths}


def same(rows: dict, path_of, expected) -> None:
    """Every row is the detector's own answer, to the last byte."""
    assert set(rows) >= set(COLUMNS)
    for index, name in enumerate(rows["path"]):
        own = expected[path_of(name)]
        assert rows["score"][index] == float(f"{own.score:.9g}") and rows["error"][index] is None
        assert bytes(rows["grid"][index]) == as_stored(own.grid).tobytes()
        assert (rows["height"][index], rows["width"][index]) == own.size


def test_paths_bytes_pictures_and_arrays_are_scored_alike(predictor, paths, expected) -> None:
    pictures = [Image.open(path) for path in paths]
    kinds = {
        "path": {"path": paths},
        "bytes": {"bytes": [Path(path).read_bytes() for path in paths], "path": paths},
        "content": {"content": [memoryview(Path(path).read_bytes()) for path in paths], "path": paths},
        "pictures": {"image": pictures},
        "arrays": {"image": [np.asarray(picture) for picture in pictures], "path": np.array(paths)},
        "undecoded": {"image": [{"bytes": Path(path).read_bytes(), "path": path} for path in paths]},
    }
    for columns in kinds.values():
        same(predictor(columns), str, expected)


def test_neighbours_do_not_change_a_score(toy, paths, expected) -> None:
    order = paths * 3
    random.Random(0).shuffle(order)
    for count in (1, 3):
        predictor = BatchPredictor(str(toy.model), device="cpu", images_a_pass=count)
        alone = {path: predictor({"path": [path]})["grid"][0] for path in paths}
        together = predictor({"path": order})
        assert [bytes(grid) for grid in together["grid"]] == [alone[path] for path in order]
        if count == 1:
            same(together, str, expected)


def test_bad_images_are_rows_with_their_error(predictor, paths, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(paths[1]).read_bytes()[:200])
    found = predictor({"path": [paths[0], str(broken), str(tmp_path / "missing.png"), None, paths[1]]})
    errors = found["error"]
    assert [error is None for error in errors] == [True, False, False, False, True]
    assert "broken.png" in errors[1] and "does not exist" in errors[2] and "holds nothing" in errors[3]
    assert [found[name][1] for name in COLUMNS if name not in ("path", "error")] == [None] * 8
    assert predictor({"bytes": [b"", b"text"], "path": ["a", "b"]})["error"][0].startswith("a is empty")
    assert predictor({"path": []})["score"] == []


def test_pickled_it_is_small_and_the_same(toy, predictor, paths, expected) -> None:
    predictor({"path": paths[:1]})  # loaded, which must not travel
    content = pickle.dumps(predictor)
    assert len(content) < 2000
    again = pickle.loads(content)
    same(again({"path": paths}), str, expected)
    assert again.detector is predictor.detector, "a process holds a model once"


def test_an_iterator_of_batches_is_one_of_results(predictor, paths) -> None:
    """As Spark's mapInPandas calls it: lazily, batch by batch."""
    asked: list[int] = []

    def batches():
        for index, path in enumerate(paths[:3]):
            asked.append(index)
            yield {"path": [path], "id": [index]}

    results = predictor(batches())
    assert not asked
    first = next(results)
    assert asked == [0] and first["path"] == paths[:1]
    assert len(list(results)) == 2


def test_columns_are_handed_on_chosen_and_missed(toy, paths) -> None:
    predictor = BatchPredictor(str(toy.model), device="cpu", column="file", keep=["line"])
    found = predictor({"file": paths[:2], "line": [7, 8]})
    assert found["line"] == [7, 8] and list(found) == [*COLUMNS, "line"]
    with pytest.raises(DataError, match="name the column"):
        predictor({"path": paths})
    with pytest.raises(DataError, match="pandas data frame"):
        predictor(paths)
    with pytest.raises(DataError, match="known are model, backbone"):
        BatchPredictor(str(toy.model), devise="cpu")
    with pytest.raises(CheckpointError):
        BatchPredictor("no-such-model")({"path": paths})


def test_rows_become_predictions_again(predictor, paths, expected) -> None:
    found = predictor({"path": paths[:1]})
    again = prediction_of({name: found[name][0] for name in COLUMNS})
    own = expected[paths[0]]
    assert again.score == pytest.approx(own.score, rel=1e-8) and again.size == own.size
    np.testing.assert_allclose(again.map, own.map, atol=2e-3)
    with pytest.raises(DataError, match="has no result"):
        prediction_of({"path": "a", "error": "broken"})
    with pytest.raises(DataError, match="expected the columns"):
        prediction_of({"path": "a", "error": None})


def test_calibrated_rows_have_verdicts(toy, paths, tmp_path: Path) -> None:
    detector = zsad.load(toy.model, device="cpu")
    detector.calibrate(toy.images, target_fpr=0.5, confidence=0)
    detector.save(tmp_path / "run")
    found = BatchPredictor(str(tmp_path / "run"), device="cpu")({"path": paths})
    own = [detector.predict(path) for path in paths]
    assert found["verdict"] == [one.verdict for one in own] and "anomalous" in found["verdict"]
    np.testing.assert_allclose(found["p_value"], [one.p_value for one in own], rtol=1e-6)


def test_arrow_and_pandas_come_back_as_they_came(predictor, paths, expected) -> None:
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pandas")
    table = arrow.table(
        {"bytes": [Path(path).read_bytes() for path in paths] + [b"no"], "path": [*paths, "x"]}
    )
    found = predictor(table)
    assert isinstance(found, arrow.Table) and found.column("error").null_count == len(paths)
    same(found.slice(0, len(paths)).to_pydict(), str, expected)
    batch = predictor(table.to_batches()[0])
    assert isinstance(batch, arrow.RecordBatch) and batch.schema == found.schema
    frame = predictor(table.to_pandas())
    assert arrow.Table.from_pandas(frame, schema=found.schema, preserve_index=False).equals(found)


def test_hugging_face_datasets_map(predictor, paths, expected) -> None:
    datasets = pytest.importorskip("datasets")
    from zsad.runs.rows import arrow_schema

    features = datasets.Features.from_arrow_schema(arrow_schema())
    given = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    found = given.map(
        predictor,
        batched=True,
        batch_size=2,
        remove_columns=["image"],
        features=features,
        load_from_cache_file=False,
    )
    same(found.to_dict(), str, expected)


def test_an_address_is_read_by_pyarrow(predictor, paths, expected) -> None:
    pytest.importorskip("pyarrow")
    address = Path(paths[0]).as_uri()
    assert read_address(address) == Path(paths[0]).read_bytes()
    found = predictor({"path": [address, address + ".missing"]})
    same({name: found[name][:1] for name in COLUMNS}, lambda _: paths[0], expected)
    assert "check the address" in found["error"][1]


def test_content_of_an_image_is_enough(predictor) -> None:
    stream = io.BytesIO()
    Image.new("L", (40, 30), 90).save(stream, "PNG")
    found = predictor({"bytes": [stream.getvalue()]})
    assert found["path"] == [None] and found["error"] == [None] and found["height"] == [30]
