"""What `zsad export` writes, and what becomes of files that were changed: one clear line, never a wrong score."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

import zsad
from zsad.backends.graph_card import ExportCard, card_path, find_graph, read_export
from zsad.cli.main import main
from zsad.errors import CheckpointError, ConfigError
from zsad.export import graph_cache, writer
from zsad.loading import LoadRequest, load_checkpoint_or_method
from zsad.predict.view import calibration_beside
from zsad.train.checkpoint import MODEL_FILE

pytestmark = pytest.mark.skipif(
    find_spec("onnxruntime") is None or find_spec("onnx") is None,
    reason="needs the extra: pip install 'zsad[onnx]'",
)
HEAVY = ("torch", "transformers", "tokenizers", "onnx", "openvino")


@pytest.fixture(scope="module")
def exported(toy, tmp_path_factory):
    """The folder of an exported toy model; not to be changed."""
    out = tmp_path_factory.mktemp("exported") / "toy"
    images = ["--images", str(toy.images), "--count", "4", "--threads", "1"]
    assert main(["export", str(toy.model), "--to", "onnx", "--out", str(out), *images]) == 0
    return out


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def test_an_export_is_one_file_and_a_card_that_tells_all(exported, toy):
    assert sorted(path.name for path in exported.iterdir()) == ["model.onnx", "model.onnx.json"]
    card = read_export(exported / "model.onnx")
    original = zsad.load(toy.model, device="cpu")
    assert card.model == original.card and card.identity == original.identity()
    assert card.target == "onnx" and card.precision == "fp32" and card.zsad == zsad.__version__
    assert card.image == (64, 64) and card.grid == (3, 8, 8) and card.routing == ("normal", "abnormal")
    assert card.proof.images == 4 and str(toy.images) in card.proof.source
    assert card.proof.score_error <= card.proof.score_limit == 1e-3
    assert card.proof.map_error <= card.proof.map_limit == 1e-2
    assert card.outputs == ("logits", "score", "routing.normal", "routing.abnormal")


def test_a_detector_of_a_graph_is_a_detector(exported, toy):
    native, graph = zsad.load(toy.model, device="cpu"), zsad.load(exported, threads=1)
    assert graph.backend.name == "onnx" and graph.identity() == native.identity()
    for right, found in zip(
        native.predict_folder(toy.images), graph.predict_folder(toy.images, batch_size=2), strict=True
    ):
        assert (found.source, found.size, found.verdict) == (right.source, right.size, right.verdict)
        assert found.spec == right.spec and abs(found.score - right.score) < 1e-4
        np.testing.assert_allclose(found.map, right.map, atol=1e-4)
        assert set(found.routing) == set(right.routing) and found.terms == right.terms
    picture = np.zeros((70, 90), np.uint8)
    assert abs(graph.predict(picture).score - native.predict(picture).score) < 1e-4
    for part in ("method",):
        with pytest.raises(ConfigError, match="is an exported graph"):
            getattr(graph, part)
    with pytest.raises(ConfigError, match="is an exported graph"):
        graph.save(exported / "again")


def test_a_graph_runs_where_no_pytorch_is_imported(exported, toy, tmp_path):
    code = f"""
import sys
from zsad.cli.main import main
code = main(["predict", {str(toy.images)!r}, "--model", {str(exported)!r}, "--out", {str(tmp_path / "out")!r},
             "--backend", "onnx", "--threads", "1"])
import zsad
detector = zsad.load({str(exported)!r}, backend="onnx", threads=1)
assert detector.predict({str(toy.images / "part01.png")!r}).overlay().size
print(code, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["settings"]["backend"] == "onnx" and "onnxruntime" in run["environment"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_calibration_of_the_model_holds_for_its_graph(toy, tmp_path):
    model = shutil.copytree(toy.model, tmp_path / "model")
    detector = zsad.load(model, device="cpu")
    detector.calibrate(toy.images)
    detector.save(model)
    loaded = load_checkpoint_or_method(LoadRequest(model, device="cpu"))
    graph, card = writer.export_model(
        loaded.backend,
        loaded.card,
        tmp_path / "out",
        name="toy",
        target="onnx",
        count=1,
        calibration=calibration_beside(loaded.file),
    )
    assert card.calibration is not None and (tmp_path / "out" / card.calibration["file"]).is_file()
    found = zsad.load(graph, threads=1)
    assert found.calibration == detector.calibration
    assert found.predict(toy.images / "part01.png").verdict in ("normal", "anomalous")


def spoil(folder, how):
    graph, card = folder / "model.onnx", folder / "model.onnx.json"
    values = json.loads(card.read_text())
    if how == "cut":
        graph.write_bytes(graph.read_bytes()[:-100])
    elif how == "flipped":
        content = bytearray(graph.read_bytes())
        content[len(content) // 2] ^= 1
        graph.write_bytes(content)
    elif how == "no card":
        card.unlink()
    elif how == "no json":
        card.write_text("{")
    elif how == "newer":
        card.write_text(json.dumps({**values, "format": 99}))
    elif how == "unknown key":
        card.write_text(json.dumps({**values, "colour": 1}))
    elif how == "wrong kind":
        card.write_text(json.dumps({**values, "grid": "wide"}))
    elif how == "other file":
        card.write_text(json.dumps({**values, "files": {"other.onnx": "0"}}))
    elif how == "outside":
        card.write_text(json.dumps({**values, "files": {**values["files"], "../../secret": "0"}}))
    elif how == "list":
        card.write_text("[]")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "is not the file that its card describes"),
        ("flipped", "is not the file that its card describes"),
        ("no card", "has no card model.onnx.json beside it"),
        ("no json", "cannot be read"),
        ("newer", "has format 99.*upgrade with"),
        ("unknown key", "cannot be used: colour"),
        ("wrong kind", "cannot be used: grid"),
        ("other file", "is of other.onnx, not of model.onnx"),
        ("outside", "secret is missing"),
        ("list", "cannot be used"),
    ],
)
def test_changed_files_are_refused_in_one_line(copied, how, words):
    spoil(copied, how)
    with pytest.raises(CheckpointError, match=words) as caught:
        zsad.load(copied)
    assert "\n" not in str(caught.value)


