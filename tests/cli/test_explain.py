"""`zsad explain` in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zsad.cli.main import main


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def labelled(make_images, tmp_path: Path) -> Path:
    """Images in folders good and bad, without masks."""
    make_images(tmp_path / "set" / "good", 2)
    make_images(tmp_path / "set" / "bad", 2)
    return tmp_path / "set"


def test_explains_a_model_on_several_folders(call, toy, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["explain", toy.model, "--data", labelled, toy.images, "--out", out, "--device", "cpu"]
    code, printed, said = call(*words)
    assert code == 0, said
    assert "wrote activation.svg" in printed and "explain.html into" in printed
    assert "note: promptmoe routes whole images" in printed and "there is no log.jsonl" in printed
    document = json.loads((out / "explain.json").read_text())
    assert document["datasets"]["set"] == {"normal": 2, "anomalous": 2, "unlabelled": 0}
    assert document["datasets"]["images"]["unlabelled"] == 5
    assert document["figures"] == ["activation", "weights", "experts"]
    for entry in document["activation"]:
        assert [sum(layer) for layer in entry["chosen"]] == [2 * entry["count"]] * 3  # top_k = 2


def test_broken_files_are_named_and_tell_by_the_exit_code(call, toy, labelled: Path, tmp_path: Path) -> None:
    (labelled / "bad" / "zz.png").write_bytes(b"")
    out = tmp_path / "out"
    code, _, said = call("explain", toy.model, "--data", labelled, "--out", out, "--kind", "activation")
    assert code == 3
    (line,) = [line for line in said.splitlines() if line.startswith("zsad: skipped: ")]
    assert "zz.png is empty" in line and "zz.png" in (out / "explain.html").read_text()
    for path in (*(labelled / "bad").iterdir(), *(labelled / "good").iterdir()):
        path.write_bytes(b"")
    code, _, said = call("explain", toy.model, "--data", labelled, "--out", tmp_path / "none")
    assert code == 2 and "none of the 5 images" in said and not (tmp_path / "none").exists()


def test_embeddings_and_curves_need_no_data(call, toy, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text('{"step": 1, "epoch": 0, "dice": 2.0, "total": 2.0}\n')
    words = ["explain", toy.model, "--out", tmp_path / "out", "--kind", "embeddings", "curves"]
    code, _, said = call(*words, "--compare", run)
    assert code == 0, said
    document = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert document["figures"] == ["experts", "curves"] and document["curves"][0]["run"] == "run"


def test_misuse_is_one_line(call, toy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, word in (
        ([toy.model], "no images to explain"),
        ([toy.model, "--data", tmp_path / "none"], "does not exist"),
        ([toy.model, "--kind", "maps"], "maps"),
        ([toy.model, "--kind", "curves", "--compare", tmp_path], "log.jsonl"),
        ([toy.model, "--data", toy.images, "--images", 0], "expected 1 or more"),
        (["clip", "--backbone", toy.backbone, "--data", toy.images], "has no experts to explain, unlike"),
        (["promptmo-tiny", "--data", toy.images], "promptmoe-tiny"),
    ):
        code, _, said = call("explain", *words, "--out", out)
        errors = [line for line in said.splitlines() if line.startswith("zsad: error: ")]
        assert code == 2 and len(errors) == 1 and word in errors[0], said
        assert not out.exists()
