"""`zsad predict` in this process: what it prints, writes, refuses, and how it goes on."""

from __future__ import annotations

import csv
import errno
import json
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.cli.main import main
from zsad.errors import StorageError


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture
def predict(toy, capsys: pytest.CaptureFixture[str]):
    """Runs `zsad predict ...` on the toy model; returns exit code, stdout and stderr."""

    def run(*arguments: object, model: object = None) -> tuple[int, str, str]:
        words = ["predict", *map(str, arguments), "--model", str(model or toy.model), "--device", "cpu"]
        code = main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_lines_files_and_formats(predict, toy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, said = predict(toy.images, "--out", out)
    assert (code, said) == (0, "")
    lines = printed.splitlines()
    assert lines[0].split() == ["score", "time", "verdict", "image"]
    rows = rows_of(out)
    assert len(rows) == 5
    for line, row in zip(lines[1:6], rows, strict=True):
        score, ms, unit, verdict, name = line.split()
        assert float(score) == pytest.approx(row["score"], abs=6e-4)
        assert float(ms) == pytest.approx(row["ms"], abs=0.6) and unit == "ms"
        assert verdict == "-" and name == Path(row["source"]).name
        overlay = Image.open(out / row["overlay"])
        assert (overlay.height, overlay.width) == tuple(row["size"])
        assert Path(row["source"]).is_absolute()
    assert lines[6].startswith("5 images scored in ")
    table = list(csv.DictReader((out / "scores.csv").open()))
    assert [float(entry["score"]) for entry in table] == [row["score"] for row in rows]
    assert np.load(out / "grids.npy").shape == (5, 3, 8, 8)
    assert sorted(path.name for path in out.iterdir()) == [
        "grids.npy",
        "overlays",
        "predictions.jsonl",
        "report.html",
        "run.json",
        "scores.csv",
    ]


def test_single_image_glob_and_switches(predict, toy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = predict(toy.images / "*.jpg", "--out", out, "--no-overlay", "--no-report")
    assert code == 0 and len(rows_of(out)) == 2
    assert not (out / "report.html").exists() and not list((out / "overlays").iterdir())
    code, printed, _ = predict(toy.images / "part01.png", "--out", tmp_path / "one", "--max-overlay-side", 64)
    assert code == 0 and printed.count("part01.png") == 1
    assert max(Image.open(next((tmp_path / "one" / "overlays").iterdir())).size) == 64


def test_second_run_goes_on_and_other_settings_are_refused(predict, make_images, tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "in", 3), tmp_path / "out"
    assert predict(images, "--out", out)[0] == 0
    first = (out / "predictions.jsonl").read_bytes()
    Image.new("RGB", (40, 40), (9, 9, 9)).save(images / "zz.png")
    code, printed, said = predict(images, "--out", out)
    assert code == 0 and "3 images of this run finished before" in said
    assert "part00" not in printed and "zz.png" in printed
    assert (out / "predictions.jsonl").read_bytes().startswith(first)
    code, _, said = predict(images, "--out", out, "--no-overlay")
    assert code == 2 and "other settings (overlay)" in said and said.count("\n") == 1
    assert len(rows_of(out)) == 4
    assert predict(images, "--out", out, "--no-overlay", "--overwrite")[0] == 0
    assert not list((out / "overlays").iterdir())


def test_overwriting_keeps_the_first_overlay(predict, toy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        assert predict(toy.images, "--out", out, "--overwrite")[0] == 0
        assert len(list((out / "overlays").iterdir())) == 5


def test_finished_run_can_be_asked_again(predict, toy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(toy.images, "--out", out)
    (out / "report.html").unlink()
    code, printed, _ = predict(toy.images, "--out", out)
    assert code == 0 and "0 images scored" in printed and (out / "report.html").exists()


def test_results_inside_the_inputs_are_not_inputs(predict, make_images, tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", 2)
    assert predict(images, "--out", images / "results")[0] == 0
    code, _, _ = predict(images, "--out", images / "results")
    assert code == 0 and len(rows_of(images / "results")) == 2


def break_some(folder: Path) -> dict[str, str]:
    """Puts broken files into a folder; name -> word of the message."""
    good = (folder / "part00.jpg").read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.jpg").write_bytes(good[: len(good) // 2])
    (folder / "text.png").write_text("not an image\n")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    return {"empty.png": "empty", "half.jpg": "truncated", "text.png": "not an image", "dot.png": "1x1"}


def test_bad_files_are_reported_skipped_and_told_by_the_exit_code(
    predict, make_images, tmp_path: Path
) -> None:
    images, out = make_images(tmp_path / "in", 3), tmp_path / "out"
    broken = break_some(images)
    code, printed, said = predict(images, "--out", out)
    assert code == 3
    assert len(said.splitlines()) == len(broken)
    rows = {Path(row["source"]).name: row for row in rows_of(out)}
    assert len(rows) == 7
    for name, word in broken.items():
        assert word in rows[name]["error"] and word in said and "\n" not in rows[name]["error"]
    assert "3 images scored" in printed and "4 skipped" in printed
    errors = [row["error"] for row in csv.DictReader((out / "scores.csv").open()) if row["error"]]
    assert len(errors) == 4
    assert "4 files could not be used" in (out / "report.html").read_text()


@pytest.mark.parametrize("name", ["empty.png", "half.jpg", "text.png", "dot.png"])
def test_one_bad_image_is_one_line_and_leaves_nothing(
    predict, make_images, tmp_path: Path, name: str
) -> None:
    images = make_images(tmp_path / "in", 1)
    word = break_some(images)[name]
    code, printed, said = predict(images / name, "--out", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert said.startswith("zsad: error: ") and said.count("\n") == 1 and word in said
    assert not (tmp_path / "out").exists()


def test_only_bad_images_leave_nothing(predict, make_images, tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", 1)
    break_some(images)
    (images / "part00.jpg").unlink()
    code, printed, said = predict(images, "--out", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert "none of the 4 images could be used" in said.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="symbolic links and pipes of POSIX")
def test_links_that_lead_nowhere_and_pipes(predict, make_images, tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", 2)
    (images / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (images / "loop.png").symlink_to(images / "loop.png")
    (images / "folder.png").mkdir()
    os.mkfifo(images / "pipe.png")
    code, _, said = predict(images, "--out", tmp_path / "out")
    assert code == 3 and len(said.splitlines()) == 2
    assert all(f"{name}.png is a link that leads nowhere" in said for name in ("dead", "loop"))
    for name, word in (("dead", "leads nowhere"), ("loop", "leads nowhere"), ("pipe", "not a regular file")):
        code, printed, said = predict(images / f"{name}.png", "--out", tmp_path / "one")
        assert (code, printed) == (2, "") and word in said and said.count("\n") == 1


def test_picture_beyond_the_warning_of_pillow_is_one_line(predict, tmp_path: Path) -> None:
    """A header that claims 119 megapixels: more than Pillow likes, less than it refuses."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10900, 10900, 1, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    with warnings.catch_warnings(record=True) as told:  # and puts back the filters that the command sets
        warnings.simplefilter("always")
        code, _, said = predict(tmp_path / "huge.png", "--out", tmp_path / "out")
    assert code == 2 and "truncated" in said and said.count("\n") == 1 and not told


def test_odd_but_good_images(predict, tmp_path: Path) -> None:
    images = tmp_path / "in"
    images.mkdir()
    ramp = np.linspace(0, 4000, 60 * 50).reshape(60, 50)
    Image.fromarray(ramp.astype(np.uint16)).save(images / "deep.png")
    Image.new("CMYK", (50, 40), (9, 90, 30, 0)).save(images / "print.jpg")
    Image.new("P", (50, 40), 3).save(images / "palette.png")
    Image.new("RGB", (2000, 10), (50, 60, 70)).save(images / "wide.png")
    Image.new("LA", (40, 40), (80, 128)).save(images / "alpha<b>.png")
    code, _, said = predict(images, "--out", tmp_path / "out")
    assert (code, said) == (0, "") and len(rows_of(tmp_path / "out")) == 5


def test_missing_and_empty_inputs(predict, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, word in (
        ([tmp_path / "none"], "does not exist"),
        ([tmp_path / "empty"], "no images"),
        ([tmp_path / "*.png"], "no image matches"),
        ([], "no input"),
    ):
        code, printed, said = predict(*words, "--out", tmp_path / "out")
        assert (code, printed) == (2, "") and word in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_models(predict, toy, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello, this is text")
    (tmp_path / "cut").mkdir()
    data = (toy.model / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(data[:-1000])
    for model, word in (
        ("promptmoe-tny", "no model"),
        (tmp_path / "text.safetensors", "no safetensors file"),
        (tmp_path / "cut", "truncated"),
        (toy.backbone, "without a zsad card"),
        ("clip", "--backbone"),
    ):
        code, printed, said = predict(toy.images, "--out", tmp_path / "out", model=model)
        assert (code, printed) == (2, ""), said
        assert word in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--max-overlay-side", "3"], "--max-overlay-side is 3"),
        (["--threads", "0"], "threads is 0"),
        (["--device", "cuda:77"], "device"),
        (["--batch-size", "many"], "many"),
        (["--modell", "x"], "Did you mean --model?"),
    ],
)
def test_impossible_options(predict, toy, tmp_path: Path, words: list[str], said: str) -> None:
    code, printed, told = predict(toy.images, "--out", tmp_path / "out", *words)
    assert (code, printed) == (2, "") and said in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_untrained_method_on_a_named_backbone(predict, toy, tmp_path: Path) -> None:
    code, _, said = predict(toy.images, "--out", tmp_path / "out", "--backbone", toy.backbone, model="clip")
    assert (code, said) == (0, "")
    assert "routing" not in rows_of(tmp_path / "out")[0]


def test_full_disk_is_one_line_and_finished_rows_stay(
    predict, toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zsad.runs.store import GridFile

    append, calls = GridFile.append, []

    def fail_at_third(self: GridFile, grid: np.ndarray) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return append(self, grid)

    monkeypatch.setattr(GridFile, "append", fail_at_third)
    out = tmp_path / "out"
    code, _, said = predict(toy.images, "--out", out)
    assert code == StorageError.exit_code == 2
    assert "the disk is full" in said and said.count("\n") == 1
    assert len(rows_of(out)) == 2
    monkeypatch.undo()
    assert predict(toy.images, "--out", out)[0] == 0
    assert len(rows_of(out)) == 5


def test_disk_full_from_the_start_leaves_nothing(predict, toy, tmp_path: Path, monkeypatch) -> None:
    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, printed, said = predict(toy.images, "--out", tmp_path / "out")
    assert (code, printed) == (2, "") and "the disk is full" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_interrupt_keeps_finished_rows(predict, toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zsad.cli import console

    result_line = console.result_line

    def stop_at_second(prediction: object, **rest: object) -> str:
        if "part01" in str(prediction):
            raise KeyboardInterrupt
        return result_line(prediction, **rest)

    monkeypatch.setattr(console, "result_line", stop_at_second)
    out = tmp_path / "out"
    code, _, said = predict(toy.images, "--out", out, "--batch-size", 1)
    assert code == 130 and "goes on where it stopped" in said
    done = len(rows_of(out))
    assert 1 <= done < 5 and len(list(csv.DictReader((out / "scores.csv").open()))) == done
    monkeypatch.undo()
    assert predict(toy.images, "--out", out)[0] == 0
    assert len(rows_of(out)) == 5 and len({row["source"] for row in rows_of(out)}) == 5


def test_without_jinja_the_run_still_works(predict, toy, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("zsad.runs.predict_run.find_spec", lambda name: None)
    code, _, said = predict(toy.images, "--out", tmp_path / "out")
    assert code == 0 and "pip install 'zsad[report]'" in said
    assert len(rows_of(tmp_path / "out")) == 5 and not (tmp_path / "out" / "report.html").exists()


def test_control_characters_in_names_do_not_reach_the_terminal(predict, make_images, tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", 1)
    (images / "part00.jpg").rename(images / "red\x1b[31m\nname.jpg")
    code, printed, _ = predict(images, "--out", tmp_path / "out")
    assert code == 0 and "\x1b" not in printed and "red\\x1b[31m\\nname.jpg" in printed


def test_an_error_that_is_a_bug_is_one_line_too(predict, toy, tmp_path: Path, monkeypatch) -> None:
    import zsad.loading

    def broken(*_: object, **__: object) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(zsad.loading, "load", broken)
    code, _, said = predict(toy.images, "--out", tmp_path / "out")
    assert (
        code == 1
        and said.startswith("zsad: error: internal error: ValueError: two\\nlines")
        and said.count("\n") == 1
    )
    monkeypatch.setenv("ZSAD_DEBUG", "1")
    with pytest.raises(ValueError, match="two"):
        predict(toy.images, "--out", tmp_path / "out")