def test_a_graph_that_the_runtime_does_not_take_is_refused_in_one_line(copied):
    graph = copied / "model.onnx"
    graph.write_bytes(b"no graph")
    card = json.loads(card_path(graph).read_text())
    card["files"]["model.onnx"] = writer.file_sha256(graph)
    card_path(graph).write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="ONNX Runtime does not take") as caught:
        zsad.load(copied)
    assert "\n" not in str(caught.value)


def test_a_runtime_that_gives_up_on_a_graph_is_one_line(exported, toy, monkeypatch):
    detector = zsad.load(exported, backend="onnx")

    class Session:
        def run(self, *_):
            raise RuntimeError("Non-zero status code\n  while running MatMul")

    monkeypatch.setattr(detector.backend, "_session", Session())
    with pytest.raises(CheckpointError, match=r"ONNX Runtime does not take .*code while running MatMul"):
        detector.predict(np.zeros((70, 90), np.uint8))


def test_what_a_path_means(exported, toy, tmp_path):
    graph = exported / "model.onnx"
    assert find_graph(exported) == find_graph(graph) == find_graph(card_path(graph)) == graph
    assert find_graph(exported, target="openvino") == graph  # OpenVINO reads it, too
    assert find_graph(toy.model) is None and find_graph("promptmoe-tiny") is None
    both = shutil.copytree(exported, tmp_path / "both")
    shutil.copy(toy.model / MODEL_FILE, both)
    assert zsad.load(both, device="cpu").backend.name == "torch"
    assert zsad.load(both, backend="onnx", threads=1).backend.name == "onnx"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backend": "torch"}, "which PyTorch does not run"),
        ({"backbone": "zsad-tiny"}, "holds its backbone"),
        ({"device": "cuda"}, "run on the processor, not on 'cuda'"),
        ({"precision": "bf16"}, "runs a graph as it was written"),
        ({"backend": "tensorrt"}, "known are auto, torch, onnx, openvino"),
    ],
)
def test_what_a_graph_cannot_do_is_said(exported, arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        zsad.load(exported, **arguments)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_no_graph(toy):
    with pytest.raises(ConfigError, match=r"runs exported graphs.*zsad export .* --to onnx"):
        zsad.load(toy.model, backend="onnx")


def test_a_missing_runtime_names_its_extra(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'zsad\[onnx\]'"):
        zsad.load(exported)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"pip install 'zsad\[openvino\]'"):
        zsad.load(exported, backend="openvino")


def test_nothing_is_written_where_the_graph_is_another_model(toy, tmp_path, monkeypatch, capsys):
    real = writer.compare

    def wrong(*arguments, **settings):
        return real(*arguments, **settings).model_copy(update={"score_error": 0.2})

    monkeypatch.setattr(writer, "compare", wrong)
    out = tmp_path / "out"
    assert main(["export", str(toy.model), "--out", str(out), "--count", "1", "--threads", "1"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "scores differ by up to 0.2 (allowed 0.001)" in message and "nothing was written" in message
    assert list(out.iterdir()) == []


def test_what_is_fastest_here_is_made_once_and_kept(toy, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="needs the extra: pip install 'zsad[openvino]'")
    monkeypatch.setattr(graph_cache, "cache_folder", lambda: tmp_path / "graphs")
    first = zsad.load(toy.model, backend="auto", device="cpu", threads=1)
    assert first.backend.name == "openvino" and first.backend.precision in ("fp32", "bf16")
    native = zsad.load(toy.model, device="cpu")
    assert first.identity() == native.identity() and native.backend.name == "torch"
    picture = toy.images / "part01.png"
    assert abs(first.predict(picture).score - native.predict(picture).score) < 2e-2
    made = [path.stat().st_mtime_ns for path in sorted((tmp_path / "graphs").rglob("model.*"))]
    zsad.load(toy.model, backend="auto", device="cpu", threads=1)
    assert len(made) == 3
    assert made == [path.stat().st_mtime_ns for path in sorted((tmp_path / "graphs").rglob("model.*"))]


def test_a_card_is_as_its_schema_says(exported):
    text = (exported / "model.onnx.json").read_text()
    assert ExportCard.model_validate_json(text).model_dump(mode="json", by_alias=True) == json.loads(text)
